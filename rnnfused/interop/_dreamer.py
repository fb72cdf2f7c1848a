"""The GRU of Dreamer's world model, as plain tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rnnfused.interop._weights import (
    EPSILON,
    Direction,
    Layer,
    Stack,
    build,
    check_name,
    check_option,
    check_shape,
    describe,
    tensor,
)

__all__ = ["from_dreamer", "to_dreamer"]


def from_dreamer(
    weight: Any,
    norm_weight: Any,
    norm_bias: Any,
    dtype: torch.dtype | None = None,
    *,
    eps: float = 1e-3,
    update_bias: float = -1.0,
) -> Layer:
    """The GRU with the weights of Dreamer's: layer_norm="joint", update_bias=-1.

    weight: [3 H, I + H], a Linear's on the input and the state after it; the rows are reset, candidate,
    update. Where the state comes first, roll the columns; transpose a Dense's kernel. norm_weight, norm_bias:
    [3 H]. dtype: the weight's own if None. eps: of their layer norm, 1e-3 in Dreamer's code. Ours is 1e-5, so
    the weight is scaled by sqrt(1e-5 / eps), with which the norm gives the same; with eps=1e-5 it stays as it
    is. update_bias: what is added to the update gate.

    Raises ValueError for shapes that do not fit and an eps of 0 or less.

    Source: Hafner et al., "Dream to control", 2020; "Mastering Atari with discrete world models", 2021.
    """
    found, gain, shift = (
        tensor(name, value)
        for name, value in (("weight", weight), ("norm_weight", norm_weight), ("norm_bias", norm_bias))
    )
    if found.dim() != 2 or len(found) % 3 or found.size(1) <= len(found) // 3:
        raise ValueError(f"weight: expected shape (3 H, I + H), got {tuple(found.shape)}")
    rows, hidden = len(found), len(found) // 3
    check_shape("norm_weight", gain, rows)
    check_shape("norm_bias", shift, rows)
    w_ih, w_hh = (found * _scale(eps)).split([found.size(1) - hidden, hidden], 1)
    direction = Direction(w_ih, w_hh, own={"norm_weight": gain, "norm_bias": shift})
    options = {"layer_norm": "joint", "update_bias": update_bias}
    return build(Stack("gru", [[direction]], options), dtype, batch_first=False)


def to_dreamer(layer: Layer, *, eps: float = 1e-3) -> tuple[Tensor, Tensor, Tensor]:
    """weight, norm_weight and norm_bias as `from_dreamer` takes them, for a layer norm with that eps. The
    update_bias is for the constructor.

    Raises TypeError for what is no RNN, LSTM or GRU, and ValueError for what is no GRU, several layers, two
    directions, another layer_norm than "joint", learn_initial_state, other options, and an eps of 0 or less.
    """
    cell, layers, options = describe(layer, ("layer_norm", "update_bias"))
    check_name("layer", cell, ("gru",))
    check_option("num_layers", len(layers), 1)
    check_option("bidirectional", len(layers[0]) > 1, False)
    check_option("layer_norm", options.get("layer_norm"), "joint")
    direction = layers[0][0]
    weight = torch.cat([direction.w_ih, direction.w_hh], 1) / _scale(eps)
    return weight, direction.own["norm_weight"].clone(), direction.own["norm_bias"].clone()


def _scale(eps: float) -> float:
    """LN(s a) with our epsilon is LN(a) with eps."""
    if eps <= 0:
        raise ValueError(f"eps: expected a number above 0, got {eps}")
    return math.sqrt(EPSILON / eps)
