"""Regularisers of the weights, and how the forget gate begins."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

import rnnfused
from rnnfused import functional

KINDS = pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
SHAPES = pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.3}, {"bias": False, "batch_first": True}],
    ids=["one", "stack", "plain"],
)
P = 0.4


def made(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(rnnfused, kind)(5, 64, **options)


@KINDS
@SHAPES
def test_weight_drop_drops_recurrent_weights_alone(kind: str, options: dict[str, Any]) -> None:
    """Values and gradients are those of the layer with such weights; torch's generator draws the masks."""
    layer, plain = made(kind, weight_drop=P, **options), made(kind, **options)
    x = torch.randn(7, 3, 5, requires_grad=True)
    torch.manual_seed(7)
    y, _ = layer(x)
    y.square().sum().backward()

    torch.manual_seed(7)
    masked = {
        name: torch.nn.functional.dropout(weight, P)
        for name, weight in plain.named_parameters()
        if name.startswith("weight_hh")
    }
    want, _ = torch.func.functional_call(plain, masked, (x.detach(),))
    want.square().sum().backward()
    assert torch.equal(y, want)
    for (name, ours), theirs in zip(layer.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name


@KINDS
def test_weight_drop_is_seeded_and_differs_from_call_to_call(kind: str) -> None:
    layer, x = made(kind, weight_drop=P), torch.randn(4, 2, 5)
    torch.manual_seed(3)
    first, second = layer(x)[0], layer(x)[0]
    torch.manual_seed(3)
    assert torch.equal(layer(x)[0], first)
    assert not torch.equal(first, second)


@KINDS
def test_weight_drop_is_of_training_alone(kind: str) -> None:
    layer, plain, x = made(kind, weight_drop=P).eval(), made(kind), torch.randn(4, 2, 5)
    want = plain(x)[0]
    assert torch.equal(layer(x)[0], want)
    torch.testing.assert_close(rnnfused.Frozen(layer)(x)[0], want)
    layer.train()
    layer.weight_drop = 0.0
    assert torch.equal(layer(x)[0], want)


def test_weight_drop_keeps_the_mean_and_the_share() -> None:
    weights = [torch.ones(4, 4), torch.ones(300, 300), torch.ones(4)]
    same, dropped, bias = functional.drop_weights(rnnfused._layer.LayerConfig("gru"), weights, 0.25)[:3]
    assert same is weights[0] and bias is weights[2]
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert abs(float((dropped == 0).float().mean()) - 0.25) < 5 * (0.25 * 0.75 / 90_000) ** 0.5


def test_weight_drop_under_checkpoint_and_recompute() -> None:
    layer, x = made("LSTM", weight_drop=P, recompute=True), torch.randn(6, 2, 5)
    gradients = []
    for call in (layer, lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        torch.manual_seed(5)
        call(x)[0].sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_weight_drop_compiles() -> None:
    layer, x = made("LSTM", weight_drop=P), torch.randn(6, 2, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    y = compiled(x)[0]
    torch.manual_seed(5)
    torch.testing.assert_close(y, layer(x)[0])


def test_functional_takes_it() -> None:
    layer, x = made("LSTM", weight_drop=P), torch.randn(6, 2, 5)
    hx = (torch.zeros(1, 2, 64), torch.zeros(1, 2, 64))
    torch.manual_seed(5)
    want = layer(x, hx)[0]
    torch.manual_seed(5)
    found = functional.lstm(x, hx, list(layer.parameters()), weight_drop=P, training=True)[0]
    assert torch.equal(found, want)
    plain = functional.lstm(x, hx, list(layer.parameters()), weight_drop=P)[0]
    assert torch.equal(plain, layer.eval()(x, hx)[0])


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_no_probability(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"weight_drop: expected a probability in \[0, 1\], got"):
        rnnfused.GRU(3, 4, weight_drop=wrong)
    with pytest.raises(ValueError, match=r"weight_drop: expected a probability"):
        functional.gru(torch.zeros(1, 1, 3), torch.zeros(1, 1, 4), [], weight_drop=wrong)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "stack"])
def test_the_forget_gate_begins_open(options: dict[str, Any]) -> None:
    layer, plain = made("LSTM", forget_bias=1.5, **options), made("LSTM", **options)
    for (name, ours), theirs in zip(layer.named_parameters(), plain.parameters(), strict=True):
        want = theirs.detach().clone()
        if name.startswith("bias_ih"):
            want.chunk(4)[1].add_(1.5)
        assert torch.equal(ours, want), name
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    plain.reset_parameters()
    assert torch.equal(layer.bias_ih_l0[64:128], plain.bias_ih_l0[64:128] + 1.5)


def test_a_cell_s_forget_gate() -> None:
    torch.manual_seed(0)
    cell = rnnfused.LSTMCell(3, 4, forget_bias=1.0)
    torch.manual_seed(0)
    plain = rnnfused.LSTMCell(3, 4)
    torch.testing.assert_close(
        cell.bias_ih - plain.bias_ih, torch.eye(4)[1].repeat_interleave(4), atol=1e-6, rtol=0
    )
    assert "forget_bias=1.0" in repr(cell)
    for kind in (rnnfused.LSTM, rnnfused.LSTMCell):
        with pytest.raises(ValueError, match=r"forget_bias: expected None with bias=False, got 1.0"):
            kind(3, 4, bias=False, forget_bias=1.0)


def test_they_show_and_pickle() -> None:
    layer = rnnfused.LSTM(3, 4, weight_drop=0.5, forget_bias=1.0)
    assert repr(layer) == "LSTM(3, 4, weight_drop=0.5, forget_bias=1.0)"
    again = pickle.loads(pickle.dumps(layer))
    assert (again.weight_drop, again.forget_bias, repr(again)) == (0.5, 1.0, repr(layer))


@KINDS
def test_weight_norm_goes_through_the_same_kernels(kind: str) -> None:
    """torch's parametrisation (Salimans and Kingma 2016): as torch.nn's layer has it."""
    ours = made(kind).double()
    theirs = getattr(torch.nn, kind)(5, 64).double()
    theirs.load_state_dict(ours.state_dict())
    for layer in (ours, theirs):
        for name in ("weight_ih_l0", "weight_hh_l0"):
            weight_norm(layer, name)
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    for layer in (ours, theirs):
        layer(x)[0].square().sum().backward()
    for (name, own), peer in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, peer.grad, msg=name)
