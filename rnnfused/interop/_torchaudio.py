"""torchaudio's LSTM of the RNN transducer, as state_dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

__all__ = ["from_torchaudio", "to_torchaudio"]

_WEIGHTS = ("x2g.weight", "p2g.weight")
_BIAS = "x2g.bias"
_NORMS = {
    f"{ours}_{kind}": f"{theirs}.{kind}"
    for ours, theirs in (("norm_c", "c_norm"), ("norm", "g_norm"))
    for kind in ("weight", "bias")
}
_OPTIONS = {"layer_norm": "joint", "cell_norm": "carried"}

Source = torch.nn.Module | Mapping[str, Any]


def from_torchaudio(source: Source | Sequence[Source], dtype: torch.dtype | None = None) -> Layer:
    """The LSTM with the weights of torchaudio's _CustomLSTM: with its layer norm layer_norm="joint",
    cell_norm="carried", without it a plain one.

    source: the module or its state_dict; or a sequence of those, such as the lstm_layers of an RNN
    transducer's predictor, each on top of the one before it. dtype: the weights' own if None.

    Raises ValueError for other parameters, shapes that do not fit, and layers whose epsilon is not 1e-5; a
    state_dict does not tell it, and the 1e-5 that _CustomLSTM has by default is assumed. torchaudio's
    emformer_rnnt_base has 1e-3.

    Its layout is torch.nn's: gates i, f, g, o, one bias (torchaudio's models/rnnt.py).
    """
    sources: list[Any] = list(source) if isinstance(source, (Sequence, torch.nn.ModuleList)) else [source]
    if not sources:
        raise ValueError("source: expected at least one layer, got none")
    states = [state_of(one) for one in sources]
    normed = "g_norm.weight" in states[0]
    layers = [[_direction(state, normed)] for state in states]
    return build(Stack("lstm", layers, _OPTIONS if normed else {}), dtype, batch_first=False)


def to_torchaudio(layer: Layer) -> list[dict[str, Tensor]]:
    """The state_dict of each layer, first layer first. Without layer norm the bias is the sum of our two.

    Raises TypeError for what is no RNN, LSTM or GRU, and ValueError for what is no LSTM, two directions,
    proj_size, learn_initial_state, another layer_norm than "joint", another cell_norm than "carried" with it,
    and other options.
    """
    cell, layers, options = describe(layer, tuple(_OPTIONS))
    check_name("layer", cell, ("lstm",))
    check_option("bidirectional", len(layers[0]) > 1, False)
    if options:
        for option, expected in _OPTIONS.items():
            check_option(option, options.get(option), expected)
    states = []
    for (direction,) in layers:
        state = dict(zip(_WEIGHTS, (direction.w_ih, direction.w_hh), strict=True))
        state |= {theirs: direction.own[ours] for ours, theirs in _NORMS.items() if options}
        if not options:
            state[_BIAS] = direction.bias
        states.append({name: weight.clone() for name, weight in state.items()})
    return states


def _direction(state: Mapping[str, Any], normed: bool) -> Direction:
    names = (*_WEIGHTS, *(_NORMS.values() if normed else (_BIAS,)))
    check_names("state_dict", state, names, f"an LSTM with{'' if normed else 'out'} layer norm")
    found = {name: tensor(name, state[name]) for name in names}
    w_ih, w_hh = (found[name] for name in _WEIGHTS)
    hidden = w_hh.size(-1)
    check_shape("x2g.weight", w_ih, 4 * hidden, w_ih.size(-1))
    check_shape("p2g.weight", w_hh, 4 * hidden, hidden)
    for name in names[2:]:
        check_shape(name, found[name], hidden if name.startswith("c_norm") else 4 * hidden)
    own = {ours: found[theirs] for ours, theirs in _NORMS.items() if normed}
    return Direction(w_ih, w_hh, found.get(_BIAS), own=own)
