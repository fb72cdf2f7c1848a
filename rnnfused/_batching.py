"""How the operators are batched: their rules for torch.func.vmap.

Where weights are shared, what is mapped over joins the batch, and one kernel call runs all of it. Where each has
weights of its own (an ensemble), one call follows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import rnnfused._load  # which registers the operators
from rnnfused._layer import LayerConfig

__all__: list[str] = []

Dims = int | None


def _forward(
    info: Any,
    in_dims: tuple[Any, ...],
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    layer: str,
    save: bool,
) -> tuple[list[Tensor], list[Dims]]:
    run = torch.ops.rnnfused.recurrent
    dims = _Dims(*in_dims[:4])
    if dims.each_has_its_own_weights:
        return _one_by_one(
            lambda i, h, p, s: run(i, h, p, s, layer, save),
            info.batch_size,
            in_dims[:4],
            (input, hx, params, batch_sizes),
        )
    fold = _Fold(LayerConfig.parse(layer), info.batch_size, input, dims.input, batch_sizes)
    results = run(
        fold.sequence(input, dims.input),
        fold.states(hx, dims.hx),
        params,
        fold.batch_sizes(batch_sizes),
        layer,
        save,
    )
    return fold.unfolded(results)


class _Dims:
    def __init__(self, input: Dims, hx: Sequence[Dims], params: Sequence[Dims], batch_sizes: Dims) -> None:
        self.input, self.hx = input, hx
        self.each_has_its_own_weights = batch_sizes is not None or any(d is not None for d in params)
        self.data = input is not None or any(d is not None for d in hx)


class _Fold:
    """Joins what is mapped over with the batch: [.., B, V, ..] -> [.., B V, ..]; of packed rows each becomes V
    rows. Without a batch V is the batch.
    """

    def __init__(
        self, layer: LayerConfig, size: int, input: Tensor, input_dim: Dims, batch_sizes: Tensor | None
    ) -> None:
        self._layer, self._size = layer, size
        dimensions = input.dim() - (input_dim is not None)
        self._batched = batch_sizes is not None or dimensions == (2 if layer.step else 3)
        first = layer.step or batch_sizes is not None or (layer.batch_first and self._batched)
        self._axis = 0 if first else 1
        self._state_axis = 0 if layer.step else 1

    def sequence(self, t: Tensor, dim: Dims) -> Tensor:
        # Without a batch dimension the new one goes where a batch of the layer's is.
        axis = 0 if self._layer.batch_first and not self._batched else self._axis
        return self._joined(t, dim, axis)

    def states(self, tensors: Sequence[Tensor], dims: Sequence[Dims]) -> list[Tensor]:
        return [self._joined(t, d, self._state_axis) for t, d in zip(tensors, dims, strict=True)]

    def batch_sizes(self, sizes: Tensor | None) -> Tensor | None:
        return None if sizes is None else sizes * self._size

    def _joined(self, t: Tensor, dim: Dims, axis: int) -> Tensor:
        place = axis + self._batched
        t = t.unsqueeze(place).expand(*t.shape[:place], self._size, *t.shape[place:]) if dim is None else (
            t.movedim(dim, place)
        )
        return t.flatten(axis, place) if self._batched else t

    def _parted(self, t: Tensor, axis: int) -> tuple[Tensor, int]:
        """Two tensors that overlap nowhere, and where V is."""
        if not self._batched:
            return t, axis
        return t.unflatten(axis, (-1 if t.numel() else t.shape[axis] // self._size, self._size)), axis + 1

    def unfolded_sequence(self, t: Tensor) -> tuple[Tensor, int]:
        axis = 0 if self._layer.batch_first and not self._batched else self._axis
        return self._parted(t, axis)

    def unfolded_state(self, t: Tensor) -> tuple[Tensor, int]:
        return self._parted(t, self._state_axis)

    def unfolded(self, results: list[Tensor]) -> tuple[list[Tensor], list[Dims]]:
        parted: list[tuple[Tensor, Dims]] = []
        for index, t in enumerate(results):
            if index >= self._layer.outputs:
                parted.append((t, None))  # the tape of all
            elif index == 0 and not self._layer.step:
                parted.append(self.unfolded_sequence(t))
            else:
                parted.append(self.unfolded_state(t))
        return [t for t, _ in parted], [d for _, d in parted]


def _backward(
    info: Any,
    in_dims: tuple[Any, ...],
    grads: Sequence[Tensor | None],
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    output: Tensor,
    tape: Tensor,
    layer: str,
    wanted: Sequence[int],
) -> tuple[list[Tensor], list[Dims]]:
    run = torch.ops.rnnfused.recurrent_backward
    grad_dims, *own_dims, output_dim, tape_dim = in_dims[:7]
    dims = _Dims(*own_dims)
    if dims.each_has_its_own_weights or tape_dim is not None:
        return _one_by_one(
            lambda g, i, h, p, s, o, t: run(g, i, h, p, s, o, t, layer, wanted),
            info.batch_size,
            in_dims[:7],
            (grads, input, hx, params, batch_sizes, output, tape),
        )
    config = LayerConfig.parse(layer)
    fold = _Fold(config, info.batch_size, input, dims.input, batch_sizes)
    first_state = 0 if config.step else 1
    outer = [
        g if g is None
        else fold.sequence(g, d) if index < first_state
        else fold.states([g], [d])[0]
        for index, (g, d) in enumerate(zip(grads, grad_dims, strict=True))
    ]
    x, states, sizes = (
        fold.sequence(input, dims.input),
        fold.states(hx, dims.hx),
        fold.batch_sizes(batch_sizes),
    )
    if dims.data:
        y = fold.states([output], [output_dim])[0] if config.step else fold.sequence(output, output_dim)
    else:
        # Gradients alone are mapped over: forward, and so its tape, was of one.
        y, *_, tape = torch.ops.rnnfused.recurrent(x, states, params, sizes, layer, True)
    of_data = [index for index in wanted if index <= len(hx)]
    found: dict[int, tuple[Tensor, Dims]] = {}
    if of_data:
        computed = run(outer, x, states, params, sizes, y, tape, layer, of_data)
        for index, t in zip(of_data, computed, strict=True):
            found[index] = fold.unfolded_state(t) if index else fold.unfolded_sequence(t)
    of_params = [index for index in wanted if index > len(hx)]
    if of_params:
        # One call for each: of the weights' gradients only the sum over the batch is known.
        parts = []
        for v in range(info.batch_size):
            own = [None if g is None else fold.only(g, v, index >= first_state) for index, g in enumerate(outer)]
            parts.append(run(own, x, states, params, sizes, y, tape, layer, of_params))
        for place, index in enumerate(of_params):
            found[index] = torch.stack([part[place] for part in parts]), 0
    return [found[index][0] for index in wanted], [found[index][1] for index in wanted]


def _one_by_one(
    run: Callable[..., list[Tensor]], size: int, dims: Sequence[Any], arguments: Sequence[Any]
) -> tuple[list[Tensor], list[Dims]]:
    def part(argument: Any, dim: Any, index: int) -> Any:
        if isinstance(argument, (list, tuple)):
            return [part(a, d, index) for a, d in zip(argument, dim, strict=True)]
        return argument if dim is None else argument.select(dim, index)

    results = [
        run(*(part(a, d, index) for a, d in zip(arguments, dims, strict=True))) for index in range(size)
    ]
    stacked = [torch.stack(tensors) for tensors in zip(*results, strict=True)]
    return stacked, [0] * len(stacked)


torch.library.register_vmap("rnnfused::recurrent", _forward)
torch.library.register_vmap("rnnfused::recurrent_backward", _backward)
