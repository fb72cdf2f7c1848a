"""Every cell's forward and hand-written backward in NumPy: what the kernels are tested against.

One layer, one direction. A `Cell` holds the gate maths of a single step; `forward` and `backward` carry it
over time (backpropagation through time) and are the same for every cell and all `Options`, so a new cell is
one entry in `CELLS`, torch.nn's, or in `OWN_CELLS`, those that it has not. The code follows the equations;
speed is not its purpose.

Shapes: T steps, B rows, N packed rows in all, I inputs, H hidden units, P projected units, G gates,
A accumulators; `P|H` is P if the layer has a projection, otherwise H. Gates lie in torch's order:
LSTM i, f, g, o; GRU r, z, n. Those of the cells that torch.nn has not lie in the order of their accumulators.
"""

from __future__ import annotations

from rnnfused.reference._cells import CELLS, Cell, Extras, Phase
from rnnfused.reference._options import Options
from rnnfused.reference._own_cells import OWN_CELLS
from rnnfused.reference._recurrence import Recurred
from rnnfused.reference._types import Forward, Gradients, Step, Tape, Weights
from rnnfused.reference._walk import backward, forward, rounded
from rnnfused.reference._zoneout import Zoneout

__all__ = [
    "CELLS",
    "OWN_CELLS",
    "Cell",
    "Extras",
    "Forward",
    "Gradients",
    "Options",
    "Phase",
    "Recurred",
    "Step",
    "Tape",
    "Weights",
    "Zoneout",
    "backward",
    "forward",
    "rounded",
]
