"""The gate maths of the cells that torch.nn has not, forward and backward."""

from __future__ import annotations

import numpy as np

from rnnfused.reference._cells import (
    Cell,
    Extras,
    Gradients,
    candidate_backward,
    candidate_forward,
    rnn_relu_backward,
    rnn_relu_forward,
)
from rnnfused.reference._maths import (
    Array,
    Arrays,
    clamp,
    clamp_backward,
    sigmoid,
    sigmoid_slope,
    tanh_slope,
)


def _ligru_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """h' = z h + (1 - z) n, where z = sigmoid(a_z), n = max(a_n, 0), a = W_ih x + b_ih + W_hh h + b_hh.

    Source: Ravanelli, Brakel, Omologo and Bengio, "Light gated recurrent units for speech recognition", 2018;
    with both norms Moumen and Parcollet, "Stabilising and accelerating light gated recurrent units for
    automatic speech recognition", 2023.
    """
    (h,), (a_z, a_n) = prev, acc
    limit = extras.options.gate_clip
    z, n = sigmoid(clamp(a_z, limit)), np.maximum(clamp(a_n, limit), 0)
    return (z * h + (1 - z) * n,), (a_z, a_n, z, n)


def _ligru_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras) -> Gradients:
    """dz = dh' (h - n), dn = dh' (1 - z) where n > 0 or is NaN, dh = dh' z."""
    a_z, a_n, z, n = tape
    (h,), (dh,) = prev, dnew
    limit = extras.options.gate_clip
    dz = clamp_backward(dh * (h - n) * sigmoid_slope(z), a_z, limit)
    dn = clamp_backward(np.where(n <= 0, 0, dh * (1 - z)), a_n, limit)
    return (dz, dn), (dh * z,), {}


def _augru_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """h' = (1 - u) h + u n, where u = a sigmoid(a_z), a is the row's weight at this step, n as in the GRU.

    So z is the part of n here, not that of h, as in the source: Zhou et al., "Deep interest evolution network
    for click-through rate prediction", 2019. As in torch.nn.GRU, r is applied after the product with W_hn.
    """
    (h,), (a_r, a_z, n_x, n_h, weight) = prev, acc
    z = sigmoid(clamp(a_z, extras.options.gate_clip))
    n, candidate = candidate_forward(a_r, n_x, n_h, extras)
    u = weight * z
    return ((1 - u) * h + u * n,), (a_z, z, weight, *candidate)


def _augru_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras) -> Gradients:
    """du = dh' (n - h), dz = du a, da = du z, dn = dh' u, dh = dh' (1 - u)."""
    a_z, z, weight, *candidate = tape
    (h,), (dh,) = prev, dnew
    u, du = weight * z, dh * (candidate[-1] - h)
    dr, dn_x, dn_h = candidate_backward(dh * u, tuple(candidate), extras)
    dz = clamp_backward(du * weight * sigmoid_slope(z), a_z, extras.options.gate_clip)
    return (dr, dz, dn_x, dn_h, du * z), (dh * (1 - u),), {}


def _agru_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """h' = (1 - a) h + a n, where a is the row's weight at this step and n as in the GRU; there is no z.

    Source: Zhou et al. 2019.
    """
    (h,), (a_r, n_x, n_h, weight) = prev, acc
    n, candidate = candidate_forward(a_r, n_x, n_h, extras)
    return ((1 - weight) * h + weight * n,), (weight, *candidate)


def _agru_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras) -> Gradients:
    """da = dh' (n - h), dn = dh' a, dh = dh' (1 - a)."""
    weight, *candidate = tape
    (h,), (dh,) = prev, dnew
    dr, dn_x, dn_h = candidate_backward(dh * weight, tuple(candidate), extras)
    return (dr, dn_x, dn_h, dh * (candidate[-1] - h)), (dh * (1 - weight),), {}


def _slstm_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """h' = o c' / n', c' = f c + i z, n' = f n + i, with z = tanh(a_z), o = sigmoid(a_o).

    i = exp(a_i) and f = sigmoid(a_f) are held with c and n in units of exp(m): m' = max(log f + m, a_i),
    i = exp(a_i - m'), f = exp(log f + m - m'). Where n is zero memory is empty, whatever its m: m' = a_i.

    Source: Beck et al., "xLSTM: extended long short-term memory", 2024, with the sigmoid for f.
    """
    (_, c, n, m), (a_i, a_f, a_z, a_o) = prev, acc
    log_f_m = m - np.logaddexp(0, -a_f)
    m_new = np.where(n == 0, a_i, np.maximum(log_f_m, a_i))
    i, f = np.exp(a_i - m_new), np.exp(np.minimum(log_f_m - m_new, 80))  # finite, for what is zero
    z, o = np.tanh(a_z), sigmoid(a_o)
    c_new, n_new = f * c + i * z, f * n + i
    return (o * c_new / n_new, c_new, n_new, m_new), (a_i, a_f, log_f_m, i, f, z, o)


def _slstm_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras) -> Gradients:
    """With e = dh' o / n', ds = dc' + e, dt = dn' - e c' / n': di = ds z + dt, df = ds c + dt n, dz = ds i.

    And do = dh' c' / n', dc = ds f, dn = dt f; what reaches m', dm' - di i - df f, goes on to the larger of
    the two that it is the maximum of, and halves to both if they are equal, as in torch.maximum.
    """
    a_i, a_f, log_f_m, i, f, z, o = tape
    (_, c, n, _), (_, c_new, n_new, _), (dh, dc, dn, dm) = prev, new, dnew
    e = dh * o / n_new
    ds, dt = dc + e, dn - e * c_new / n_new
    di, df = (ds * z + dt) * i, (ds * c + dt * n) * f
    dm = dm - di - df
    old = np.where(n == 0, 0, np.where(log_f_m == a_i, dm / 2, np.where(log_f_m > a_i, dm, 0)))
    dlog_f = df + old
    dacc = (
        di + dm - old,
        dlog_f * sigmoid(-a_f),
        ds * i * tanh_slope(z),
        dh * c_new / n_new * sigmoid_slope(o),
    )
    return dacc, (0.0, ds * f, dt * f, dlog_f), {}


def _mingru_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """h' = (1 - z) h + z n, where z = sigmoid(a_z), n = a_n, a = W_ih x + b_ih: no gate sees h.

    Source: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi, "Were RNNs all we needed?", 2024.
    """
    (h,), (a_z, n) = prev, acc
    z = sigmoid(a_z)
    return ((1 - z) * h + z * n,), (z, n)


def _mingru_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras) -> Gradients:
    """dz = dh' (n - h), dn = dh' z, dh = dh' (1 - z)."""
    (z, n), (h,), (dh,) = tape, prev, dnew
    return (dh * (n - h) * sigmoid_slope(z), dh * z), (dh * (1 - z),), {}


def _minlstm_forward(acc: Array, prev: Arrays, extras: Extras) -> tuple[Arrays, Arrays]:
    """h' = (f h + i n) / (f + i), where f and i are sigmoid(a), n = a_n, a = W_ih x + b_ih: no gate sees h.

    Source: Feng et al. 2024.
    """
    (h,), (a_f, a_i, n) = prev, acc
    share = sigmoid(np.logaddexp(0, -a_i) - np.logaddexp(0, -a_f))  # f / (f + i), which may underflow
    return (share * h + (1 - share) * n,), (a_f, a_i, n, share)


def _minlstm_backward(tape: Arrays, prev: Arrays, new: Arrays, dnew: Arrays, extras: Extras) -> Gradients:
    """With s = f / (f + i) = sigmoid(log f - log i): ds = dh' (h - n), dh = dh' s."""
    (a_f, a_i, n, share), (h,), (dh,) = tape, prev, dnew
    dlog = dh * (h - n) * sigmoid_slope(share)
    dacc = (dlog * sigmoid(-a_f), -dlog * sigmoid(-a_i), dh * (1 - share))
    return dacc, (dh * share,), {}


_GATED = frozenset({"gate_clip", "num_heads"})

OWN_CELLS: dict[str, Cell] = {
    # h' = max(W_ih x + b_ih + u h, 0). Source: Li, Li, Cook, Zhu and Gao, "Independently recurrent neural
    # network (IndRNN)", 2018.
    "indrnn": Cell(
        *(("a",), ("h",), (0,), (0,)),
        projects=False,
        forward=rnn_relu_forward,
        backward=rnn_relu_backward,
        takes=frozenset({"gate_clip"}),
        elementwise=True,
    ),
    "ligru": Cell(
        *(("z", "n"), ("h",), (0, 1), (0, 1)),
        projects=False,
        forward=_ligru_forward,
        backward=_ligru_backward,
        takes=_GATED | {"layer_norm"},
        norms=("input", "separate"),
    ),
    "augru": Cell(
        *(("r", "z", "n_x", "n_h", "attention"), ("h",), (0, 1, 2), (0, 1, 3)),
        projects=False,
        forward=_augru_forward,
        backward=_augru_backward,
        takes=_GATED,
        attends=True,
    ),
    "agru": Cell(
        *(("r", "n_x", "n_h", "attention"), ("h",), (0, 1), (0, 2)),
        projects=False,
        forward=_agru_forward,
        backward=_agru_backward,
        takes=_GATED,
        attends=True,
    ),
    "slstm": Cell(
        *(("i", "f", "z", "o"), ("h", "c", "n", "m"), (0, 1, 2, 3), (0, 1, 2, 3)),
        projects=False,
        forward=_slstm_forward,
        backward=_slstm_backward,
        takes=frozenset({"num_heads"}),
    ),
    "mingru": Cell(
        *(("z", "n"), ("h",), (0, 1), ()),
        projects=False,
        forward=_mingru_forward,
        backward=_mingru_backward,
        phases=(),
    ),
    "minlstm": Cell(
        *(("f", "i", "n"), ("h",), (0, 1, 2), ()),
        projects=False,
        forward=_minlstm_forward,
        backward=_minlstm_backward,
        phases=(),
    ),
}
