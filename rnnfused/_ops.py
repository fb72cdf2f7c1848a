"""The operators as Python calls and completes them.

`torch.ops.rnnfused.recurrent` runs a layer, layers over one another or a step, `recurrent_backward` gives a
layer's gradients, `recurrent_tangent` differentiates both in a direction; csrc/torch/library.cpp has schemas and
kernels. Here stand the eager fast path to them, their derivatives of third order, and how they are batched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnfused import _decomposed
from rnnfused._layer import LayerConfig
from rnnfused._load import _C

__all__ = ["recurrent"]

OptionalTensors = Sequence[Tensor | None]


def recurrent(
    layer: LayerConfig,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
) -> list[Tensor]:
    """The layer's output (none of a step) and its final states; csrc/torch/arguments.h says what it takes.

    Native code runs it at once, unless somebody wants to see the call: a tracer, a transform, a mode, autocast,
    a subclass. Raises what torch.nn raises.
    """
    if not torch.compiler.is_compiling():
        outputs = _C.recurrent(layer.text, input, hx, params, batch_sizes)
        if outputs is not None:
            return outputs
    if batch_sizes is not None and len(hx) == 0:
        hx = _zeros(layer, input, params, batch_sizes)
    return torch.ops.rnnfused.recurrent(input, hx, params, batch_sizes, layer.text, False)


def _zeros(
    layer: LayerConfig, input: Tensor, params: Sequence[Tensor], batch_sizes: Tensor
) -> list[Tensor]:
    """Initial states of packed rows: how many there are is data, which a tensor without memory cannot tell."""
    recurrent_weight = params[1]
    units = [recurrent_weight.size(1), recurrent_weight.size(0) // len(layer.spec.gates)]
    batch = int(batch_sizes[0])
    return [
        input.new_zeros(layer.num_layers * layer.directions, batch, units[index])
        for index in range(len(layer.spec.states))
    ]


def _tangent(
    tangents: OptionalTensors,
    grads: OptionalTensors,
    grad_tangents: OptionalTensors,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    output: Tensor,
    layer: str,
    outputs: bool,
    wanted: Sequence[int],
) -> list[Tensor]:
    """`recurrent_tangent`, from derivatives of the layer in torch's own operations.

    With F the layer, g = F'^T dy its gradients and s = <g, v>: ds/d(dy) = F' v is F's tangent in the direction
    v, and ds/dx = (F'' v)^T dy, the second derivative being symmetric, is that of g.
    """
    config = LayerConfig.parse(layer)
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        given = [input, *hx, *params]
        # Stand-ins, so that a tensor which is passed twice gets a derivative for each of its places.
        own = [t.view_as(t) if higher and t.requires_grad else t.detach().requires_grad_() for t in given]
        states = 1 + len(hx)
        results = _decomposed.recurrent(config, own[0], own[1:states], own[states:], batch_sizes)
        outer = [
            (torch.zeros_like(y) if g is None else g if higher and g.requires_grad else g.detach())
            for y, g in zip(results, grads or [None] * len(results), strict=True)
        ]
        outer = [g.view_as(g) if g.requires_grad else g.requires_grad_() for g in outer]
        gradients = torch.autograd.grad(results, own, outer, create_graph=True, allow_unused=True)
        pairs = [(g, v) for g, v in zip(gradients, tangents, strict=True) if g is not None and v is not None]
        targets = [*outer, *(own[index] for index in wanted)]
        found: list[Tensor | None] = [None] * len(targets)
        if pairs:
            g, v = zip(*pairs, strict=True)
            found = list(torch.autograd.grad(g, targets, v, create_graph=higher, retain_graph=True, allow_unused=True))
        if any(t is not None for t in grad_tangents):
            moved = [torch.zeros_like(y) if t is None else t for y, t in zip(results, grad_tangents, strict=True)]
            linear = torch.autograd.grad(
                results, [own[index] for index in wanted], moved, create_graph=higher, allow_unused=True
            )
            for index, change in enumerate(linear, start=len(outer)):
                before = found[index]
                found[index] = change if before is None else before if change is None else before + change
    skipped = 0 if outputs else len(outer)
    return [
        torch.zeros_like(t) if f is None else f
        for t, f in zip(targets[skipped:], found[skipped:], strict=True)
    ]


_library = torch.library.Library("rnnfused", "IMPL")
_library.impl("recurrent_tangent", _tangent, "CompositeImplicitAutograd")
