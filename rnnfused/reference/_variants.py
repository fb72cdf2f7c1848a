"""Which cell a name and options come to."""

from __future__ import annotations

from dataclasses import replace

from rnnfused.reference import _cells
from rnnfused.reference._cells import CELLS, Cell, Phase
from rnnfused.reference._maths import require
from rnnfused.reference._options import Options
from rnnfused.reference._own_cells import OWN_CELLS

_EVERY_CELL = frozenset({"zoneout", "grad_clip"})


def find_cell(name: str, options: Options) -> Cell:
    """The cell of that name as the options shape it."""
    cells = CELLS | OWN_CELLS
    require(name in cells, "cell", f"one of {', '.join(cells)}", repr(name))
    cell = cells[name]
    _check_options(name, cell, options)
    if options.coupled_gates:
        return replace(cell, accumulators=("i", "g", "o"), x_to=(0, 1, 2), h_to=(0, 1, 2))
    if not options.reset_after:
        return replace(
            cell,
            accumulators=("r", "z", "n"),
            h_to=(0, 1, 2),
            forward=_cells.gru_reset_before_forward,
            backward=_cells.gru_reset_before_backward,
            phases=(Phase((0, 1)), Phase((2,), reset=0)),
        )
    if name == "gru" and options.layer_norm == "joint":
        return replace(
            cell,
            accumulators=("r", "n", "u"),
            h_to=(0, 1, 2),
            forward=_cells.gru_joint_forward,
            backward=_cells.gru_joint_backward,
        )
    return cell


def _check_options(name: str, cell: Cell, options: Options) -> None:
    """That the cell has each of the options, and that they go together."""
    for option, value in options.asked().items():
        allowed = option in cell.takes | _EVERY_CELL
        require(allowed, option, f"nothing for cell {name!r}, which has no such option", repr(value))
    norms = (None, *cell.norms)
    require(options.layer_norm in norms, "layer_norm", f"one of {norms}", repr(options.layer_norm))
    cell_norms = (None, "carried", "output")
    require(options.cell_norm in cell_norms, "cell_norm", f"one of {cell_norms}", repr(options.cell_norm))
    alone = options.cell_norm is None or options.layer_norm is not None
    require(alone, "cell_norm", "a layer_norm beside it", "none")
    # Each norm is over the products of all gates, and that of n is not there before r is known.
    one_product = options.reset_after or options.layer_norm is None
    require(one_product, "layer_norm", "None with reset_after=False", repr(options.layer_norm))
    joint = options.layer_norm == "joint"
    require(
        joint or not options.update_bias,
        "update_bias",
        "layer_norm='joint' beside it",
        repr(options.layer_norm),
    )
    for clip in ("cell_clip", "gate_clip", "grad_clip"):
        limit = getattr(options, clip)
        require(limit is None or limit > 0, clip, "a number above 0", limit)
    keeps = options.keeps(len(cell.states))
    right = len(keeps) == len(cell.states) and all(0 <= p <= 1 for p in keeps)
    require(right, "zoneout", f"a probability or one for each of {', '.join(cell.states)}", options.zoneout)
    one_memory = name != "slstm" or not any(keeps[1:])
    require(one_memory, "zoneout", "0 for c, n and m, which mean something together only", options.zoneout)
    require(options.num_heads >= 1, "num_heads", "at least 1", options.num_heads)
