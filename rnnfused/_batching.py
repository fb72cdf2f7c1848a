"""How the operators are batched: their rules for torch.func.vmap.

Where weights are shared, what is mapped over joins the batch, and one kernel call runs all of it. Where each
has weights of its own (an ensemble), one call follows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

import rnnfused._load  # noqa: F401 (it registers the operators)
from rnnfused._layer import LayerConfig, Layout

__all__: list[str] = []

Dims = int | None


def _forward(
    info: Any,
    in_dims: tuple[Any, ...],
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    layer: str,
    save: bool,
) -> tuple[list[Tensor], list[Dims]]:
    run = torch.ops.rnnfused.recurrent
    layout = Layout(batch_sizes, lengths, resets)
    dims = _Dims(*in_dims[:_OWN], layer=layer, input=input, lengths=lengths)
    if dims.each_alone or info.batch_size == 0:
        return _one_by_one(
            lambda *given: run(*given, layer, save),
            info.batch_size,
            in_dims[:_OWN],
            (input, hx, params, *layout),
        )
    fold = _Fold(LayerConfig.parse(layer), info.batch_size, input, dims.input, layout)
    results = run(
        fold.sequence(input, dims.input),
        fold.states(hx, dims.hx),
        params,
        *fold.layout(layout, dims.layout),
        layer,
        save,
    )
    return fold.unfolded(results)


_OWN = 6  # arguments that every operator has: input, hx, params, batch_sizes, lengths, resets


class _Dims:
    def __init__(self, *own: Any, layer: str, input: Tensor, lengths: Tensor | None) -> None:
        self.input, self.hx, params, *self.layout = own
        dimensions = input.dim() - (self.input is not None)
        concatenated = lengths is not None and dimensions == 2
        # Calls that cannot be one: other weights, rows that do not stay where they are, or rows whose place
        # in the batch says what is drawn for them.
        self.each_alone = (
            concatenated
            or self.layout[0] is not None
            or any(d is not None for d in params)
            or LayerConfig.parse(layer).varied
        )
        self.data = any(d is not None for d in (self.input, *self.hx, *self.layout))


class _Fold:
    """Joins what is mapped over with the batch: [.., B, V, ..] -> [.., B V, ..]; of packed rows each becomes
    V rows. Without a batch V is the batch.
    """

    def __init__(self, layer: LayerConfig, size: int, input: Tensor, input_dim: Dims, layout: Layout) -> None:
        self._layer, self._size, self._packed = layer, size, layout.batch_sizes is not None
        dimensions = input.dim() - (input_dim is not None)
        self._batched = self._packed or dimensions == (2 if layer.step else 3)
        # Without a batch dimension the new one goes where a batch of the layer's is.
        self._axis = 0 if layer.step or self._packed or layer.batch_first else 1
        self._state_axis = 0 if layer.step else 1

    def sequence(self, t: Tensor, dim: Dims) -> Tensor:
        return self._joined(t, dim, self._axis)

    def states(self, tensors: Sequence[Tensor], dims: Sequence[Dims]) -> list[Tensor]:
        return [self._joined(t, d, self._state_axis) for t, d in zip(tensors, dims, strict=True)]

    def layout(self, layout: Layout, dims: Sequence[Dims]) -> Layout:
        sizes, lengths, resets = layout
        return Layout(
            None if sizes is None else sizes * self._size,
            None if lengths is None else self._joined(lengths, dims[1], 0),
            None if resets is None else self._joined(resets, dims[2], self._axis),
        )

    def of_inputs(self, tensors: Sequence[Tensor | None], dims: Sequence[Dims]) -> list[Tensor | None]:
        """What is shaped as the input and hx."""
        return self._all(tensors, dims, lambda index: index == 0)

    def of_outputs(self, tensors: Sequence[Tensor | None], dims: Sequence[Dims]) -> list[Any]:
        """What is shaped as the operator's outputs."""
        return self._all(tensors, dims, self._layer.is_sequence)

    def _all(
        self, tensors: Sequence[Tensor | None], dims: Sequence[Dims], is_sequence: Callable[[int], bool]
    ) -> list[Tensor | None]:
        return [
            t
            if t is None
            else self.sequence(t, d)
            if is_sequence(index)
            else self._joined(t, d, self._state_axis)
            for index, (t, d) in enumerate(zip(tensors, dims, strict=True))
        ]

    def _joined(self, t: Tensor, dim: Dims, axis: int) -> Tensor:
        place = axis + self._batched
        t = (
            t.unsqueeze(place).expand(*t.shape[:place], self._size, *t.shape[place:])
            if dim is None
            else (t.movedim(dim, place))
        )
        return t.flatten(axis, place) if self._batched else t

    def _parted(self, t: Tensor, axis: int) -> tuple[Tensor, int]:
        """Two tensors that overlap nowhere, and where V is."""
        if not self._batched:
            return t, axis
        return t.unflatten(axis, (-1 if t.numel() else t.shape[axis] // self._size, self._size)), axis + 1

    def unfolded_sequence(self, t: Tensor) -> tuple[Tensor, int]:
        return self._parted(t, self._axis)

    def unfolded_state(self, t: Tensor) -> tuple[Tensor, int]:
        return self._parted(t, self._state_axis)

    def unfolded(self, results: list[Tensor]) -> tuple[list[Tensor], list[Dims]]:
        parted: list[tuple[Tensor, Dims]] = []
        for index, t in enumerate(results):
            if index >= self._layer.outputs:
                parted.append((t, None))  # the tape of all
            elif self._layer.is_sequence(index):
                parted.append(self.unfolded_sequence(t))
            else:
                parted.append(self.unfolded_state(t))
        return [t for t, _ in parted], [d for _, d in parted]

    def weight_gradients(
        self, gates: Sequence[Tensor], input: Tensor, lengths: Tensor | None
    ) -> list[Tensor]:
        """Of each of the V, [V, ...] in the order of params, from all rows' gates' gradients: what joins the
        batch is the last part of a row's index.
        """
        each = len(gates) // self._layer.directions
        order_by_steps = self._layer.batch_first and not self._packed
        by_steps = input.transpose(0, 1) if order_by_steps else input
        if lengths is not None:  # what lies beyond them may be no number
            steps = torch.arange(len(by_steps), device=input.device).unsqueeze(1)
            by_steps = by_steps.masked_fill((steps >= lengths.to(input.device)).unsqueeze(-1), 0)
        rows = by_steps.flatten(0, -2)

        def product(left: Tensor, right: Tensor) -> Tensor:
            v = self._size
            return torch.einsum("rvi,rvj->vij", left.unflatten(0, (-1, v)), right.unflatten(0, (-1, v)))

        found = []
        for d in range(self._layer.directions):
            of_input, of_h, h_before, *projection = gates[d * each : (d + 1) * each]
            found += [product(of_input, rows), product(of_h, h_before)]
            if self._layer.bias:
                found += [t.unflatten(0, (-1, self._size)).sum(0) for t in (of_input, of_h)]
            if projection:
                found.append(product(projection[1], projection[0]))
        return found


def _backward(
    info: Any,
    in_dims: tuple[Any, ...],
    grads: Sequence[Tensor | None],
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    output: Tensor,
    tape: Tensor,
    layer: str,
    wanted: Sequence[int],
) -> tuple[list[Tensor], list[Dims]]:
    run = torch.ops.rnnfused.recurrent_backward
    layout = Layout(batch_sizes, lengths, resets)
    grad_dims, *own_dims, output_dim, tape_dim = in_dims[: 3 + _OWN]
    dims = _Dims(*own_dims, layer=layer, input=input, lengths=lengths)
    if dims.each_alone or tape_dim is not None or info.batch_size == 0:
        return _one_by_one(
            lambda *given: run(*given, layer, wanted),
            info.batch_size,
            in_dims[: 3 + _OWN],
            (grads, input, hx, params, *layout, output, tape),
        )
    config = LayerConfig.parse(layer)
    fold = _Fold(config, info.batch_size, input, dims.input, layout)
    outer = fold.of_outputs(grads, grad_dims)
    x, states = fold.sequence(input, dims.input), fold.states(hx, dims.hx)
    joined = fold.layout(layout, dims.layout)
    if dims.data:
        (y,) = fold.of_outputs([output], [output_dim])
    else:
        # Gradients alone are mapped over: forward, and so its tape, was of one.
        y, *_, tape = torch.ops.rnnfused.recurrent(x, states, params, *joined, layer, True)
    of_data = [index for index in wanted if index <= len(hx)]
    found: dict[int, tuple[Tensor, Dims]] = {}
    if of_data:
        computed = run(outer, x, states, params, *joined, y, tape, layer, of_data)
        for index, t in zip(of_data, computed, strict=True):
            found[index] = fold.unfolded_state(t) if index else fold.unfolded_sequence(t)
    of_params = [index for index in wanted if index > len(hx)]
    if of_params:
        every = [t for t in (*outer, x, *states, *params) if t is not None]
        if _is_differentiated(every):
            # One call for each, which can be differentiated further.
            def alone(g: Any, *own: Any) -> list[Tensor]:
                y, *_, tape = torch.ops.rnnfused.recurrent(*own, layer, True)
                gradients: list[Tensor] = run(g, *own, y, tape, layer, of_params)
                return gradients

            parts = _one_by_one(
                alone, info.batch_size, in_dims[: 1 + _OWN], (grads, input, hx, params, *layout)
            )[0]
        else:
            gates = torch.ops.rnnfused.recurrent_gate_gradients(outer, x, states, params, *joined, y, layer)
            all_parts = fold.weight_gradients(gates, x, joined.lengths)
            parts = [all_parts[index - 1 - len(hx)] for index in of_params]
        for index, t in zip(of_params, parts, strict=True):
            found[index] = t, 0
    return [found[index][0] for index in wanted], [found[index][1] for index in wanted]


def _is_differentiated(tensors: Sequence[Tensor]) -> bool:
    return (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)) or (
        forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    )


def _tangent(
    info: Any,
    in_dims: tuple[Any, ...],
    tangents: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    grad_tangents: Sequence[Tensor | None],
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
    tape: Tensor | None = None,
) -> tuple[list[Tensor], list[Dims]]:
    # The tape, which has no batch dimension, only spares work.
    run = torch.ops.rnnfused.recurrent_tangent
    layout = Layout(batch_sizes, lengths, resets)
    along_dims, grad_dims, moved_dims, *own_dims, output_dim = in_dims[: 4 + _OWN]
    dims, data = _Dims(*own_dims, layer=layer, input=input, lengths=lengths), 1 + len(hx)
    of_weights = any(d is not None for d in along_dims[data:]) or any(index >= data for index in wanted)
    if dims.each_alone or of_weights or info.batch_size == 0:
        return _one_by_one(
            lambda *given: run(*given, layer, outputs, wanted),
            info.batch_size,
            in_dims[: 4 + _OWN],
            (tangents, grads, grad_tangents, input, hx, params, *layout, output),
        )
    config = LayerConfig.parse(layer)
    fold = _Fold(config, info.batch_size, input, dims.input, layout)
    results = run(
        [*fold.of_inputs(tangents[:data], along_dims[:data]), *tangents[data:]],
        fold.of_outputs(grads, grad_dims),
        fold.of_outputs(grad_tangents, moved_dims),
        fold.sequence(input, dims.input),
        fold.states(hx, dims.hx),
        params,
        *fold.layout(layout, dims.layout),
        fold.of_outputs([output], [output_dim])[0],
        layer,
        outputs,
        wanted,
    )
    count = config.outputs if outputs else 0
    tensors, parted = fold.unfolded(results[:count])
    for index, t in zip(wanted, results[count:], strict=True):
        one, dim = fold.unfolded_state(t) if index else fold.unfolded_sequence(t)
        tensors.append(one)
        parted.append(dim)
    return tensors, parted


def _gate_gradients(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[list[Tensor], list[Dims]]:
    *given, layer = arguments
    run = torch.ops.rnnfused.recurrent_gate_gradients
    return _one_by_one(lambda *own: run(*own, layer), info.batch_size, in_dims[: 2 + _OWN], given)


def _one_by_one(
    run: Callable[..., list[Tensor]], size: int, dims: Sequence[Any], arguments: Sequence[Any]
) -> tuple[list[Tensor], list[Dims]]:
    def part(argument: Any, dim: Any, index: int) -> Any:
        if isinstance(argument, (list, tuple)):
            return [part(a, d, index) for a, d in zip(argument, dim, strict=True)]
        if dim is None:
            return argument
        # Of none there is one of zeros, for the sake of its results' sizes.
        return argument.select(dim, index) if size else argument.sum(dim)

    results = [
        run(*(part(a, d, index) for a, d in zip(arguments, dims, strict=True)))
        for index in range(max(size, 1))
    ]
    stacked = [torch.stack(tensors)[:size] for tensors in zip(*results, strict=True)]
    return stacked, [0] * len(stacked)


torch.library.register_vmap("rnnfused::recurrent", _forward)
torch.library.register_vmap("rnnfused::recurrent_backward", _backward)
torch.library.register_vmap("rnnfused::recurrent_tangent", _tangent)
torch.library.register_vmap("rnnfused::recurrent_gate_gradients", _gate_gradients)
