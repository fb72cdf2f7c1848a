"""One layer for autograd: the only way from Python to the kernels, but for packed layers (_packed.py).

What nothing differentiates goes straight to the native forward, all layers of a stack in one call (`plain`);
what is differentiated goes layer by layer (`layer`) through one `torch.autograd.Function` that serves every
cell. Its backward is a Function again, so that second and higher derivatives exist: they are those of the
decomposed layer, as are forward-mode tangents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rnnfused import _decomposed
from rnnfused._load import _C

__all__ = ["followed", "layer", "plain"]

MaybeTensors = Sequence[Tensor | None]
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


def followed(*tensors: Tensor | None) -> bool:
    """Whether a derivative, in reverse or forward mode, may be taken through any of the tensors."""
    return _requires_grad(*tensors) or _has_tangent(*tensors)


def plain(
    cell: str,
    x: Tensor,
    initial: tuple[Tensor, ...],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs layers over one another, without dropout between them, for what is not `followed`.

    x: [T, B, I], [B, T, I] if batch_first, or packed rows. initial: h [L D, B, P], and c [L D, B, H] where
    the cell has one. params: functional's flat list. Returns y, laid out as x, and the final states.
    """
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        x, initial, params = _autocast(x), tuple(map(_autocast, initial)), list(map(_autocast, params))
    h0, *c0 = initial
    y, hn, cn = _C.stack_forward(
        cell,
        x,
        h0,
        c0[0] if c0 else None,
        params,
        batch_sizes,
        has_biases,
        layers,
        bidirectional,
        batch_first,
    )
    return y, (hn,) if cn is None else (hn, cn)


def layer(
    cell: str,
    x: Tensor,
    initial: tuple[Tensor, ...],
    weights: MaybeTensors,
    batch_sizes: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs one layer, in one direction or both.

    x: [T, B, I], or packed rows [rows, I] with batch_sizes [T]. initial: h [D, B, P], and c [D, B, H] where
    the cell has one. weights: for each direction W_ih, W_hh, b_ih, b_hh, W_hr, the last three possibly None.
    recompute: whether backward rebuilds the gates instead of keeping them. Returns y [T, B, D P] (or [rows,
    D P]) and the final states, shaped as the initial ones.
    """
    if _has_tangent(x, *initial, *weights):
        return _decomposed.layer(cell, x, initial, weights, batch_sizes)
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        x, initial, weights = _autocast(x), tuple(map(_autocast, initial)), tuple(map(_autocast, weights))
    h0, c0 = initial[0], initial[1] if len(initial) > 1 else None
    if _requires_grad(x, *initial, *weights):
        y, hn, cn = _Layer.apply(cell, recompute, batch_sizes, x, h0, c0, *weights)
    else:
        y, hn, cn, _ = _C.layer_forward(cell, x, h0, c0, weights, batch_sizes, False, False)
    return y, (hn,) if cn is None else (hn, cn)


def _autocast(t: MaybeTensor) -> MaybeTensor:
    """As torch.autocast casts what a matrix product takes: all floating point but float64."""
    if t is None or not t.is_floating_point() or t.dtype == torch.float64:
        return t
    return t.to(torch.get_autocast_dtype("cuda"))


def _requires_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode differentiation (torch.autograd.forward_ad) runs through any of the tensors."""
    return forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cell: str,
        recompute: bool,
        batch_sizes: Tensor | None,
        x: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        *weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        y, hn, cn, tape = _C.layer_forward(cell, x, h0, c0, weights, batch_sizes, True, recompute)
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.recompute = cell, recompute
        ctx.save_for_backward(batch_sizes, y, tape, x, h0, c0, *weights)
        return y, hn, cn

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dhn: Tensor | None, dcn: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        batch_sizes, y, tape, *inputs = ctx.saved_tensors
        cell, recompute, wanted = ctx.cell, ctx.recompute, ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # create_graph=True
            gradients = _LayerBackward.apply(
                cell, recompute, wanted, batch_sizes, y, tape, dy, dhn, dcn, *inputs
            )
        else:
            gradients = _gradients(cell, recompute, wanted, batch_sizes, y, tape, (dy, dhn, dcn), inputs)
        return None, None, None, *gradients


def _gradients(
    cell: str,
    recompute: bool,
    wanted: Sequence[bool],
    batch_sizes: Tensor | None,
    y: Tensor,
    tape: Tensor,
    outer: MaybeTensors,
    inputs: MaybeTensors,
) -> tuple[Tensor | None, ...]:
    x, h0, c0, *weights = inputs
    dy, dhn, dcn = outer
    assert x is not None and h0 is not None
    return tuple(
        _C.layer_backward(cell, x, h0, c0, weights, batch_sizes, y, tape, dy, dhn, dcn, wanted, recompute)
    )


class _LayerBackward(torch.autograd.Function):
    """The gradients of `_Layer`, differentiable in the outer gradients and in `_Layer`'s inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: str,
        recompute: bool,
        wanted: Sequence[bool],
        batch_sizes: Tensor | None,
        y: Tensor,
        tape: Tensor,
        dy: Tensor | None,
        dhn: Tensor | None,
        dcn: Tensor | None,
        *inputs: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.wanted = cell, wanted
        ctx.save_for_backward(batch_sizes, dy, dhn, dcn, *inputs)
        return _gradients(cell, recompute, wanted, batch_sizes, y, tape, (dy, dhn, dcn), inputs)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        higher = torch.is_grad_enabled()
        batch_sizes, *saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[6:]
        with torch.enable_grad():
            arguments = [_argument(t, higher) for t in saved]
            gradients = _decomposed_gradients(ctx.cell, batch_sizes, arguments[:3], arguments[3:], ctx.wanted)
            pairs = [(g, o) for g, o in zip(gradients, outer, strict=True) if g is not None and o is not None]
            targets = [a for a, need in zip(arguments, needed, strict=True) if need and a is not None]
            found: Iterator[Tensor | None] = iter(())
            if pairs and targets:
                outputs, grads = zip(*pairs, strict=True)
                found = iter(
                    torch.autograd.grad(outputs, targets, grads, create_graph=higher, allow_unused=True)
                )
        second = [
            next(found, None) if need and a is not None else None
            for a, need in zip(arguments, needed, strict=True)
        ]
        return (None,) * 6 + tuple(second)


def _argument(t: Tensor | None, higher: bool) -> Tensor | None:
    """A stand-in for `t` of its own, so that a tensor which is passed twice gets a gradient for each of its
    places.
    """
    if t is None:
        return None
    return t.view_as(t) if higher and t.requires_grad else t.detach().requires_grad_()


def _decomposed_gradients(
    cell: str,
    batch_sizes: Tensor | None,
    outer: MaybeTensors,
    inputs: MaybeTensors,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    x, h0, c0, *weights = inputs
    assert x is not None and h0 is not None
    y, final = _decomposed.layer(cell, x, (h0,) if c0 is None else (h0, c0), weights, batch_sizes)
    pairs = [(o, g) for o, g in zip((y, *final), outer, strict=False) if g is not None]
    targets = [t for t, want in zip(inputs, wanted, strict=True) if want and t is not None]
    if not pairs:
        return [None] * len(inputs)
    outputs, grads = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, targets, grads, create_graph=True, allow_unused=True))
    return [next(found) if want and t is not None else None for t, want in zip(inputs, wanted, strict=True)]
