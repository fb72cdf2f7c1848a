"""One step of each cell as differentiable torch operations, with everything that `LayerConfig` can ask for.

The equations and their order are those of the NumPy reference (reference/_cells.py, _recurrence.py,
_walk.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.nn.functional import linear, logsigmoid

from rnnfused import _masks
from rnnfused._layer import LayerConfig

__all__ = ["STEPS", "Direction", "States"]

States = tuple[Tensor, ...]


class Terms(NamedTuple):
    """What a cell's maths reads beside sums and states."""

    layer: LayerConfig
    own: dict[str, Tensor]  # what the options bring, by name

    def clipped(self, a: Tensor) -> Tensor:
        """What enters a gate's function."""
        return _clamped(a, self.layer.gate_clip)

    def normalised(self, rows: Tensor, name: str) -> Tensor:
        """In float32 at least. Third derivatives of torch's layer_norm leave out its mean and variance."""
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
        normal = (wide - mean) * torch.rsqrt(variance + 1e-5)
        return (normal * self.own[f"{name}_weight"] + self.own[f"{name}_bias"]).to(rows.dtype)


# (what x gives, what h gives, states, terms) -> next states, the first of them before any projection. The
# sums are [n, G H]; with a joint norm the first is all, and the second zero, as where no gate sees h. What x
# gives to a cell that attends ends with the rows' weights [n, 1].
Step = Callable[[Tensor, Tensor, States, Terms], States]


def _rnn_tanh(x: Tensor, h: Tensor, states: States, terms: Terms) -> States:
    return (torch.tanh(terms.clipped(x + h)),)


def _rnn_relu(x: Tensor, h: Tensor, states: States, terms: Terms) -> States:
    return (torch.relu(terms.clipped(x + h)),)


def _lstm(x: Tensor, h: Tensor, states: States, terms: Terms) -> States:
    layer, c_prev = terms.layer, states[1]
    *looking, g, o = (x + h).chunk(len(layer.gates), 1)  # i and, unless it is coupled, f
    if layer.peephole:
        *of_looking, of_o = terms.own["weight_peephole"].unbind()
        looking = [a + p * c_prev for a, p in zip(looking, of_looking, strict=True)]
    i = torch.sigmoid(terms.clipped(looking[0]))
    f = 1 - i if layer.coupled_gates else torch.sigmoid(terms.clipped(looking[1]))
    c = f * c_prev + i * torch.tanh(terms.clipped(g))
    if layer.cell_norm == "carried":
        c = terms.normalised(c, "norm_c")
    c = _clamped(c, layer.cell_clip)
    if layer.peephole:
        o = o + of_o * c
    shown = terms.normalised(c, "norm_c") if layer.cell_norm == "output" else c
    return torch.sigmoid(terms.clipped(o)) * torch.tanh(shown), c


def _gru(x: Tensor, h: Tensor, states: States, terms: Terms) -> States:
    x_r, x_z, x_n = x.chunk(3, 1)
    h_r, h_z, h_n = h.chunk(3, 1)
    if terms.layer.reset_before:  # r is in h_n
        n = torch.tanh(terms.clipped(x_n + h_n))
    else:
        n = _candidate(x_r + h_r, x_n, h_n, terms)
    return (n + torch.sigmoid(terms.clipped(x_z + h_z)) * (states[0] - n),)


def _gru_joint(x: Tensor, h: Tensor, states: States, terms: Terms) -> States:
    r, n, u = x.chunk(3, 1)
    n = torch.tanh(terms.clipped(torch.sigmoid(terms.clipped(r)) * n))
    u = torch.sigmoid(terms.clipped(u + terms.layer.update_bias))
    return (states[0] + u * (n - states[0]),)


def _ligru(x: Tensor, h: Tensor, states: States, terms: Terms) -> States:
    a_z, a_n = terms.clipped(x + h).chunk(2, 1)
    n = torch.relu(a_n)
    return (n + torch.sigmoid(a_z) * (states[0] - n),)


def _mingru(x: Tensor, h: Tensor, states: States, terms: Terms) -> States:
    a_z, n = x.chunk(2, 1)
    return (states[0] + torch.sigmoid(a_z) * (n - states[0]),)


def _minlstm(x: Tensor, h: Tensor, states: States, terms: Terms) -> States:
    a_f, a_i, n = x.chunk(3, 1)
    share = torch.sigmoid(logsigmoid(a_f) - logsigmoid(a_i))  # f / (f + i), which may underflow
    return (n + share * (states[0] - n),)


def _augru(x: Tensor, h: Tensor, states: States, terms: Terms) -> States:
    (x_r, x_z, x_n), weight = x[:, :-1].chunk(3, 1), x[:, -1:]
    h_r, h_z, h_n = h.chunk(3, 1)
    u = weight * torch.sigmoid(terms.clipped(x_z + h_z))
    return (states[0] + u * (_candidate(x_r + h_r, x_n, h_n, terms) - states[0]),)


def _agru(x: Tensor, h: Tensor, states: States, terms: Terms) -> States:
    (x_r, x_n), weight = x[:, :-1].chunk(2, 1), x[:, -1:]
    h_r, h_n = h.chunk(2, 1)
    return (states[0] + weight * (_candidate(x_r + h_r, x_n, h_n, terms) - states[0]),)


def _candidate(a_r: Tensor, x_n: Tensor, h_n: Tensor, terms: Terms) -> Tensor:
    return torch.tanh(terms.clipped(x_n + torch.sigmoid(terms.clipped(a_r)) * h_n))


def _slstm(x: Tensor, h: Tensor, states: States, terms: Terms) -> States:
    a_i, a_f, a_z, a_o = (x + h).chunk(4, 1)
    c, n, m = states[1].chunk(3, 1)
    log_f_m = logsigmoid(a_f) + m
    m = torch.where(n == 0, a_i, torch.maximum(log_f_m, a_i))  # an empty memory has no units
    i, f = torch.exp(a_i - m), torch.exp((log_f_m - m).clamp(max=80))
    c, n = f * c + i * torch.tanh(a_z), f * n + i
    return torch.sigmoid(a_o) * c / n, torch.cat((c, n, m), 1)


STEPS: dict[str, Step] = {
    **{"rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu, "lstm": _lstm, "gru": _gru},
    **{"indrnn": _rnn_relu, "ligru": _ligru, "mingru": _mingru, "minlstm": _minlstm},
    **{"augru": _augru, "agru": _agru, "slstm": _slstm},
}


@dataclass(frozen=True)
class Direction:
    """One direction of a layer, in one call: its weights, and what was drawn for it."""

    terms: Terms
    maths: Step
    w_ih: Tensor
    b_ih: Tensor | None
    w_hr: Tensor | None
    products: list[tuple[Tensor, Tensor | None]]  # W_hh and b_hh of each product of a step; may be none
    keeps: list[Tensor | float]  # of each state: which units keep their value [T, B, units], or their share
    dropout: Tensor | None  # what h is multiplied with where it enters W_hh [B, P]

    @staticmethod
    def of(
        layer: LayerConfig, params: Sequence[Tensor], index: int, initial: States, steps: int
    ) -> Direction:
        """Of a single layer with these params, its first or second; initial: its own, [B, units]."""
        own = iter(params[index * layer.params_each :][: layer.params_each])
        w_ih, w_hh = next(own), next(own) if layer.spec.recurrent else None
        biases = [next(own) for _ in layer.spec.biases] if layer.bias else []
        b_ih, b_hh = (*biases, None, None)[:2]
        w_hr = next(own) if layer.projected else None
        terms = Terms(layer, dict(zip(layer.own_params, own, strict=True)))
        maths = _gru_joint if layer.cell == "gru" and layer.layer_norm == "joint" else STEPS[layer.cell]
        keeps, dropout = _draw(layer, params[-1], index, initial, steps)
        return Direction(terms, maths, w_ih, b_ih, w_hr, _products(layer, w_hh, b_hh), keeps, dropout)

    def from_x(self, x: Tensor) -> Tensor:
        """What x [..., I] gives at all steps, outside the recurrence: [..., G H], and the rows' weights."""
        layer = self.terms.layer
        if layer.spec.attends:
            return torch.cat((linear(x[..., :-1], self.w_ih, self.b_ih), x[..., -1:]), -1)
        product = linear(x, self.w_ih, self.b_ih)
        own_norm = layer.layer_norm in ("separate", "input")
        return self.terms.normalised(product, "norm_ih") if own_norm else product

    def step(self, t: int, x: Tensor, before: States) -> States:
        """x: what it gives at the step t. The rows are the first of the batch."""
        if (limit := self.terms.layer.grad_clip) is not None:
            before = tuple(_with_clipped_gradient(s, limit) for s in before)
        h = before[0] if self.dropout is None else before[0] * self.dropout[: len(x)]
        after = self.maths(*self._sums(x, h), before, self.terms)
        if self.w_hr is not None:
            after = (linear(after[0], self.w_hr), *after[1:])
        parts = zip(self.keeps, before, after, strict=True)
        return tuple(_zoned_out(keep, t, old, new) for keep, old, new in parts)

    def _sums(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """What x and what h give, normalised."""
        if not self.products:
            return x, x.new_zeros(())
        from_h = _product(h, *self.products[0])
        if self.terms.layer.reset_before:
            reset = from_h.chunk(2, 1)[0] + x.chunk(3, 1)[0]
            r = torch.sigmoid(self.terms.clipped(reset))
            from_h = torch.cat((from_h, _product(r * h, *self.products[1])), 1)
        match self.terms.layer.layer_norm:
            case "separate":
                return x, self.terms.normalised(from_h, "norm_hh")
            case "joint":
                return self.terms.normalised(x + from_h, "norm"), x.new_zeros(())
        return x, from_h


def _products(
    layer: LayerConfig, w_hh: Tensor | None, b_hh: Tensor | None
) -> list[tuple[Tensor, Tensor | None]]:
    """One for all gates or, where r is applied before, one for r and z and one for n. W_hh is [G H, P], of
    heads [k, G, H/k, P/k], or a vector [H].
    """
    if w_hh is None:
        return []
    if layer.num_heads > 1:
        w_hh = w_hh.unflatten(1, (len(layer.gates), -1))
    if not layer.reset_before:
        return [(w_hh, b_hh)]
    dim = 1 if layer.num_heads > 1 else 0
    rows = w_hh.size(dim) // 3
    weights = w_hh.split((2 * rows, rows), dim)
    if b_hh is None:
        return [(w, None) for w in weights]
    units = b_hh.size(0) // 3
    return list(zip(weights, b_hh.split((2 * units, units)), strict=True))


def _product(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dim() == 1:  # each unit sees itself alone; such a cell's only bias is x's
        return weight * h
    if weight.dim() == 2:
        return linear(h, weight, bias)
    by_head = h.unflatten(1, (weight.size(0), -1))
    product = torch.einsum("nkp,kgup->ngku", by_head, weight).flatten(1)
    return product if bias is None else product + bias


def _draw(
    layer: LayerConfig, seeds: Tensor, direction: int, initial: States, steps: int
) -> tuple[list[Tensor | float], Tensor | None]:
    """`keeps` and `dropout` of a direction; without drawing zoneout has its mean, and dropout none."""
    keeps: list[Tensor | float] = list(layer.zoneout[: len(initial)])
    if not layer.drawn:
        return keeps, None
    seed, batch, device = seeds[0], initial[0].size(0), initial[0].device
    rows = torch.arange(steps * batch, device=device)
    for index, (p, state) in enumerate(zip(layer.zoneout, initial, strict=False)):
        if p > 0:
            mask = _masks.zoneout(seed, index, direction, rows, state.size(1), p)
            keeps[index] = mask.unflatten(0, (steps, batch))
    if layer.recurrent_dropout == 0:
        return keeps, None
    sequences, h = torch.arange(batch, device=device), initial[0]
    return keeps, _masks.recurrent_dropout(
        seed, direction, sequences, h.size(1), layer.recurrent_dropout, h.dtype
    )


def _zoned_out(keep: Tensor | float, t: int, before: Tensor, after: Tensor) -> Tensor:
    """A unit that takes one of them whole sees no NaN of the other."""
    if isinstance(keep, Tensor):
        return torch.where(keep[t, : len(after)], before, after)
    return after if keep == 0 else before if keep == 1 else keep * before + (1 - keep) * after


def _clamped(t: Tensor, limit: float | None) -> Tensor:
    return t if limit is None else t.clamp(-limit, limit)


class _Clips:
    """The tensor itself, whose gradient is clamped: on every way back, as by a hook, also where that is a way
    through a graph of gradients.
    """

    @staticmethod
    def forward(t: Tensor, limit: float) -> Tensor:
        return t.view_as(t)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.limit = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.clamp(-ctx.limit, ctx.limit), None


class _ClippedGradient(_Clips, torch.autograd.Function):
    generate_vmap_rule = True


class _HasTangent:
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)


class _WithTangent(_HasTangent, _ClippedGradient):
    pass


class _BelowTransforms(_HasTangent, _Clips, torch.autograd.function._SingleLevelFunction):
    """For a kernel that a transform of torch.func has called, which any other Function would ask again."""


def _with_clipped_gradient(t: Tensor, limit: float) -> Tensor:
    if torch.compiler.is_dynamo_compiling():  # which traces no function that has a forward mode
        return _ClippedGradient.apply(t, limit)
    front = torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode
    if torch._C._dispatch_tls_is_dispatch_key_excluded(front):
        below: Any = _BelowTransforms
        with enable_single_level_autograd_function():
            return below.apply(t, limit)
    return _WithTangent.apply(t, limit)
