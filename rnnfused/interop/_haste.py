"""haste's layers, as state_dicts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnnfused.cells import CELLS
from rnnfused.interop._weights import (
    Layer,
    Stack,
    build,
    check_name,
    check_names,
    check_option,
    check_shape,
    describe,
    from_columns,
    tensor,
)

__all__ = ["from_haste", "to_haste"]

# The parameters of each cell, in the order of a Direction, and what layer norm adds.
_NAMES = {
    "lstm": ("kernel", "recurrent_kernel", "bias"),
    "gru": ("kernel", "recurrent_kernel", "bias", "recurrent_bias"),
}
_NORMS = {"lstm": ("gamma", "gamma_h", "beta_h"), "gru": ("gamma",)}
# Of ours, with layer norm.
_OPTIONS = {"lstm": {"layer_norm": "separate", "cell_norm": "output"}, "gru": {"layer_norm": "separate"}}


def from_haste(
    state_dict: Mapping[str, Tensor],
    cell: str,
    dtype: torch.dtype | None = None,
    *,
    zoneout: float = 0.0,
    dropout: float = 0.0,
) -> Layer:
    """The LSTM or GRU with the weights of haste's.

    state_dict: of a haste_pytorch.LSTM, GRU, LayerNormLSTM or LayerNormGRU. cell: "lstm" or "gru". dtype: the
    weights' own if None. zoneout, dropout: what haste's layer was made with, which a state_dict does not
    tell: the zoneout of h, and the DropConnect that is weight_drop here. The layer is on the weights' device,
    and not batch_first (haste's default).

    Raises ValueError for another cell, other parameters and shapes that do not fit.

    haste's layout: kernel [I, G H], recurrent_kernel [H, G H], bias [G H], of a GRU recurrent_bias, too;
    gates i, g, f, o and z, r, h (haste_pytorch's lstm.py and gru.py). With layer norm gamma [2, G H], of the
    two products, whose shifts are the biases, and of an LSTM gamma_h, beta_h [H], of the norm of c that h is
    made of (layer_norm_lstm.py and layer_norm_gru.py).
    """
    check_name("cell", cell, tuple(_NAMES))
    normed = "gamma" in state_dict
    names = (*_NAMES[cell], *(_NORMS[cell] if normed else ()))
    check_names("state_dict", state_dict, names, f"a {cell}")
    found = {name: tensor(name, state_dict[name]) for name in names}
    of_h = (zoneout, 0.0) if cell == "lstm" and zoneout else zoneout
    options = {"zoneout": of_h, "weight_drop": dropout}
    if not normed:
        return build(Stack(cell, [[from_columns("haste", cell, found)]], options), dtype, batch_first=False)
    products = {name: found[name] for name in _NAMES[cell][:2]}
    own = _norms(found, len(CELLS[cell].gates), len(found["recurrent_kernel"]))
    direction = from_columns("haste", cell, products, own)
    return build(Stack(cell, [[direction]], options | _OPTIONS[cell]), dtype, batch_first=False)


def to_haste(layer: Layer) -> dict[str, Tensor]:
    """The layer's weights as the state_dict of a haste_pytorch.LSTM or GRU, or with layer norm of a
    LayerNormLSTM or LayerNormGRU, on the layer's device. zoneout and weight_drop are for haste's constructor.

    Of an LSTM the bias is the sum of our two, with layer norm of the two shifts; a layer without biases has
    zeros there.

    Raises TypeError for what is no RNN, LSTM or GRU, and ValueError for an RNN, several layers, two
    directions, proj_size, learn_initial_state, zoneout of c, biases inside a layer norm, a layer norm but
    "separate", of an LSTM with cell_norm but "output", and other options.
    """
    cell, layers, options = describe(layer, ("zoneout", "layer_norm", "cell_norm"))
    check_name("layer", cell, tuple(_NAMES))
    check_option("num_layers", len(layers), 1)
    check_option("bidirectional", len(layers[0]) > 1, False)
    zoneout = options.get("zoneout", 0.0)
    if cell == "lstm" and zoneout:
        h, c = zoneout if isinstance(zoneout, (tuple, list)) else (zoneout, zoneout)
        check_option("zoneout", (h, c), (h, 0.0))
    weights = layers[0][0].from_torch("haste", cell)
    ours = [weights.w_ih.t().contiguous(), weights.w_hh.t().contiguous()]
    if "layer_norm" not in options:
        biases = weights.biases if cell == "gru" else (weights.bias,)
        return dict(zip(_NAMES[cell], (*ours, *biases), strict=True))
    for option, expected in _OPTIONS[cell].items():
        check_option(option, options.get(option), expected)
    check_option("bias", layer.bias, False)
    own = weights.own
    shifts = (own["norm_ih_bias"], own["norm_hh_bias"])
    ours += shifts if cell == "gru" else (shifts[0] + shifts[1],)
    ours.append(torch.stack([own["norm_ih_weight"], own["norm_hh_weight"]]))
    ours += (own["norm_c_weight"].clone(), own["norm_c_bias"].clone()) if cell == "lstm" else ()
    return dict(zip((*_NAMES[cell], *_NORMS[cell]), ours, strict=True))


def _norms(found: Mapping[str, Tensor], gates: int, hidden: int) -> dict[str, Tensor]:
    """haste's gains and biases by our names, in haste's order of the gates."""
    check_shape("gamma", found["gamma"], 2, gates * hidden)
    for name in ("bias", "recurrent_bias"):
        if name in found:
            check_shape(name, found[name], gates * hidden)
    gains, shift = found["gamma"], found["bias"]
    own = {
        "norm_ih_weight": gains[0],
        "norm_ih_bias": shift,
        "norm_hh_weight": gains[1],
        "norm_hh_bias": found.get("recurrent_bias", torch.zeros_like(shift)),
    }
    for name, theirs in (("norm_c_weight", "gamma_h"), ("norm_c_bias", "beta_h")):
        if theirs in found:
            check_shape(theirs, found[theirs], hidden)
            own[name] = found[theirs]
    return own
