"""Derivatives: gradcheck and gradgradcheck, graphs used twice, in-place changes, partial gradients."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from one_layer import layer
from tolerances import FLOAT64, FLOAT64_DERIVATIVES
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import rnnfused

VARIANTS = [("rnn_tanh", False), ("rnn_relu", False), ("lstm", False), ("lstm", True), ("gru", False)]
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


def leaves(cell: str, projected: bool, directions: int, batch_sizes: Tensor | None) -> tuple[Tensor, ...]:
    t, b, i, h = 3, 2, 2, 3
    p = 2 if projected else h
    rows = (t, b) if batch_sizes is None else (int(batch_sizes.sum()),)
    shapes: list[tuple[int, ...]] = [(*rows, i), (directions, b, p)]
    if cell == "lstm":
        shapes.append((directions, b, h))
    g = GATES[cell] * h
    for _ in range(directions):
        shapes += [(g, i), (g, p), (g,), (g,)] + ([(p, h)] if projected else [])
    return tuple(torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)


def function(cell: str, projected: bool, directions: int, batch_sizes: Tensor | None) -> Any:
    states = 2 if cell == "lstm" else 1

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        weights: list[Tensor | None] = []
        each = 5 if projected else 4
        for d in range(directions):
            weights += rest[states + d * each : states + (d + 1) * each]
            weights += [] if projected else [None]
        y, final = layer(cell, x, rest[:states], weights, batch_sizes)
        return (y, *final)

    return run


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_first_and_second_derivatives(cell: str, projected: bool, packed: bool, directions: int) -> None:
    batch_sizes = torch.tensor([2, 1, 1]) if packed else None
    run = function(cell, projected, directions, batch_sizes)
    inputs = leaves(cell, projected, directions, batch_sizes)
    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


def test_gradcheck_in_full() -> None:
    for cell in GATES:
        assert gradcheck(function(cell, False, 1, None), leaves(cell, False, 1, None))


def test_third_derivative_equals_torchs() -> None:
    found = []
    for kind in (torch.nn.GRU, rnnfused.GRU):
        torch.manual_seed(1)
        module = kind(2, 3, dtype=torch.float64)
        x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 1, 2).requires_grad_()
        value = module(x)[0].sum()
        for _ in range(2):
            value = torch.autograd.grad(value, x, create_graph=True)[0].square().sum()
        found.append(torch.autograd.grad(value, [x, *module.parameters()]))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=FLOAT64_DERIVATIVES, atol=FLOAT64)


def test_tied_weights_get_each_places_gradient_once() -> None:
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    x, h = (torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def tied(x: Tensor, h: Tensor, w: Tensor) -> Tensor:
        return layer("rnn_tanh", x, (h,), [w, w, None, None, None] * 2)[0]

    assert gradcheck(tied, (x, h, w))
    assert gradgradcheck(tied, (x, h, w))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
class TestGraph:
    def make(self, kind: str) -> tuple[Any, Tensor]:
        return getattr(rnnfused, kind)(3, 20), torch.randn(5, 2, 3, requires_grad=True)

    def test_backward_twice_gives_the_same_bits(self, kind: str) -> None:
        module, x = self.make(kind)
        y = module(x)[0].square().sum()
        targets = [x, *module.parameters()]
        first = torch.autograd.grad(y, targets, retain_graph=True)
        second = torch.autograd.grad(y, targets)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_a_freed_graph_is_refused(self, kind: str) -> None:
        module, x = self.make(kind)
        y = module(x)[0].sum()
        y.backward()
        with pytest.raises(RuntimeError, match="second time"):
            y.backward()

    @pytest.mark.parametrize("which", ["input", "output", "weight"])
    def test_in_place_changes_are_caught(self, kind: str, which: str) -> None:
        module, x = self.make(kind)
        x = x * 1
        y = module(x)[0]
        total = y.sum()
        with torch.no_grad():
            {"input": x, "output": y, "weight": module.weight_hh_l0}[which].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()

    def test_only_what_is_asked_for(self, kind: str) -> None:
        module, x = self.make(kind)
        module.requires_grad_(False)
        module.weight_hh_l0.requires_grad_()
        module(x.detach())[0].sum().backward()
        assert module.weight_hh_l0.grad is not None and module.weight_ih_l0.grad is None
        module.requires_grad_(False)
        assert not module(x.detach())[0].requires_grad

    def test_final_state_alone(self, kind: str) -> None:
        module, x = self.make(kind)
        y, h = module(x)
        h = h[0] if isinstance(h, tuple) else h
        from_state = torch.autograd.grad(h.sum(), x, retain_graph=True)[0]
        from_output = torch.autograd.grad(y[-1].sum(), x)[0]
        torch.testing.assert_close(from_state, from_output)

    def test_backward_in_eval_mode(self, kind: str) -> None:
        module, x = self.make(kind)
        module.eval()(x)[0].sum().backward()
        assert x.grad is not None


def test_forward_mode_equals_torchs() -> None:
    tangents = []
    for kind in (torch.nn.GRU, rnnfused.GRU):
        torch.manual_seed(2)
        module = kind(2, 3, dtype=torch.float64)
        x, v = torch.randn(2, 4, 1, 2, dtype=torch.float64)
        for primal in (x, x.clone().requires_grad_()):
            with forward_ad.dual_level(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tangents.append(forward_ad.unpack_dual(module(forward_ad.make_dual(primal, v))[0]).tangent)
    assert all(t is not None for t in tangents)
    for other in tangents[1:]:
        torch.testing.assert_close(other, tangents[0], rtol=FLOAT64, atol=FLOAT64)


def test_lazily_negated_tensors_count_with_their_sign() -> None:
    def run(x: Tensor, h: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        y, _ = layer("rnn_tanh", x, (h,), [w, w, None, None, None])
        return (y, *torch.autograd.grad(y, (x, h, w), dy))

    plain = [torch.randn(s, dtype=torch.float64) for s in ((3, 2, 4), (1, 2, 4), (4, 4), (3, 2, 4))]
    want = run(*((-t).requires_grad_(i < 3) for i, t in enumerate(plain)))
    found = run(*(torch._neg_view(t).requires_grad_(i < 3) for i, t in enumerate(plain)))
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b)
