"""The layer-norm LSTM of NeMo and of torch's fastrnns, as a state_dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rnnfused.interop._weights import (
    Direction,
    Layer,
    Stack,
    build,
    check_name,
    check_names,
    check_option,
    check_shape,
    describe,
    state_of,
    tensor,
)

__all__ = ["from_nemo", "to_nemo"]

_WEIGHTS = ("weight_ih", "weight_hh")
_NORMS = {
    f"norm_{ours}_{kind}": f"layernorm_{theirs}.{kind}"
    for ours, theirs in (("ih", "i"), ("hh", "h"), ("c", "c"))
    for kind in ("weight", "bias")
}
_OPTIONS = {"layer_norm": "separate", "cell_norm": "carried"}


def from_nemo(source: torch.nn.Module | Mapping[str, Any], dtype: torch.dtype | None = None) -> Layer:
    """The LSTM with the weights of NeMo's rnn(..., norm="layer"), or of the layer-norm LSTMs among torch's
    fastrnns, which have the same cell: layer_norm="separate", cell_norm="carried", bias=False.

    source: the module, or its state_dict: layers.0.cell.weight_ih and so on, of both directions (fastrnns)
    layers.0.directions.0.cell.weight_ih and so on. dtype: the weights' own if None.

    Raises ValueError for other parameters, shapes that do not fit, and layers whose epsilon is another; a
    state_dict does not tell it, and torch's 1e-5 is assumed.

    Its layout is torch.nn's: gates i, f, g, o; the norms are those of the input product, of the recurrent
    product and of c (NeMo's collections/common/parts/rnn.py, PyTorch's benchmarks/fastrnns/custom_lstms.py).
    """
    state = state_of(source)
    directions = 2 if any(".directions." in name for name in state) else 1
    count = len({name.split(".")[1] for name in state if name.startswith("layers.")})
    prefixes = _prefixes(max(count, 1), directions)
    of_cell = (*_WEIGHTS, *_NORMS.values())
    names = [prefix + name for each in prefixes for prefix in each for name in of_cell]
    check_names("state_dict", state, names, "a layer-norm LSTM")
    layers = [[_direction(state, prefix) for prefix in each] for each in prefixes]
    return build(Stack("lstm", layers, _OPTIONS), dtype, batch_first=False)


def to_nemo(layer: Layer) -> dict[str, Tensor]:
    """The layer's weights as the state_dict of NeMo's or, of both directions, fastrnns's LSTM.

    Raises TypeError for what is no RNN, LSTM or GRU, and ValueError for what is no LSTM, bias, proj_size,
    learn_initial_state, another layer_norm than "separate", another cell_norm than "carried", and other
    options.
    """
    cell, layers, options = describe(layer, tuple(_OPTIONS))
    check_name("layer", cell, ("lstm",))
    for option, expected in _OPTIONS.items():
        check_option(option, options.get(option), expected)
    check_option("bias", layer.bias, False)
    state: dict[str, Tensor] = {}
    for prefixes, directions in zip(_prefixes(len(layers), len(layers[0])), layers, strict=True):
        for prefix, direction in zip(prefixes, directions, strict=True):
            weights = (direction.w_ih, direction.w_hh)
            state |= {prefix + name: weight for name, weight in zip(_WEIGHTS, weights, strict=True)}
            state |= {prefix + theirs: direction.own[ours] for ours, theirs in _NORMS.items()}
    return {name: weight.clone() for name, weight in state.items()}


def _prefixes(layers: int, directions: int) -> list[list[str]]:
    places = ["cell."] if directions == 1 else ["directions.0.cell.", "directions.1.cell."]
    return [[f"layers.{index}.{place}" for place in places] for index in range(layers)]


def _direction(state: Mapping[str, Any], prefix: str) -> Direction:
    w_ih, w_hh = (tensor(prefix + name, state[prefix + name]) for name in _WEIGHTS)
    own = {ours: tensor(prefix + theirs, state[prefix + theirs]) for ours, theirs in _NORMS.items()}
    hidden = w_hh.size(-1)
    check_shape(prefix + "weight_ih", w_ih, 4 * hidden, w_ih.size(-1))
    check_shape(prefix + "weight_hh", w_hh, 4 * hidden, hidden)
    for ours, theirs in _NORMS.items():
        check_shape(prefix + theirs, own[ours], hidden if "_c_" in ours else 4 * hidden)
    return Direction(w_ih, w_hh, own=own)
