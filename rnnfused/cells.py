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
    """

    name: str
    mode: str
    gates: tuple[str, ...]
    states: tuple[str, ...]


CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec("rnn_tanh", "RNN_TANH", ("h",), ("h",)),
        CellSpec("rnn_relu", "RNN_RELU", ("h",), ("h",)),
        CellSpec("lstm", "LSTM", ("i", "f", "g", "o"), ("h", "c")),
        CellSpec("gru", "GRU", ("r", "z", "n"), ("h",)),
    )
}
