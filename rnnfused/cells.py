"""What Python knows of each cell: names, order of the gates, states. The maths is in csrc/cells/."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CELLS", "CellSpec"]


@dataclass(frozen=True)
class CellSpec:
    """One cell.

    name: the registry's name, the same in C++ (csrc/cells/all.h) and NumPy (reference/).
    mode: torch.nn.RNNBase's name for it.
    gates: in torch's order, the order of the row blocks of weight_ih and weight_hh.
    states: carried from step to step; the first is the output.
    takes: the options that its equations have, beside zoneout, recurrent_dropout and grad_clip, which every
        cell has (docs/cells.md).
    norms: the values that layer_norm can have.
    """

    name: str
    mode: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    takes: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()


_EACH = ("layer_norm", "gate_clip", "num_heads")
_LSTM = (*_EACH, "peephole", "coupled_gates", "cell_norm", "cell_clip")
_GRU = (*_EACH, "reset_after", "update_bias")

CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec("rnn_tanh", "RNN_TANH", ("h",), ("h",), _EACH, ("separate",)),
        CellSpec("rnn_relu", "RNN_RELU", ("h",), ("h",), _EACH, ("separate",)),
        CellSpec("lstm", "LSTM", ("i", "f", "g", "o"), ("h", "c"), _LSTM, ("separate", "joint")),
        CellSpec("gru", "GRU", ("r", "z", "n"), ("h",), _GRU, ("separate", "joint")),
    )
}
