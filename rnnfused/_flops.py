"""What the operators cost, for torch.utils.flop_counter: their products, two operations for a multiplication
and an addition, as torch counts its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import rnnfused._load  # noqa: F401 (it registers the operators)
from rnnfused._layer import LayerConfig

__all__: list[str] = []

Shape = Sequence[int]


def _rows(input: Shape) -> int:
    """(step, batch) pairs: all that the input has beside its features."""
    rows = 1
    for size in input[:-1]:
        rows *= size
    return rows


def _weights(config: LayerConfig, params: Sequence[Shape]) -> list[int]:
    """Of each of params the multiplications that a row takes: none but for matrices (of heads, for each),
    which peepholes are not.
    """
    own = config.params_each - len(config.own_params)
    return [
        math.prod(shape) if len(shape) >= 2 and place % config.params_each < own else 0
        for place, shape in enumerate(params)
    ]


@register_flop_formula(torch.ops.rnnfused.recurrent)
def _forward(
    input: Shape,
    hx: Sequence[Shape],
    params: Sequence[Shape],
    batch_sizes: Any,
    lengths: Any,
    resets: Any,
    layer: str,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * _rows(input) * sum(_weights(LayerConfig.parse(layer), params))


@register_flop_formula(torch.ops.rnnfused.recurrent_backward)
def _backward(
    grads: Any,
    input: Shape,
    hx: Sequence[Shape],
    params: Sequence[Shape],
    batch_sizes: Any,
    lengths: Any,
    resets: Any,
    output: Shape,
    tape: Shape,
    layer: str,
    wanted: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    config = LayerConfig.parse(layer)
    weights = _weights(config, params)
    first = 1 + len(hx)
    found = sum(weights[index - first] for index in wanted if index >= first)
    for place, weight in enumerate(weights):
        # The gradient of x takes W_ih; those of h and of the projected output pass through the others anyway.
        if place % config.params_each or 0 in wanted:
            found += weight
    return 2 * _rows(input) * found


@register_flop_formula(torch.ops.rnnfused.recurrent_tangent)
def _tangent(
    tangents: Sequence[Shape | None],
    grads: Sequence[Shape | None],
    grad_tangents: Sequence[Shape | None],
    input: Shape,
    hx: Sequence[Shape],
    params: Sequence[Shape],
    batch_sizes: Any,
    lengths: Any,
    resets: Any,
    output: Shape,
    layer: str,
    outputs: bool,
    wanted: Sequence[int],
    tape: Any = None,
    *_: Any,
    **__: Any,
) -> int:
    config = LayerConfig.parse(layer)
    first = 1 + len(hx)
    again = bool(wanted) or tape is None
    moves = {index for index, tangent in enumerate(tangents) if tangent is not None}
    found = 0
    for place, weight in enumerate(_weights(config, params)):
        of_input, moved = place % config.params_each == 0, place + first in moves
        # Forward: the accumulators again where they are in no tape, and their tangents by what the weight
        # multiplies and by the weight.
        found += weight * (again + moved + (not of_input or 0 in moves))
        if wanted:
            # Backward: values and tangents of what passes through the weight, and the weight's own gradient.
            passed = (2 + moved) if not of_input else (1 + moved) * (0 in wanted)
            found += weight * (passed + 2 * (place + first in wanted))
    return 2 * _rows(input) * found


@register_flop_formula(torch.ops.rnnfused.recurrent_gate_gradients)
def _gate_gradients(
    grads: Any,
    input: Shape,
    hx: Sequence[Shape],
    params: Sequence[Shape],
    batch_sizes: Any,
    lengths: Any,
    resets: Any,
    output: Shape,
    layer: str,
    *_: Any,
    **__: Any,
) -> int:
    config = LayerConfig.parse(layer)
    # All products of forward, and those by which gradients pass from step to step.
    return (
        2
        * _rows(input)
        * sum(
            weight * (1 + (place % config.params_each > 0))
            for place, weight in enumerate(_weights(config, params))
        )
    )


def _attended(layer: str, params: Sequence[Shape], attention: Sequence[Shape]) -> int:
    """Multiplications of a row: the layer's, of its query, of the scores and of the context."""
    (_, source, size), (_, _, context), query, _ = attention
    own = sum(_weights(LayerConfig.parse(layer), params))
    return own + query[0] * query[1] + source * (size + context)


@register_flop_formula(torch.ops.rnnfused.attend)
def _attend(
    input: Shape,
    hx: Sequence[Shape],
    params: Sequence[Shape],
    attention: Sequence[Shape],
    mask: Any,
    layer: str,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * _rows(input) * _attended(layer, params, attention)


@register_flop_formula(torch.ops.rnnfused.attend_backward)
def _attend_backward(
    grads: Any,
    kept: Sequence[Shape],
    hx: Sequence[Shape],
    params: Sequence[Shape],
    attention: Sequence[Shape],
    mask: Any,
    layer: str,
    *_: Any,
    **__: Any,
) -> int:
    # Of every product one for each of its factors.
    return 4 * _rows(kept[0]) * _attended(layer, params, attention)
