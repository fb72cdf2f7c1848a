"""The operators as Python calls and completes them.

`torch.ops.rnnfused.recurrent` runs a layer, layers over one another or a step, `recurrent_backward` gives a
layer's gradients, `recurrent_tangent` differentiates both in a direction; csrc/torch/library.cpp has schemas
and kernels. Here stand the eager fast path to them and their derivatives of third order; `_batching` has their
rules for torch.func.vmap, `_flops` what they cost.
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

    Native code runs it at once, unless somebody wants to see the call: a tracer, a transform, a mode,
    autocast, a subclass. Raises what torch.nn raises.
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
    """Initial states of packed rows: their number is data, which a tensor without memory cannot tell."""
    batch = int(batch_sizes[0])
    parts = layer.num_layers * layer.directions
    return [input.new_zeros(parts, batch, size) for size in layer.state_sizes(params[1].shape)]


def tangent(
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
    config, states = LayerConfig.parse(layer), 1 + len(hx)
    own = (input, *hx, *params)

    def run(*own: Tensor) -> tuple[Tensor, ...]:
        return tuple(_decomposed.recurrent(config, own[0], own[1:states], own[states:], batch_sizes))

    results, pull = torch.func.vjp(run, *own)
    outer = _filled(grads or [None] * len(results), results)

    def gradients(own: tuple[Tensor, ...], outer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.func.vjp(run, *own)[1](outer)

    _, pull_twice = torch.func.vjp(gradients, own, outer)
    of_inputs, of_outputs = pull_twice(_filled(tangents, own))
    found = [of_inputs[index] for index in wanted]
    if any(t is not None for t in grad_tangents):
        # Gradients are linear in what they are gradients of.
        changes = pull(_filled(grad_tangents, results))
        found = [before + changes[index] for before, index in zip(found, wanted, strict=True)]
    return [*of_outputs, *found] if outputs else found


def _filled(given: OptionalTensors, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(given, like, strict=True))


_library = torch.library.Library("rnnfused", "IMPL")
_library.impl("recurrent_tangent", tangent, "CompositeImplicitAutograd")
