"""rnnfused.functional against torch's own stateless functions, which torch keeps in torch._VF."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import FLOAT64
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfused.functional as F
from rnnfused import RNN

T, B, INPUT, H, P, LAYERS = 5, 3, 4, 6, 2, 2
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def parameters(kind: str, biases: bool, directions: int, projected: bool = False) -> list[Tensor]:
    torch.manual_seed(0)
    gates, width, found = GATES[kind] * H, P if projected else H, []
    for index in range(LAYERS):
        for _ in range(directions):
            shapes = [(gates, width * directions if index else INPUT), (gates, width)]
            shapes += [(gates,), (gates,)] if biases else []
            shapes += [(width, H)] if projected else []
            found += [torch.randn(s, dtype=torch.float64).mul_(0.5).requires_grad_() for s in shapes]
    return found


def states(kind: str, directions: int, width: int = H) -> tuple[Tensor, ...]:
    shapes = [(LAYERS * directions, B, width), (LAYERS * directions, B, H)]
    return tuple(torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes[: 1 + (kind == "lstm")])


def call(kind: str, x: Tensor, hx: tuple[Tensor, ...], params: list[Tensor], **options: Any) -> Any:
    return getattr(F, kind)(x, hx if kind == "lstm" else hx[0], params, **options)


def assert_same(ours: Any, theirs: Any, leaves: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    weights = [torch.randn_like(t) for t in theirs]
    found = [torch.autograd.grad(outputs, leaves, weights) for outputs in (ours, theirs)]
    for a, b in zip((*ours, *found[0]), (*theirs, *found[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("batch_first", [False, True], ids=["steps first", "batch first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("kind", GATES)
def test_padded_input(kind: str, biases: bool, bidirectional: bool, batch_first: bool) -> None:
    params, hx = parameters(kind, biases, 1 + bidirectional), states(kind, 1 + bidirectional)
    x = torch.randn(*((B, T) if batch_first else (T, B)), INPUT, dtype=torch.float64, requires_grad=True)
    options = {"has_biases": biases, "num_layers": LAYERS, "bidirectional": bidirectional}
    ours = call(kind, x, hx, params, batch_first=batch_first, **options)
    vf = getattr(torch._VF, "rnn_tanh" if kind == "rnn" else kind)
    given = list(hx) if kind == "lstm" else hx[0]
    theirs = vf(x, given, params, biases, LAYERS, 0.0, False, bidirectional, batch_first)
    assert_same(ours, theirs, [x, *hx, *params])


@pytest.mark.parametrize("kind", GATES)
def test_packed_input(kind: str) -> None:
    params, hx = parameters(kind, True, 2), states(kind, 2)
    padded = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    packed = pack_padded_sequence(padded, [T, 3, 1])
    ours = call(
        kind, packed.data, hx, params, batch_sizes=packed.batch_sizes, num_layers=LAYERS, bidirectional=True
    )
    vf = getattr(torch._VF, "rnn_tanh" if kind == "rnn" else kind)
    given = list(hx) if kind == "lstm" else hx[0]
    theirs = vf(packed.data, packed.batch_sizes, given, params, True, LAYERS, 0.0, False, True)
    weights = [torch.randn_like(t) for t in theirs]
    leaves = [padded, *hx, *params]
    found = [torch.autograd.grad(o, leaves, weights, retain_graph=True) for o in (ours, theirs)]
    for a, b in zip((*ours, *found[0]), (*theirs, *found[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=FLOAT64, atol=FLOAT64)


def test_a_projection_is_seen_in_the_states() -> None:
    params, hx = parameters("lstm", True, 1, projected=True), states("lstm", 1, P)
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    ours = F.lstm(x, hx, params, num_layers=LAYERS)
    theirs = torch._VF.lstm(x, list(hx), params, True, LAYERS, 0.0, False, False, False)
    assert_same(ours, theirs, [x, *hx, *params])


def test_dropout_draws_as_torch_does() -> None:
    params, hx = parameters("gru", True, 1), states("gru", 1)
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(7)
    ours = F.gru(x, hx[0], params, num_layers=LAYERS, dropout=0.5, training=True)
    torch.manual_seed(7)
    theirs = torch._VF.gru(x, hx[0], params, True, LAYERS, 0.5, True, False, False)
    assert_same(ours, theirs, [x, *hx, *params])


@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("kind", GATES)
def test_cells(kind: str, biases: bool) -> None:
    weights = parameters(kind, biases, 1)[: 4 if biases else 2]
    x = torch.randn(B, INPUT, dtype=torch.float64, requires_grad=True)
    hx = tuple(torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in states(kind, 1))
    given = hx if kind == "lstm" else hx[0]
    ours = getattr(F, f"{kind}_cell")(x, given, *weights)
    theirs = getattr(torch._VF, "rnn_tanh_cell" if kind == "rnn" else f"{kind}_cell")(x, given, *weights)
    as_tuple = (lambda value: value) if kind == "lstm" else (lambda value: (value,))
    assert_same(as_tuple(ours), as_tuple(theirs), [x, *hx, *weights])


def test_relu() -> None:
    params, hx = parameters("rnn", True, 1), states("rnn", 1)
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    ours = F.rnn(x, hx[0], params, nonlinearity="relu", num_layers=LAYERS)
    theirs = torch._VF.rnn_relu(x, hx[0], params, True, LAYERS, 0.0, False, False, False)
    assert_same(ours, theirs, [x, *hx, *params])
    weights = params[:4]
    (step,) = (F.rnn_cell(x[0], hx[0][0], *weights, nonlinearity="relu"),)
    assert_same((step,), (torch._VF.rnn_relu_cell(x[0], hx[0][0], *weights),), [x, hx[0], *weights])


def rnn_arguments() -> dict[str, Any]:
    module = RNN(INPUT, H)
    return {
        "input": torch.zeros(T, B, INPUT),
        "hx": torch.zeros(1, B, H),
        "params": list(module.parameters()),
    }


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"nonlinearity": "sine"}, ValueError, "Unknown nonlinearity 'sine'"),
        ({"params": [torch.zeros(H, INPUT)]}, ValueError, "params: expected 4 tensors.*, got 1"),
        ({"num_layers": 2, "hx": torch.zeros(2, B, H)}, ValueError, "params: expected 8 tensors.*, got 4"),
        ({"layers": 2}, TypeError, "layers"),
        ({"dropout": -0.1}, ValueError, "dropout"),
        ({"input": torch.zeros(0, B, INPUT)}, RuntimeError, "larger than 0"),
        ({"input": torch.zeros(T, B, INPUT, 1)}, ValueError, "Expected input to be 2D or 3D, got 4D"),
        (
            {"hx": torch.zeros(2, B, H)},
            RuntimeError,
            r"Expected hidden size \(1, 3, 6\), got \[2, 3, 6\]",
        ),
        ({"input": torch.zeros(T, B, INPUT).double()}, (RuntimeError, ValueError), "dtype"),
        ({"batch_sizes": torch.tensor([1])}, RuntimeError, "dimension"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_named(change: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        F.rnn(**(rnn_arguments() | change))
