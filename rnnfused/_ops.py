"""The operators as Python calls and completes them.

`torch.ops.rnnfused.recurrent` runs a layer, layers over one another or a step, `recurrent_backward` gives a
layer's gradients, `recurrent_tangent` differentiates both in a direction; csrc/torch/library.cpp has schemas
and kernels. Here stand the eager fast path to them and their derivatives of third order; `_batching` has
their rules for torch.func.vmap, `_flops` what they cost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_impls import register_op_impl
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.compiler import is_dynamo_compiling
from torch.utils._pytree import tree_map_only

from rnnfused import _decomposed
from rnnfused._layer import LayerConfig, Layout
from rnnfused._load import _C
from rnnfused.onnx import register_symbolic

__all__ = ["leading_sizes", "recurrent", "stand_in"]

OptionalTensors = Sequence[Tensor | None]


def recurrent(
    layer: LayerConfig,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> list[Tensor]:
    """The layer's output (none of a step) and its final states; csrc/torch/arguments.h says what it takes.

    Native code runs it at once, unless somebody wants to see the call: a tracer, a transform, a mode,
    autocast, a subclass. Raises what torch.nn raises.
    """
    if not is_dynamo_compiling():
        outputs = _C.recurrent(layer.text, input, hx, params, batch_sizes, lengths, resets)
        if outputs is not None:
            return outputs
        if torch._C._is_tracing():
            register_symbolic()  # it may be for ONNX
            return torch.ops.rnnfused.recurrent(
                input, hx, params, batch_sizes, lengths, resets, layer.text, False
            )
    if len(hx) == 0:
        # What native code takes for granted: packed rows do not tell their number without memory, and
        # compiled packages (AOTInductor) have no empty lists.
        leading = leading_sizes(layer, input, Layout(batch_sizes, lengths, resets))
        hx = [input.new_zeros(*leading, size) for size in layer.state_sizes(params)]
    return torch.ops.rnnfused.recurrent(input, hx, params, batch_sizes, lengths, resets, layer.text, False)


@register_op_impl(lambda op: op.namespace == "rnnfused" and op._schema.name.startswith("rnnfused::recurrent"))
def _without_memory(mode: FakeTensorMode, op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """What FakeTensorMode makes of the operators: everything on the input's device, beside which batch sizes,
    lengths and seeds may be on the CPU. By itself the mode refuses such a pair.
    """
    given = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)) | kwargs
    with in_kernel_invocation_manager(mode):
        results = op(*args, **kwargs)
    device = given["input"].fake_device
    return tree_map_only(Tensor, lambda t: FakeTensor(mode, t, device), results)


def leading_sizes(layer: LayerConfig, input: Tensor, layout: Layout) -> list[Any]:
    """The sizes of the initial states without their units: layers and directions, and the batch if there is
    one.
    """
    leading: list[Any] = [] if layer.step else [layer.num_layers * layer.directions]
    if layout.batch_sizes is not None:
        leading.append(layout.batch_sizes[0].item())  # not int(): exported programs keep it a symbol
    elif layout.lengths is not None:
        leading.append(layout.lengths.size(0))
    elif input.dim() == (2 if layer.step else 3):
        leading.append(input.size(0 if layer.step or layer.batch_first else 1))
    return leading


def _tangent(
    tangents: OptionalTensors,
    grads: OptionalTensors,
    grad_tangents: OptionalTensors,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    output: Tensor,
    layer: str,
    outputs: bool,
    wanted: Sequence[int],
) -> list[Tensor]:
    """What `recurrent_tangent` gives, from derivatives of the layer in torch's own operations: to be
    differentiated further.

    With F the layer, g = F'^T dy its gradients and s = <g, v>: ds/d(dy) = F' v is F's tangent in the
    direction v, and ds/dx = (F'' v)^T dy, the second derivative being symmetric, is that of g.
    """
    states = 1 + len(hx)
    with torch.enable_grad(), _grad_may_be_required():
        own = [stand_in(t) for t in (input, *hx, *params)]
        results = _decomposed.recurrent(
            LayerConfig.parse(layer), own[0], own[1:states], own[states:], batch_sizes, lengths, resets
        )
        outer = [
            stand_in(torch.zeros_like(y) if g is None else g)
            for y, g in zip(results, grads or [None] * len(results), strict=True)
        ]
        along = [(t, v) for t, v in zip(own, tangents, strict=True) if v is not None and t.requires_grad]
        gradients = torch.autograd.grad(
            results, [t for t, _ in along], outer, create_graph=True, allow_unused=True
        )
        pairs = [(g, v) for g, (_, v) in zip(gradients, along, strict=True) if g is not None]
        targets = [*outer, *(own[index] for index in wanted)]
        found: list[Tensor | None] = [None] * len(targets)
        if pairs:
            of, by = zip(*pairs, strict=True)
            found = list(torch.autograd.grad(of, targets, by, create_graph=True, allow_unused=True))
        if any(t is not None for t in grad_tangents):
            # Gradients are linear in what they are gradients of.
            given = [(y, t) for y, t in zip(results, grad_tangents, strict=True) if t is not None]
            moved, by = zip(*given, strict=True)
            changes = torch.autograd.grad(
                moved, targets[len(outer) :], by, create_graph=True, allow_unused=True
            )
            for index, change in enumerate(changes, start=len(outer)):
                before = found[index]
                found[index] = change if before is None else before if change is None else before + change
    first = 0 if outputs else len(outer)
    return [
        torch.zeros_like(t) if f is None else f for t, f in zip(targets[first:], found[first:], strict=True)
    ]


def _tangent_backward(
    outer: OptionalTensors,
    tangents: OptionalTensors,
    grads: OptionalTensors,
    grad_tangents: OptionalTensors,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    output: Tensor,
    layer: str,
    outputs: bool,
    wanted: Sequence[int],
    needed: Sequence[int],
) -> list[Tensor]:
    """The gradients of `recurrent_tangent` with respect to those of its tensors that are `needed`, counted
    through tangents, grads, grad_tangents, input, hx and params.
    """
    higher = torch.is_grad_enabled()
    with torch.enable_grad(), _grad_may_be_required():
        given = (*tangents, *grads, *grad_tangents, input, *hx, *params)
        own: list[Any] = [None if t is None else stand_in(t) for t in given]
        rest = iter(own)

        def take(count: int) -> list[Any]:
            return [next(rest) for _ in range(count)]

        along, outer_of, moved = (take(len(of)) for of in (tangents, grads, grad_tangents))
        (x,), states, weights = (take(len(of)) for of in ((input,), hx, params))
        results = _tangent(
            along,
            outer_of,
            moved,
            x,
            states,
            weights,
            batch_sizes,
            lengths,
            resets,
            output,
            layer,
            outputs,
            wanted,
        )
        pairs = [(t, o) for t, o in zip(results, outer, strict=True) if o is not None and t.requires_grad]
        targets = [own[index] for index in needed]
        found: Sequence[Tensor | None] = [None] * len(targets)
        if pairs:
            of, by = zip(*pairs, strict=True)
            found = torch.autograd.grad(of, targets, by, create_graph=higher, allow_unused=True)
    return [torch.zeros_like(t) if f is None else f for t, f in zip(targets, found, strict=True)]


def stand_in(t: Tensor) -> Tensor:
    """Another name for the tensor: one that is passed twice has a derivative for each of its places. Seeds
    have none.
    """
    other = t.view_as(t)
    return other if other.requires_grad or not t.is_floating_point() else other.requires_grad_()


@contextlib.contextmanager
def _grad_may_be_required() -> Iterator[None]:
    """Inside of torch.func's transforms, too, which forbid it to functions that they transform."""
    before = torch._C._functorch.get_inplace_requires_grad_allowed() if _transformed() else None
    if before is None:
        yield
        return
    torch._C._functorch.set_inplace_requires_grad_allowed(True)
    try:
        yield
    finally:
        torch._C._functorch.set_inplace_requires_grad_allowed(before)


def _transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


_library = torch.library.Library("rnnfused", "IMPL")
for _key in ("CompositeImplicitAutograd", "FuncTorchBatchedDecomposition"):  # the latter: inside of vmap
    _library.impl("recurrent_tangent_decomposed", _tangent, _key)
    _library.impl("recurrent_tangent_backward", _tangent_backward, _key)
