"""What Python knows of each cell: names, order of the gates, states. The maths is in csrc/cells/."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CELLS", "EVERY_CELL", "OWN_CELLS", "CellSpec"]


@dataclass(frozen=True)
class CellSpec:
    """One cell.

    name: the registry's name, the same in C++ (csrc/cells/all.h, csrc/torch/options.cpp) and NumPy
        (reference/).
    mode: torch.nn.RNNBase's name for it, or what stands in its place.
    gates: in torch's order, the order of the row blocks of weight_ih and weight_hh.
    states: carried from step to step; the first is the output.
    takes: the options that its equations have, beside zoneout, grad_clip and, where h enters the gates,
        recurrent_dropout, which every cell has (docs/cells.md).
    norms: the values that layer_norm can have.
    recurrent: what W_hh is: "matrix" [G H, P], "vector" [H], or None, where no gate sees h.
    biases: their names.
    attends: whether the input's last feature is the weight of its row, which W_ih has no column for.
    memory: the vectors of H units, side by side, that make up the second state where it is more than one;
        they mean something together only, and no unit of theirs is zoned out.
    """

    name: str
    mode: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    takes: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    recurrent: str | None = "matrix"
    biases: tuple[str, ...] = ("bias_ih", "bias_hh")
    attends: bool = False
    memory: tuple[str, ...] = ()

    @property
    def matrices(self) -> int:
        """How many of W_ih and W_hh there are; a vector counts."""
        return 1 if self.recurrent is None else 2


_EACH = ("layer_norm", "gate_clip", "num_heads")
_LSTM = (*_EACH, "peephole", "coupled_gates", "cell_norm", "cell_clip")
_GRU = (*_EACH, "reset_after", "update_bias")
_ATTENDING = ("gate_clip", "num_heads")
_ONE = ("bias_ih",)

CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec("rnn_tanh", "RNN_TANH", ("h",), ("h",), _EACH, ("separate",)),
        CellSpec("rnn_relu", "RNN_RELU", ("h",), ("h",), _EACH, ("separate",)),
        CellSpec("lstm", "LSTM", ("i", "f", "g", "o"), ("h", "c"), _LSTM, ("separate", "joint")),
        CellSpec("gru", "GRU", ("r", "z", "n"), ("h",), _GRU, ("separate", "joint")),
    )
}
"""torch.nn's."""

OWN_CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec("indrnn", "INDRNN", ("h",), ("h",), ("gate_clip",), recurrent="vector", biases=_ONE),
        CellSpec("ligru", "LIGRU", ("z", "n"), ("h",), _EACH, ("input", "separate")),
        CellSpec("mingru", "MINGRU", ("z", "n"), ("h",), recurrent=None, biases=_ONE),
        CellSpec("minlstm", "MINLSTM", ("f", "i", "n"), ("h",), recurrent=None, biases=_ONE),
        CellSpec("augru", "AUGRU", ("r", "z", "n"), ("h",), _ATTENDING, attends=True),
        CellSpec("agru", "AGRU", ("r", "n"), ("h",), _ATTENDING, attends=True),
        CellSpec(
            *("slstm", "SLSTM", ("i", "f", "z", "o"), ("h", "memory"), ("num_heads",)),
            memory=("c", "n", "m"),
        ),
    )
}
"""Those that torch.nn has not."""

EVERY_CELL = CELLS | OWN_CELLS
