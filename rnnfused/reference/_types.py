"""What goes into `forward` and `backward`, between them, and out of them."""

from __future__ import annotations

from typing import NamedTuple

from rnnfused.reference._cells import Extras
from rnnfused.reference._maths import Array, Arrays
from rnnfused.reference._recurrence import Recurred
from rnnfused.reference._zoneout import Zoneout


class Weights(NamedTuple):
    """The weights of one layer and direction, in torch's shapes; an absent bias counts as zero."""

    w_ih: Array  # [G*H, I]
    w_hh: Array | None  # [G*H, P|H]; with k heads [k, G*H/k, (P|H)/k]; IndRNN [H]; MinGRU and MinLSTM None
    b_ih: Array | None = None  # [G*H]
    b_hh: Array | None = None  # [G*H]
    w_hr: Array | None = None  # [P, H]


class Step(NamedTuple):
    """What backward needs of one step; n is the number of rows that are running."""

    rows: slice  # of the N packed rows
    prev: Arrays  # each [n, P|H] for h, [n, H] otherwise
    new: Arrays  # each [n, H]: h is not projected yet, and no unit has kept its previous value
    gates: Arrays  # the cell's tape, [n, H] each or for each gate
    recurred: Recurred


class Tape(NamedTuple):
    """What backward needs of a whole layer; made by `forward` and owned by it (nothing is aliased)."""

    cell: str
    x: Array  # [N, I]
    y_shape: tuple[int, ...]  # [T, B, P|H] or [N, P|H]
    state_shapes: tuple[tuple[int, ...], ...]
    weights: Weights
    steps: list[Step]  # in the order they ran
    extras: Extras
    norm_of_x: Arrays
    zoneout: Zoneout | None
    recurrent_dropout: Array | None  # [B, P|H]


class Forward(NamedTuple):
    """The result of `forward`."""

    y: Array  # [T, B, P|H] or [N, P|H]
    states: Arrays  # each [B, P|H] for h, [B, H] otherwise
    tape: Tape


class Gradients(NamedTuple):
    """The result of `backward`: each in the shape of what it belongs to, None for an absent weight."""

    x: Array
    states: Arrays
    w_ih: Array
    w_hh: Array | None
    b_ih: Array | None
    b_hh: Array | None
    w_hr: Array | None
    parameters: dict[str, Array]  # those that the options bring, by name
    attention: Array | None
