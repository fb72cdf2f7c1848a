"""Every cell's forward and hand-written backward in NumPy: what the kernels are tested against.

One layer, one direction. A `Cell` holds the gate maths of a single step; `forward` and `backward` carry it
over time (backpropagation through time) and are the same for every cell, so a new cell is one entry in
`CELLS`. The code follows the equations; speed is not its purpose.

Shapes: T steps, B rows, N packed rows in all, I inputs, H hidden units, P projected units, G gates,
A accumulators; `P|H` is P if the layer has a projection, otherwise H. Gates lie in torch's order:
LSTM i, f, g, o; GRU r, z, n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    *("CELLS", "Cell", "Forward", "Gradients", "Step", "Tape", "Weights"),
    *("backward", "forward", "rounded"),
]

Array = NDArray[Any]
Arrays = tuple[Array, ...]


@dataclass(frozen=True)
class Cell:
    """One step of a cell, between the products with the weights and the next state.

    accumulators: the A sums the step starts from, by name.
    states: the states, by name; the first one is h, the output.
    x_to, h_to: for each gate's rows of w_ih and b_ih (w_hh and b_hh), the accumulator they add to.
    projects: whether h may be projected: in torch, the LSTM's only.
    forward: (accumulators [A, n, H], previous states) -> (next states before projection, tape).
    backward: (tape, previous states, next states before projection, their gradients) -> (gradients of the
        accumulators, gradients of the previous states). The second leaves out what reaches h through w_hh,
        and is 0.0 if nothing else does.
    """

    accumulators: tuple[str, ...]
    states: tuple[str, ...]
    x_to: tuple[int, ...]
    h_to: tuple[int, ...]
    projects: bool
    forward: Callable[[Array, Arrays], tuple[Arrays, Arrays]]
    backward: Callable[[Arrays, Arrays, Arrays, Arrays], tuple[Arrays, tuple[Array | float, ...]]]


class Weights(NamedTuple):
    """The weights of one layer and direction, in torch's shapes; an absent bias counts as zero."""

    w_ih: Array  # [G*H, I]
    w_hh: Array  # [G*H, P|H]
    b_ih: Array | None = None  # [G*H]
    b_hh: Array | None = None  # [G*H]
    w_hr: Array | None = None  # [P, H]


class Step(NamedTuple):
    """What backward needs of one step; n is the number of rows that are running."""

    rows: slice  # of the N packed rows
    prev: Arrays  # each [n, P|H] for h, [n, H] otherwise
    new: Arrays  # each [n, H]: h is not projected yet
    gates: Arrays  # the cell's tape, each [n, H]


class Tape(NamedTuple):
    """What backward needs of a whole layer; made by `forward` and owned by it (nothing is aliased)."""

    cell: str
    x: Array  # [N, I]
    y_shape: tuple[int, ...]  # [T, B, P|H] or [N, P|H]
    state_shapes: tuple[tuple[int, ...], ...]
    weights: Weights
    steps: list[Step]  # in the order they ran


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
    w_hh: Array
    b_ih: Array | None
    b_hh: Array | None
    w_hr: Array | None


def _sigmoid(x: Array) -> Array:
    # Neither exponential can overflow, and the numerator keeps full relative accuracy far below zero.
    y: Array = np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))
    return y


def _sigmoid_slope(y: Array) -> Array:
    slope: Array = y * (1 - y)
    return slope


def _tanh_slope(y: Array) -> Array:
    # 1 - y is exact near saturation, where 1 - y * y would keep only the rounding error of the square.
    slope: Array = (1 - y) * (1 + y)
    return slope


def _rnn_tanh_forward(acc: Array, prev: Arrays) -> tuple[Arrays, Arrays]:
    """h' = tanh(a), where a = W_ih x + b_ih + W_hh h + b_hh.

    Source: Elman, "Finding structure in time", 1990, with the tanh and the two biases of torch.nn.RNN.
    """
    (a,) = acc
    return (np.tanh(a),), ()


def _rnn_tanh_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays) -> tuple[Arrays, tuple[float]]:
    """da = dh' (1 - h'^2)."""
    (h,), (dh,) = new, dnew
    return (dh * _tanh_slope(h),), (0.0,)


def _rnn_relu_forward(acc: Array, prev: Arrays) -> tuple[Arrays, Arrays]:
    """h' = max(a, 0), where a = W_ih x + b_ih + W_hh h + b_hh; NaN stays NaN.

    Source: Elman 1990, with the relu of torch.nn.RNN.
    """
    (a,) = acc
    return (np.maximum(a, 0),), ()


def _rnn_relu_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays) -> tuple[Arrays, tuple[float]]:
    """da = dh' where h' > 0 or is NaN (as in torch), 0 elsewhere, also at a = 0."""
    (h,), (dh,) = new, dnew
    return (np.where(h <= 0, 0, dh),), (0.0,)


def _lstm_forward(acc: Array, prev: Arrays) -> tuple[Arrays, Arrays]:
    """c' = f c + i g and h' = o tanh(c').

    Each of i, f, o is sigmoid(a) and g is tanh(a), where a = W_ih x + b_ih + W_hh h + b_hh with that gate's
    rows. With a projection, the layer's h' is W_hr (o tanh(c')).

    Source: Hochreiter and Schmidhuber, "Long short-term memory", 1997; f from Gers, Schmidhuber and Cummins,
    "Learning to forget", 2000; the projection from Sak, Senior and Beaufays, "Long short-term memory
    recurrent neural network architectures for large scale acoustic modeling", 2014. No peepholes, as in
    torch.nn.LSTM.
    """
    _, c_prev = prev
    i, f, g, o = _sigmoid(acc[0]), _sigmoid(acc[1]), np.tanh(acc[2]), _sigmoid(acc[3])
    c = f * c_prev + i * g
    return (o * np.tanh(c), c), (i, f, g, o)


def _lstm_backward(
    tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays
) -> tuple[Arrays, tuple[float, Array]]:
    """With ds = dc' + dh' o (1 - tanh(c')^2), all that reaches c': di = ds g, df = ds c, dg = ds i.

    And do = dh' tanh(c'), dc = ds f. Each gate's gradient is then multiplied by the slope of its function.
    """
    i, f, g, o = tape
    (_, c_prev), (_, c), (dh, dc) = prev, new, dnew
    tanh_c = np.tanh(c)
    ds = dc + dh * o * _tanh_slope(tanh_c)
    dacc = (
        ds * g * _sigmoid_slope(i),
        ds * c_prev * _sigmoid_slope(f),
        ds * i * _tanh_slope(g),
        dh * tanh_c * _sigmoid_slope(o),
    )
    return dacc, (0.0, ds * f)


def _gru_forward(acc: Array, prev: Arrays) -> tuple[Arrays, Arrays]:
    """h' = (1 - z) n + z h, where n = tanh(n_x + r n_h), n_x = W_in x + b_in, n_h = W_hn h + b_hn.

    Both r and z are sigmoid(a), where a = W_ih x + b_ih + W_hh h + b_hh with that gate's rows.

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", 2014, except that r is applied after the product with W_hn, as the torch.nn.GRU
    documentation states.
    """
    (h,) = prev
    r, z = _sigmoid(acc[0]), _sigmoid(acc[1])
    n_x, n_h = acc[2:]
    n = np.tanh(n_x + r * n_h)
    return ((1 - z) * n + z * h,), (r, z, n, n_h)


def _gru_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays) -> tuple[Arrays, tuple[Array]]:
    """With ds = dh' (1 - z) (1 - n^2), all that reaches n_x: dn_x = ds, dn_h = ds r, dr = ds n_h.

    And dz = dh' (h - n), dh = dh' z. Then dr and dz are multiplied by the slopes of their sigmoids.
    """
    r, z, n, n_h = tape
    (h,), (dh,) = prev, dnew
    ds = dh * (1 - z) * _tanh_slope(n)
    dacc = (ds * n_h * _sigmoid_slope(r), dh * (h - n) * _sigmoid_slope(z), ds, ds * r)
    return dacc, (dh * z,)


CELLS: dict[str, Cell] = {
    "rnn_tanh": Cell(("a",), ("h",), (0,), (0,), False, _rnn_tanh_forward, _rnn_tanh_backward),
    "rnn_relu": Cell(("a",), ("h",), (0,), (0,), False, _rnn_relu_forward, _rnn_relu_backward),
    "lstm": Cell(
        ("i", "f", "g", "o"), ("h", "c"), (0, 1, 2, 3), (0, 1, 2, 3), True, _lstm_forward, _lstm_backward
    ),
    "gru": Cell(("r", "z", "n_x", "n_h"), ("h",), (0, 1, 2), (0, 1, 3), False, _gru_forward, _gru_backward),
}


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
) -> Forward:
    """Runs one layer in one direction.

    cell: a key of `CELLS`.
    x: [T, B, I], or [N, I] packed with `batch_sizes`; any float dtype, and everything is computed in it.
    states: (h0 [B, P|H],), for the LSTM (h0 [B, P|H], c0 [B, H]).
    weights: see `Weights`; w_hr is for the LSTM only.
    batch_sizes: the number of rows running at each step, positive and never growing, as in PackedSequence.
    reverse: runs every row from its last step to its first; y stays in the order of x.
    rounds: whether rows are `rounded` before they are multiplied with a matrix, as they are with matrices of
        8 bits (which are given as their numbers times their scales). There is no `backward` of that.

    Returns y [T, B, P|H] (packed: [N, P|H]), each row's states after the last step that it ran, and the tape.
    Raises ValueError, naming the argument, for an unknown cell or a shape, dtype or batch size that is wrong.
    """
    spec = _find_cell(cell)
    x = np.array(x)
    _check_x(x, packed=batch_sizes is not None)
    checked = _check_weights(cell, spec, weights, x)
    sizes = [x.shape[1]] * len(x) if batch_sizes is None else _check_batch_sizes(batch_sizes, len(x))
    batch = x.shape[1] if batch_sizes is None else sizes[0]
    hidden, width = len(checked.w_ih) // len(spec.x_to), checked.w_hh.shape[1]
    state_shapes = ((batch, width), *[(batch, hidden)] * (len(spec.states) - 1))
    current = _check_states("states", states, state_shapes, x.dtype)

    rows_of_x = x.reshape(sum(sizes), x.shape[-1])
    operand = rounded if rounds else np.asarray
    from_x = _product(operand(rows_of_x), checked.w_ih, checked.b_ih)
    y = np.empty((len(rows_of_x), width), x.dtype)
    steps = []
    for rows in _rows_by_step(sizes, reverse):
        n = rows.stop - rows.start
        prev = tuple(state[:n].copy() for state in current)
        acc = np.zeros((len(spec.accumulators), n, hidden), x.dtype)
        acc[list(spec.x_to)] += _split(from_x[rows], len(spec.x_to))
        acc[list(spec.h_to)] += _split(_product(operand(prev[0]), checked.w_hh, checked.b_hh), len(spec.h_to))
        new, gates = spec.forward(acc, prev)
        steps.append(Step(rows, prev, new, gates))
        y[rows] = new[0] if checked.w_hr is None else operand(new[0]) @ checked.w_hr.T
        # Rows beyond n have ended, or in reverse have not begun: their states stay.
        for state, value in zip(current, (y[rows], *new[1:]), strict=True):
            state[:n] = value

    y = y.reshape(*x.shape[:-1], width)
    return Forward(y, current, Tape(cell, rows_of_x, y.shape, state_shapes, checked, steps))


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
    spec = _find_cell(cell)
    _require(cell == tape.cell, "cell", f"{tape.cell!r}, which made the tape", repr(cell))
    w_ih, w_hh, b_ih, b_hh, w_hr = tape.weights
    dy = _check_array("dy", dy, tape.y_shape, tape.x.dtype).reshape(len(tape.x), w_hh.shape[1])
    current = _check_states("dstates", dstates, tape.state_shapes, tape.x.dtype)

    from_x = np.empty((len(tape.x), len(w_ih)), tape.x.dtype)
    from_h = np.empty((len(tape.x), len(w_hh)), tape.x.dtype)
    dw_hh = np.zeros_like(w_hh)
    dw_hr = None if w_hr is None else np.zeros_like(w_hr)
    for rows, prev, new, gates in reversed(tape.steps):
        n = rows.stop - rows.start
        dh = current[0][:n] + dy[rows]
        if w_hr is not None and dw_hr is not None:
            dw_hr += dh.T @ new[0]
            dh = dh @ w_hr
        dacc, dprev = spec.backward(gates, prev, new, (dh, *(state[:n] for state in current[1:])))
        from_x[rows] = _join(dacc, spec.x_to)
        from_h[rows] = _join(dacc, spec.h_to)
        dw_hh += from_h[rows].T @ prev[0]
        for state, value in zip(current, (dprev[0] + from_h[rows] @ w_hh, *dprev[1:]), strict=True):
            state[:n] = value

    return Gradients(
        x=(from_x @ w_ih).reshape(*tape.y_shape[:-1], w_ih.shape[1]),
        states=current,
        w_ih=from_x.T @ tape.x,
        w_hh=dw_hh,
        b_ih=None if b_ih is None else from_x.sum(axis=0),
        b_hh=None if b_hh is None else from_h.sum(axis=0),
        w_hr=dw_hr,
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


def _product(rows: Array, weight: Array, bias: Array | None) -> Array:
    product: Array = rows @ weight.T
    return product if bias is None else product + bias


def _split(product: Array, gates: int) -> Array:
    """[n, G*H] -> [G, n, H]."""
    return np.moveaxis(product.reshape(len(product), gates, product.shape[1] // gates), 1, 0)


def _join(dacc: Arrays, order: tuple[int, ...]) -> Array:
    """The accumulators named by `order`, each [n, H] -> [n, G*H]."""
    return np.concatenate([dacc[index] for index in order], axis=1)


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def _find_cell(cell: str) -> Cell:
    _require(cell in CELLS, "cell", f"one of {', '.join(CELLS)}", repr(cell))
    return CELLS[cell]


def _check_x(x: Array, packed: bool) -> None:
    _require(bool(np.issubdtype(x.dtype, np.floating)), "x", "a float dtype", x.dtype)
    expected = "[N, I], as batch_sizes is given" if packed else "[T, B, I], as batch_sizes is not given"
    _require(x.ndim == (2 if packed else 3), "x", f"shape {expected}", list(x.shape))


def _check_batch_sizes(batch_sizes: Sequence[int], packed_rows: int) -> list[int]:
    sizes = [int(size) for size in batch_sizes]
    falling = bool(sizes) and sizes[-1] > 0 and sizes == sorted(sizes, reverse=True)
    _require(falling, "batch_sizes", "at least one, all positive and never growing", sizes)
    _require(sum(sizes) == packed_rows, "batch_sizes", f"a sum of {packed_rows}, the rows of x", sum(sizes))
    return sizes


def _check_weights(cell: str, spec: Cell, weights: Weights, x: Array) -> Weights:
    """The weights in the dtype of x; w_ih states H, and w_hr, where there is one, P."""
    _require(weights.w_hr is None or spec.projects, "weights.w_hr", f"None for cell {cell!r}", "an array")
    gates, hidden = len(spec.x_to), _rows("weights.w_ih", weights.w_ih) // len(spec.x_to)
    width = hidden if weights.w_hr is None else _rows("weights.w_hr", weights.w_hr)

    def check(name: str, weight: Array, *shape: int) -> Array:
        return _check_array(f"weights.{name}", weight, shape, x.dtype)

    return Weights(
        w_ih=check("w_ih", weights.w_ih, gates * hidden, x.shape[-1]),
        w_hh=check("w_hh", weights.w_hh, gates * hidden, width),
        b_ih=None if weights.b_ih is None else check("b_ih", weights.b_ih, gates * hidden),
        b_hh=None if weights.b_hh is None else check("b_hh", weights.b_hh, gates * hidden),
        w_hr=None if weights.w_hr is None else check("w_hr", weights.w_hr, width, hidden),
    )


def _rows(name: str, weight: Array) -> int:
    shape = np.shape(weight)
    _require(len(shape) == 2, name, "two dimensions", f"shape {list(shape)}")
    rows: int = shape[0]
    return rows


def _check_states(
    name: str, states: tuple[ArrayLike, ...], shapes: tuple[tuple[int, ...], ...], dtype: np.dtype[Any]
) -> Arrays:
    _require(len(states) == len(shapes), name, f"{len(shapes)} arrays", len(states))
    named = zip(states, shapes, strict=True)
    return tuple(_check_array(f"{name}[{i}]", state, shape, dtype) for i, (state, shape) in enumerate(named))


def _check_array(name: str, value: ArrayLike, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A copy of the value in the dtype, so that neither the caller nor a tape sees later changes."""
    _require(np.shape(value) == shape, name, f"shape {list(shape)}", list(np.shape(value)))
    return np.array(value, dtype)
