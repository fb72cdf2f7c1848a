"""recompute=True: backward rebuilds the gates; the gradients stay what they were."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfused
from rnnfused._layer import LayerConfig

LAYERS = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("GRU", {}),
    ("GRU", {"bidirectional": True, "num_layers": 2}),
    ("LSTM", {}),
    ("LSTM", {"bidirectional": True, "num_layers": 2}),
    ("LSTM", {"proj_size": 5}),
    ("LSTM", {"bias": False}),
]


def pair(name: str, dtype: torch.dtype = torch.float32, **options: object) -> tuple[torch.nn.Module, ...]:
    torch.manual_seed(2)
    usual = getattr(rnnfused, name)(9, 19, dtype=dtype, **options)
    lean = getattr(rnnfused, name)(9, 19, dtype=dtype, recompute=True, **options)
    lean.load_state_dict(usual.state_dict())
    return usual, lean


def gradients(layer: torch.nn.Module, x: torch.Tensor, lengths: list[int] | None) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    sequence = pack_padded_sequence(x, lengths) if lengths else x
    y, hx = layer(sequence)
    states = hx if isinstance(hx, tuple) else (hx,)
    y = y.data if lengths else y
    (y.sin().sum() + sum((i + 2) * s.cos().sum() for i, s in enumerate(states))).backward()
    assert x.grad is not None
    return [x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name, options", LAYERS)
@pytest.mark.parametrize(
    "steps, batch, ragged", [(1, 2, False), (7, 3, False), (40, 30, False), (33, 12, True)]
)
def test_same_bits(
    name: str, options: dict[str, object], steps: int, batch: int, ragged: bool, dtype: torch.dtype
) -> None:
    x = torch.randn(steps, batch, 9, dtype=dtype, generator=torch.Generator().manual_seed(3))
    lengths = [max(1, steps - 2 * b) for b in range(batch)] if ragged else None
    want, got = (gradients(layer, x, lengths) for layer in pair(name, dtype, **options))
    assert all(torch.equal(w, g) for w, g in zip(want, got, strict=True))


def tape_bytes(cell: str, gates: int, recompute: bool) -> int:
    weights = list(torch.zeros(2, gates * 32, 32))
    layer = LayerConfig(cell, bias=False, recompute=recompute).text
    return torch.ops.rnnfused.recurrent(torch.zeros(50, 4, 32), [], weights, None, None, None, layer, True)[
        -1
    ].nbytes


def test_what_is_kept() -> None:
    c, gates_of_a_step = 50 * 4 * 32 * 4, 4 * 4 * 32 * 4
    # Of 200 rows a quarter at most.
    kept = 50 * 4 * gates_of_a_step // 16
    assert tape_bytes("lstm", 4, recompute=True) == c + kept
    assert tape_bytes("lstm", 4, recompute=False) == c + 50 * gates_of_a_step
    assert tape_bytes("gru", 3, recompute=True) == kept
    assert tape_bytes("rnn_tanh", 1, recompute=True) == tape_bytes("rnn_tanh", 1, recompute=False) == 0


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
@pytest.mark.parametrize("hidden", [1, 128])
def test_ragged_rows_in_both_directions(name: str, hidden: int) -> None:
    # A direction's last steps hold other rows than the other's: each needs room of its own.
    layer = getattr(rnnfused, name)(32, hidden, bidirectional=True, recompute=True)
    usual = getattr(rnnfused, name)(32, hidden, bidirectional=True)
    usual.load_state_dict(layer.state_dict())
    overrun = [64, 64, 60, 53, 49, 49, 38, 37, 37, 36, 36, 34, 32, 26, 13, 12]  # 160 rows against 149
    for lengths in (overrun, *(torch.randint(1, 65, (16,)).tolist() for _ in range(20))):
        x = pack_padded_sequence(torch.randn(64, 16, 32), lengths, enforce_sorted=False)
        for module in (layer, usual):
            module.zero_grad()
            module(x)[0].data.sum().backward()
        for got, want in zip(layer.parameters(), usual.parameters(), strict=True):
            assert got.grad is not None and want.grad is not None and torch.equal(got.grad, want.grad)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_gradcheck(name: str) -> None:
    _, lean = pair(name, torch.float64)
    x = torch.randn(5, 2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: lean(x)[0], (x,))
    assert torch.autograd.gradgradcheck(lambda x: lean(x)[0], (x,))


def test_graph_can_be_used_twice() -> None:
    _, lean = pair("LSTM")
    x = torch.randn(20, 30, 9, requires_grad=True)
    y = lean(x)[0].sum()
    (once,) = torch.autograd.grad(y, x, retain_graph=True)
    (again,) = torch.autograd.grad(y, x)
    assert torch.equal(once, again)


def test_option_stays_with_the_layer() -> None:
    usual, lean = pair("GRU")
    assert repr(lean) == "GRU(9, 19, recompute=True)"
    assert repr(usual) == "GRU(9, 19)"
    for twin in (copy.deepcopy(lean), pickle.loads(pickle.dumps(lean))):
        assert twin.recompute
    lean.recompute = False
    assert repr(lean) == repr(usual)
    assert not rnnfused.convert(torch.nn.GRU(2, 3)).recompute


def test_functional() -> None:
    layer, _ = pair("LSTM")
    x, hx = torch.randn(20, 4, 9), (torch.zeros(1, 4, 19), torch.zeros(1, 4, 19))
    results = []
    for recompute in (False, True):
        y, _, _ = rnnfused.functional.lstm(x, hx, list(layer.parameters()), recompute=recompute)
        results.append(torch.autograd.grad(y.sum(), list(layer.parameters())))
    assert all(torch.equal(w, g) for w, g in zip(*results, strict=True))
