"""A layer over time, forward and backward: the same for every cell and all options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from rnnfused.reference._cells import Cell, Extras
from rnnfused.reference._checks import (
    check_array,
    check_arrays,
    check_attention,
    check_batch_sizes,
    check_dropout,
    check_parameters,
    check_weights,
    check_x,
    check_zoneout,
)
from rnnfused.reference._maths import Array, Arrays, clamp, layer_norm, layer_norm_backward, require
from rnnfused.reference._options import Options
from rnnfused.reference._recurrence import Recurrence, join, split
from rnnfused.reference._types import Forward, Gradients, Step, Tape, Weights
from rnnfused.reference._variants import find_cell

PLAIN = Options()


# NaN and infinity are meant to run through the equations as they do in torch, which gives no warning.
@np.errstate(over="ignore", under="ignore", invalid="ignore")
def forward(
    cell: str,
    x: ArrayLike,
    states: tuple[ArrayLike, ...],
    weights: Weights,
    *,
    batch_sizes: Sequence[int] | None = None,
    reverse: bool = False,
    rounds: bool = False,
    options: Options = PLAIN,
    parameters: Mapping[str, ArrayLike] | None = None,
    zoneout_masks: tuple[ArrayLike, ...] | None = None,
    recurrent_dropout: ArrayLike | None = None,
    attention: ArrayLike | None = None,
) -> Forward:
    """Runs one layer in one direction.

    cell: a key of `CELLS` or `OWN_CELLS`.
    x: [T, B, I], or [N, I] packed with `batch_sizes`; any float dtype, and everything is computed in it.
    states: (h0 [B, P|H],), for the LSTM (h0 [B, P|H], c0 [B, H]); for others in the order of `Cell.states`.
    weights: see `Weights`; w_hr is for the LSTM only.
    batch_sizes: the number of rows running at each step, positive and never growing, as in PackedSequence.
    reverse: runs every row from its last step to its first; y stays in the order of x.
    rounds: whether rows are `rounded` before they are multiplied with a matrix, as they are with matrices of
        8 bits (which are given as their numbers times their scales). There is no `backward` of that.
    options: see `Options`.
    parameters: what the options bring, by the names that `Options` gives.
    zoneout_masks: for each state, in the shape of y (but for h, H wide): 1 where a unit keeps its previous
        value at that step, 0 where it does not. Without, it keeps its probability's part of it, as in
        evaluation.
    recurrent_dropout: [B, P|H], 0 or 1 / (1 - p): what h is multiplied with, the same at all steps, where it
        enters W_hh. Source: Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent
        neural networks", 2016.
    attention: [T, B] or [N], for AUGRU and AGRU only: the weight of each row at each step.

    Returns y [T, B, P|H] (packed: [N, P|H]), each row's states after the last step that it ran, and the tape.
    Raises ValueError, naming the argument or option, for an unknown cell, options that the cell has not or
    that do not go together, or a shape, dtype or batch size that is wrong.
    """
    spec = find_cell(cell, options)
    x = np.array(x)
    check_x(x, packed=batch_sizes is not None)
    checked = check_weights(cell, spec, weights, options, x)
    sizes = [x.shape[1]] * len(x) if batch_sizes is None else check_batch_sizes(batch_sizes, len(x))
    batch = x.shape[1] if batch_sizes is None else sizes[0]
    hidden = len(checked.w_ih) // len(spec.x_to)
    width = hidden if checked.w_hr is None else len(checked.w_hr)
    state_shapes = ((batch, width), *[(batch, hidden)] * (len(spec.states) - 1))
    current = check_arrays("states", states, state_shapes, x.dtype)
    extras = Extras(options, check_parameters(spec, parameters or {}, options, hidden, x.dtype))
    at_all_steps = [(*x.shape[:-1], shape[1]) for shape in state_shapes]
    zoneout = check_zoneout(spec, zoneout_masks, options, at_all_steps, x.dtype)
    dropout = check_dropout(cell, spec, recurrent_dropout, state_shapes[0], x.dtype)
    weight_of_rows = check_attention(cell, spec, attention, x)

    rows_of_x = x.reshape(sum(sizes), x.shape[-1])
    operand = rounded if rounds else np.asarray
    from_x, norm_of_x = _from_x(operand(rows_of_x), checked, extras)
    recurrence = _recurrence(spec, extras, checked, operand)
    y = np.empty((len(rows_of_x), width), x.dtype)
    steps = []
    for rows in _rows_by_step(sizes, reverse):
        n = rows.stop - rows.start
        prev = tuple(state[:n].copy() for state in current)
        acc = np.zeros((len(spec.accumulators), n, hidden), x.dtype)
        acc[list(spec.x_to)] += split(from_x[rows], len(spec.x_to))
        if weight_of_rows is not None:
            acc[-1] = weight_of_rows[rows, None]
        acc, recurred = recurrence.forward(acc, _dropped(prev[0], dropout))
        new, gates = spec.forward(acc, prev, extras)
        steps.append(Step(rows, prev, new, gates, recurred))
        following = (new[0] if checked.w_hr is None else operand(new[0]) @ checked.w_hr.T, *new[1:])
        if zoneout is not None:
            following = zoneout.forward(rows, prev, following)
        y[rows] = following[0]
        # Rows beyond n have ended, or in reverse have not begun: their states stay.
        for state, value in zip(current, following, strict=True):
            state[:n] = value

    y = y.reshape(*x.shape[:-1], width)
    tape = Tape(cell, rows_of_x, y.shape, state_shapes, checked, steps, extras, norm_of_x, zoneout, dropout)
    return Forward(y, current, tape)


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def backward(cell: str, tape: Tape, dy: ArrayLike, dstates: tuple[ArrayLike, ...]) -> Gradients:
    """Gradients of sum(y * dy) + sum(states * dstates) over all states, by backpropagation through time.

    cell: the cell that `forward` was called with.
    tape: from `forward`.
    dy: [T, B, P|H] or [N, P|H], the shape of y.
    dstates: the gradients of the final states, in their shapes: (dh [B, P|H],), for the LSTM also dc [B, H].

    Returns the gradients by name, in the dtype of x.
    Raises ValueError, naming the argument, for a cell that is not the tape's or a shape that is wrong.
    """
    options, parameters = tape.extras
    spec = find_cell(cell, PLAIN if cell != tape.cell else options)
    require(cell == tape.cell, "cell", f"{tape.cell!r}, which made the tape", repr(cell))
    w_ih, w_hh, b_ih, b_hh, w_hr = tape.weights
    hidden = len(w_ih) // len(spec.x_to)
    dy = check_array("dy", dy, tape.y_shape, tape.x.dtype).reshape(len(tape.x), tape.y_shape[-1])
    current = check_arrays("dstates", dstates, tape.state_shapes, tape.x.dtype)

    recurrence = _recurrence(spec, tape.extras, tape.weights, np.asarray)
    from_x = np.empty((len(tape.x), len(w_ih)), tape.x.dtype)
    from_h = np.empty((len(tape.x), len(spec.h_to) * hidden), tape.x.dtype)
    dw_hh = np.zeros_like(recurrence.w_hh)
    dw_hr = None if w_hr is None else np.zeros_like(w_hr)
    dattention = np.empty(len(tape.x), tape.x.dtype) if spec.attends else None
    dparameters = {name: np.zeros_like(value) for name, value in parameters.items()}
    for rows, prev, new, gates, recurred in reversed(tape.steps):
        n = rows.stop - rows.start
        dnew = (current[0][:n] + dy[rows], *(state[:n] for state in current[1:]))
        kept: tuple[Array | float, ...] = (0.0,) * len(dnew)
        if tape.zoneout is not None:
            kept, dnew = tape.zoneout.backward(rows, dnew)
        dh = dnew[0]
        if w_hr is not None and dw_hr is not None:
            dw_hr += dh.T @ new[0]
            dh = dh @ w_hr
        dacc, dprev, dunit = spec.backward(gates, prev, new, (dh, *dnew[1:]), tape.extras)
        for name, value in dunit.items():
            dparameters[name] += value
        h = _dropped(prev[0], tape.recurrent_dropout)
        from_acc, dproduct, dh = recurrence.backward(np.stack(dacc), h, recurred, dw_hh, dparameters)
        from_x[rows], from_h[rows] = join(from_acc[list(spec.x_to)]), join(dproduct)
        if dattention is not None:
            dattention[rows] = from_acc[-1].sum(axis=1)
        through_w_hh: tuple[Array | float, ...] = (
            _dropped(dh, tape.recurrent_dropout),
            *(0.0,) * (len(dprev) - 1),
        )
        for state, parts in zip(current, zip(dprev, through_w_hh, kept, strict=True), strict=True):
            state[:n] = clamp(parts[0] + parts[1] + parts[2], options.grad_clip)

    if tape.norm_of_x:
        from_x, dparameters["norm_ih_weight"], dparameters["norm_ih_bias"] = layer_norm_backward(
            from_x, tape.norm_of_x, parameters["norm_ih_weight"]
        )
    return Gradients(
        x=(from_x @ w_ih).reshape(*tape.y_shape[:-1], w_ih.shape[1]),
        states=current,
        w_ih=from_x.T @ tape.x,
        w_hh=None if w_hh is None else dw_hh.reshape(w_hh.shape),
        b_ih=None if b_ih is None else from_x.sum(axis=0),
        b_hh=None if b_hh is None else from_h.sum(axis=0),
        w_hr=dw_hr,
        parameters=dparameters,
        attention=None if dattention is None else dattention.reshape(tape.y_shape[:-1]),
    )


def rounded(rows: Array) -> Array:
    """Each row [n, K] at the nearest of 127 steps on each side of zero, the last of which is its largest
    number; NaN if it is not finite.
    """
    scale = np.abs(rows).max(axis=1, keepdims=True, initial=0) / 127
    steps = np.rint(rows / np.where(scale == 0, 1, scale))
    nearest: Array = np.where(np.isfinite(scale), steps * scale, np.nan)
    return nearest


def _rows_by_step(sizes: list[int], reverse: bool) -> list[slice]:
    """The packed rows of each step, in the order in which the steps run."""
    stops = np.cumsum(sizes, dtype=int).tolist()
    rows = [slice(stop - n, stop) for stop, n in zip(stops, sizes, strict=True)]
    return rows[::-1] if reverse else rows


def _from_x(rows: Array, weights: Weights, extras: Extras) -> tuple[Array, Arrays]:
    """What x gives at all steps [N, G*H], outside the recurrence, and the tape of its norm."""
    product = rows @ weights.w_ih.T
    if weights.b_ih is not None:
        product = product + weights.b_ih
    if "norm_ih_weight" not in extras.parameters:
        return product, ()
    return layer_norm(product, extras.parameters["norm_ih_weight"], extras.parameters["norm_ih_bias"])


def _recurrence(
    spec: Cell, extras: Extras, weights: Weights, operand: Callable[[Array], Array]
) -> Recurrence:
    """With W_hh in the one form of all, [k, G, H/k, (P|H)/k]: a vector [H] is H heads of a unit each."""
    gates, w_hh = len(spec.h_to), weights.w_hh
    if w_hh is None:
        hidden = len(weights.w_ih) // len(spec.x_to)
        by_head = np.empty((1, 0, hidden, hidden), weights.w_ih.dtype)
    elif spec.elementwise:
        by_head = w_hh.reshape(len(w_hh), 1, 1, 1)
    else:
        units, width = w_hh.shape[-2] // gates, w_hh.shape[-1]
        by_head = w_hh.reshape(extras.options.num_heads, gates, units, width)
    return Recurrence(spec, extras, by_head, weights.b_hh, operand)


def _dropped(h: Array, factors: Array | None) -> Array:
    """h, or its gradient, of the rows that are running."""
    return h if factors is None else h * factors[: len(h)]
