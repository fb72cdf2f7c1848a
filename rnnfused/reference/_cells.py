"""The gate maths of the cells that have kernels, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rnnfused.reference._maths import (
    Array,
    Arrays,
    clamp,
    clamp_backward,
    layer_norm,
    layer_norm_backward,
    sigmoid,
    sigmoid_slope,
    tanh_slope,
)
from rnnfused.reference._options import Options

Gradients = tuple[Arrays, tuple[Array | float, ...], dict[str, Array]]


class Extras(NamedTuple):
    """What a step's maths may read beside accumulators and states."""

    options: Options
    parameters: dict[str, Array]  # those that the options bring


class Phase(NamedTuple):
    """One product with W_hh within a step."""

    gates: tuple[int, ...]  # whose rows of w_hh take part
    reset: int | None = None  # the accumulator whose sigmoid multiplies h before the product


@dataclass(frozen=True)
class Cell:
    """One step of a cell, between the products with the weights and the next state.

    accumulators: the A sums the step starts from, by name.
    states: the states, by name; the first one is h, the output.
    x_to, h_to: for each gate's rows of w_ih and b_ih (w_hh and b_hh), the accumulator they add to.
    projects: whether h may be projected: in torch, the LSTM's only.
    forward: (accumulators [A, n, H], previous states, extras) -> (next states before projection, tape).
    backward: (tape, previous states, next states before projection, their gradients, extras) -> (gradients of
        the accumulators, gradients of the previous states, gradients of parameters by name). The second
        leaves out what reaches h through w_hh, and is 0.0 if nothing else does.
    takes: the options that the cell's maths has, beside those that every cell has.
    norms: the values of layer_norm that it can have.
    phases: the products with W_hh in order, if they are not one of all gates.
    elementwise: whether W_hh is a vector [H], multiplied with h unit by unit.
    attends: whether the last accumulator is the weight that each row is given at each step.
    """

    accumulators: tuple[str, ...]
    states: tuple[str, ...]
    x_to: tuple[int, ...]
    h_to: tuple[int, ...]
    projects: bool
    forward: Callable[[Array, Arrays, Extras], tuple[Arrays, Arrays]]
    backward: Callable[[Arrays, Arrays, Arrays, Arrays, Extras], Gradients]
    takes: frozenset[str] = frozenset()
    norms: tuple[str, ...] = ()
    phases: tuple[Phase, ...] | None = None
    elementwise: bool = False
    attends: bool = False

    def products(self) -> tuple[Phase, ...]:
        return (Phase(tuple(range(len(self.h_to)))),) if self.phases is None else self.phases


def _rnn_tanh_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """h' = tanh(a), where a = W_ih x + b_ih + W_hh h + b_hh.

    Source: Elman, "Finding structure in time", 1990, with the tanh and the two biases of torch.nn.RNN.
    """
    (a,) = acc
    return (np.tanh(clamp(a, extras.options.gate_clip)),), (a,)


def _rnn_tanh_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras) -> Gradients:
    """da = dh' (1 - h'^2)."""
    (a,), (h,), (dh,) = tape, new, dnew
    return (clamp_backward(dh * tanh_slope(h), a, extras.options.gate_clip),), (0.0,), {}


def rnn_relu_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """h' = max(a, 0), where a = W_ih x + b_ih + W_hh h + b_hh; NaN stays NaN.

    Source: Elman 1990, with the relu of torch.nn.RNN.
    """
    (a,) = acc
    return (np.maximum(clamp(a, extras.options.gate_clip), 0),), (a,)


def rnn_relu_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras) -> Gradients:
    """da = dh' where h' > 0 or is NaN (as in torch), 0 elsewhere, also at a = 0."""
    (a,), (h,), (dh,) = tape, new, dnew
    return (clamp_backward(np.where(h <= 0, 0, dh), a, extras.options.gate_clip),), (0.0,), {}


def _lstm_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """c' = f c + i g and h' = o tanh(c').

    Each of i, f, o is sigmoid(a) and g is tanh(a), where a = W_ih x + b_ih + W_hh h + b_hh with that gate's
    rows. With a projection, the layer's h' is W_hr (o tanh(c')). `Options` says what peepholes, coupled
    gates, norms and clips change.

    Source: Hochreiter and Schmidhuber, "Long short-term memory", 1997; f from Gers, Schmidhuber and Cummins,
    "Learning to forget", 2000; the projection from Sak, Senior and Beaufays, "Long short-term memory
    recurrent neural network architectures for large scale acoustic modeling", 2014. No peepholes by
    default, as in torch.nn.LSTM.
    """
    (options, parameters), (_, c_prev) = extras, prev
    a, peephole = acc.copy(), parameters.get("weight_peephole")
    if peephole is not None:
        # The rows before the last are those of i and, unless it is coupled, f.
        a[: len(peephole) - 1] += peephole[:-1, None] * c_prev
    i = sigmoid(clamp(a[0], options.gate_clip))
    f = 1 - i if options.coupled_gates else sigmoid(clamp(a[1], options.gate_clip))
    g = np.tanh(clamp(a[-2], options.gate_clip))
    carried, norm = _norm_c(f * c_prev + i * g, extras, "carried")
    c = clamp(carried, options.cell_clip)
    if peephole is not None:
        a[-1] += peephole[-1] * c
    o = sigmoid(clamp(a[-1], options.gate_clip))
    shown, norm_of_output = _norm_c(c, extras, "output")
    return (o * np.tanh(shown), c), (a, i, f, g, o, carried, shown, *norm, *norm_of_output)


def _lstm_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras) -> Gradients:
    """With ds = dc' + dh' o (1 - tanh(c')^2), all that reaches c': di = ds g, df = ds c, dg = ds i.

    And do = dh' tanh(c'), dc = ds f; coupled, di = ds (g - c). Each gate's gradient is then multiplied by the
    slope of its function. A peephole passes its gate's gradient on to the c that it looks at.
    """
    options, parameters = extras
    a, i, f, g, o, carried, shown, *norm = tape
    (_, c_prev), (_, c), (dh, dc) = prev, new, dnew
    gradients: dict[str, Array] = {}
    peephole = parameters.get("weight_peephole")
    tanh_c = np.tanh(shown)

    do = clamp_backward(dh * tanh_c * sigmoid_slope(o), a[-1], options.gate_clip)
    ds = dc + _norm_c_backward(dh * o * tanh_slope(tanh_c), norm, extras, "output", gradients)
    if peephole is not None:
        ds = ds + do * peephole[-1]
    ds = clamp_backward(ds, carried, options.cell_clip)
    ds = _norm_c_backward(ds, norm, extras, "carried", gradients)
    if options.coupled_gates:
        dacc = [ds * (g - c_prev) * sigmoid_slope(i)]
    else:
        dacc = [ds * g * sigmoid_slope(i), ds * c_prev * sigmoid_slope(f)]
    dacc.append(ds * i * tanh_slope(g))
    dacc = [clamp_backward(d, a[gate], options.gate_clip) for gate, d in enumerate(dacc)]
    dc_prev = ds * f
    if peephole is not None:
        looking = dacc[:-1]
        dc_prev = dc_prev + sum(d * p for d, p in zip(looking, peephole[:-1], strict=True))
        rows = [*(d * c_prev for d in looking), do * c]
        gradients["weight_peephole"] = np.stack([row.sum(axis=0) for row in rows])
    return (*dacc, do), (0.0, dc_prev), gradients


def _norm_c(c: Array, extras: Extras, place: str) -> tuple[Array, Arrays]:
    """c, normalised if the option says so at this place; and the norm's tape."""
    options, parameters = extras
    if options.cell_norm != place:
        return c, ()
    return layer_norm(c, parameters["norm_c_weight"], parameters["norm_c_bias"])


def _norm_c_backward(
    d: Array, tape: list[Array], extras: Extras, place: str, gradients: dict[str, Array]
) -> Array:
    options, parameters = extras
    if options.cell_norm != place:
        return d
    dc, gradients["norm_c_weight"], gradients["norm_c_bias"] = layer_norm_backward(
        d, tuple(tape), parameters["norm_c_weight"]
    )
    return dc


def candidate_forward(a_r: Array, n_x: Array | float, n_h: Array, extras: Extras) -> tuple[Array, Arrays]:
    """n = tanh(n_x + r n_h), where r = sigmoid(a_r)."""
    limit = extras.options.gate_clip
    r = sigmoid(clamp(a_r, limit))
    a_n = n_x + r * n_h
    n = np.tanh(clamp(a_n, limit))
    return n, (a_r, a_n, n_h, r, n)


def candidate_backward(dn: Array, tape: Arrays, extras: Extras) -> Arrays:
    """With ds = dn (1 - n^2): dr = ds n_h, dn_x = ds, dn_h = ds r; in this order."""
    a_r, a_n, n_h, r, n = tape
    limit = extras.options.gate_clip
    ds = clamp_backward(dn * tanh_slope(n), a_n, limit)
    return clamp_backward(ds * n_h * sigmoid_slope(r), a_r, limit), ds, ds * r


def _gru_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """h' = (1 - z) n + z h, where n = tanh(n_x + r n_h), n_x = W_in x + b_in, n_h = W_hn h + b_hn.

    Both r and z are sigmoid(a), where a = W_ih x + b_ih + W_hh h + b_hh with that gate's rows.

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", 2014, except that r is applied after the product with W_hn, as the torch.nn.GRU
    documentation states.
    """
    (h,), (a_r, a_z, n_x, n_h) = prev, acc
    z = sigmoid(clamp(a_z, extras.options.gate_clip))
    n, tape = candidate_forward(a_r, n_x, n_h, extras)
    return ((1 - z) * n + z * h,), (a_z, z, *tape)


def _gru_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras) -> Gradients:
    """dn = dh' (1 - z), dz = dh' (h - n), dh = dh' z; dz is then multiplied by the slope of its sigmoid."""
    a_z, z, *candidate = tape
    (h,), (dh,) = prev, dnew
    dr, dn_x, dn_h = candidate_backward(dh * (1 - z), tuple(candidate), extras)
    dz = clamp_backward(dh * (h - candidate[-1]) * sigmoid_slope(z), a_z, extras.options.gate_clip)
    return (dr, dz, dn_x, dn_h), (dh * z,), {}


def gru_reset_before_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """h' = (1 - z) n + z h, where n = tanh(W_in x + b_in + W_hn (r h) + b_hn).

    The product's phase applies r. Source: Cho et al. 2014.
    """
    (h,), (_, a_z, a_n) = prev, acc
    limit = extras.options.gate_clip
    z, n = sigmoid(clamp(a_z, limit)), np.tanh(clamp(a_n, limit))
    return ((1 - z) * n + z * h,), (a_z, z, a_n, n)


def gru_reset_before_backward(
    tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras
) -> Gradients:
    """dn = dh' (1 - z), dz = dh' (h - n), dh = dh' z; the phase adds what reaches r."""
    a_z, z, a_n, n = tape
    (h,), (dh,) = prev, dnew
    limit = extras.options.gate_clip
    dz = clamp_backward(dh * (h - n) * sigmoid_slope(z), a_z, limit)
    dn = clamp_backward(dh * (1 - z) * tanh_slope(n), a_n, limit)
    return (np.zeros_like(dh), dz, dn), (dh * z,), {}


def gru_joint_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """h' = u n + (1 - u) h, where n = tanh(sigmoid(a_r) a_n) and u = sigmoid(a_u + update_bias).

    Source: Hafner et al., "Dream to control: learning behaviors by latent imagination", 2020, the GRU of its
    published program.
    """
    (h,), (a_r, a_n, a_u) = prev, acc
    n, tape = candidate_forward(a_r, 0.0, a_n, extras)
    biased = a_u + extras.options.update_bias
    u = sigmoid(clamp(biased, extras.options.gate_clip))
    return (u * n + (1 - u) * h,), (biased, u, *tape)


def gru_joint_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras) -> Gradients:
    """dn = dh' u, du = dh' (n - h), dh = dh' (1 - u)."""
    biased, u, *candidate = tape
    (h,), (dh,) = prev, dnew
    dr, _, dn = candidate_backward(dh * u, tuple(candidate), extras)
    du = clamp_backward(dh * (candidate[-1] - h) * sigmoid_slope(u), biased, extras.options.gate_clip)
    return (dr, dn, du), (dh * (1 - u),), {}


_RNN = frozenset({"layer_norm", "gate_clip", "num_heads"})
_LSTM = _RNN | {"peephole", "coupled_gates", "cell_norm", "cell_clip"}
_GRU = _RNN | {"reset_after", "update_bias"}


CELLS: dict[str, Cell] = {
    "rnn_tanh": Cell(
        *(("a",), ("h",), (0,), (0,)),
        projects=False,
        forward=_rnn_tanh_forward,
        backward=_rnn_tanh_backward,
        takes=_RNN,
        norms=("separate",),
    ),
    "rnn_relu": Cell(
        *(("a",), ("h",), (0,), (0,)),
        projects=False,
        forward=rnn_relu_forward,
        backward=rnn_relu_backward,
        takes=_RNN,
        norms=("separate",),
    ),
    "lstm": Cell(
        *(("i", "f", "g", "o"), ("h", "c"), (0, 1, 2, 3), (0, 1, 2, 3)),
        projects=True,
        forward=_lstm_forward,
        backward=_lstm_backward,
        takes=_LSTM,
        norms=("separate", "joint"),
    ),
    "gru": Cell(
        *(("r", "z", "n_x", "n_h"), ("h",), (0, 1, 2), (0, 1, 3)),
        projects=False,
        forward=_gru_forward,
        backward=_gru_backward,
        takes=_GRU,
        norms=("separate", "joint"),
    ),
}
