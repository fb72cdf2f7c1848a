"""haste's layers, as state_dicts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnnfused.interop._weights import Layer, Stack, build, check_name, describe, from_columns, tensor

__all__ = ["from_haste", "to_haste"]

# The parameters of each cell, in the order of a Direction.
_NAMES = {
    "lstm": ("kernel", "recurrent_kernel", "bias"),
    "gru": ("kernel", "recurrent_kernel", "bias", "recurrent_bias"),
}


def from_haste(state_dict: Mapping[str, Tensor], cell: str, dtype: torch.dtype | None = None) -> Layer:
    """The LSTM or GRU with the weights of haste's.

    state_dict: of a haste_pytorch.LSTM or GRU. cell: "lstm" or "gru". dtype: the weights' own if None. The
    layer is on their device, and not batch_first, which a state_dict does not tell (haste's default).

    Raises ValueError for another cell, other parameters (of layers with layer norm) and shapes that do not
    fit.

    haste's layout: kernel [I, G H], recurrent_kernel [H, G H], bias [G H], of a GRU recurrent_bias, too;
    gates i, g, f, o and z, r, h (haste_pytorch's lstm.py and gru.py).
    """
    check_name("cell", cell, tuple(_NAMES))
    names = _NAMES[cell]
    if set(state_dict) != set(names):
        raise ValueError(f"state_dict: expected {', '.join(names)} of a {cell}, got {', '.join(state_dict)}")
    direction = from_columns("haste", cell, {name: tensor(name, state_dict[name]) for name in names})
    return build(Stack(cell, [[direction]]), dtype, batch_first=False)


def to_haste(layer: Layer) -> dict[str, Tensor]:
    """The layer's weights as the state_dict of a haste_pytorch.LSTM or GRU, on the layer's device.

    Of an LSTM the bias is the sum of our two; a layer without biases has zeros there.

    Raises TypeError for what is no RNN, LSTM or GRU, and ValueError for an RNN, several layers, two
    directions, proj_size and learn_initial_state.
    """
    cell, layers, _ = describe(layer)
    check_name("layer", cell, tuple(_NAMES))
    if len(layers) > 1:
        raise ValueError(f"num_layers: expected 1, got {len(layers)}")
    if len(layers[0]) > 1:
        raise ValueError("bidirectional: expected False, got True")
    weights = layers[0][0].from_torch("haste", cell)
    biases = weights.biases if cell == "gru" else (weights.bias,)
    ours = (weights.w_ih.t().contiguous(), weights.w_hh.t().contiguous(), *biases)
    return dict(zip(_NAMES[cell], ours, strict=True))
