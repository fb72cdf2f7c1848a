"""The same layers as differentiable torch operations, step by step: what derivatives of higher order are
derivatives of. Nothing else runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnnfused._layer import LayerConfig

__all__ = ["recurrent"]

States = tuple[Tensor, ...]
# (x W_ih^T + b_ih, h W_hh^T + b_hh, states) -> next states, the first of them before any projection
Step = Callable[[Tensor, Tensor, States], States]


def _rnn_tanh(x: Tensor, h: Tensor, states: States) -> States:
    return (torch.tanh(x + h),)


def _rnn_relu(x: Tensor, h: Tensor, states: States) -> States:
    return (torch.relu(x + h),)


def _lstm(x: Tensor, h: Tensor, states: States) -> States:
    i, f, g, o = (x + h).chunk(4, 1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, states: States) -> States:
    x_r, x_z, x_n = x.chunk(3, 1)
    h_r, h_z, h_n = h.chunk(3, 1)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (n + torch.sigmoid(x_z + h_z) * (states[0] - n),)


STEPS: dict[str, Step] = {"rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu, "lstm": _lstm, "gru": _gru}


def recurrent(
    layer: LayerConfig,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
) -> list[Tensor]:
    """What the operator `recurrent` returns of one layer, from the same arguments."""
    packed = batch_sizes is not None
    missing = input.dim() < (1 if packed else 2 if layer.step else 3)  # the batch dimension
    x, states = input, list(hx)
    if layer.step:
        x = (x.unsqueeze(0) if missing else x).unsqueeze(0)
        states = [(s.unsqueeze(0) if missing else s).unsqueeze(0) for s in states]
    elif missing:
        x, states = x.unsqueeze(1), [s.unsqueeze(1) for s in states]
    elif layer.batch_first and not packed:
        x = x.transpose(0, 1)
    if not states:
        batch = int(batch_sizes[0]) if batch_sizes is not None else x.size(1)
        states = [x.new_zeros(layer.directions, batch, size) for size in layer.state_sizes(params[1].shape)]
    y, final = _layer(layer, x, tuple(states), params, batch_sizes)
    if layer.step:
        return [s[0, 0] if missing else s[0] for s in final]
    if missing:
        return [y.squeeze(1), *(s.squeeze(1) for s in final)]
    return [y.transpose(0, 1) if layer.batch_first and not packed else y, *final]


def _layer(
    layer: LayerConfig, x: Tensor, initial: States, params: Sequence[Tensor], batch_sizes: Tensor | None
) -> tuple[Tensor, States]:
    """x: [T, B, I] or packed rows; initial: h [D, B, P], c [D, B, H]. Returns y and the final states."""
    outputs, finals = [], []
    for direction in range(layer.directions):
        w_ih, w_hh, *others = params[direction * layer.params_each :][: layer.params_each]
        b_ih, b_hh = others[:2] if layer.bias else (None, None)
        weights = (w_ih, w_hh, b_ih, b_hh, others[-1] if layer.projected else None)
        y, final = _sequence(
            STEPS[layer.cell], x, tuple(s[direction] for s in initial), weights, batch_sizes, direction == 1
        )
        outputs.append(y)
        finals.append(final)
    return torch.cat(outputs, -1), tuple(torch.stack(states) for states in zip(*finals, strict=True))


def _sequence(
    step: Step,
    x: Tensor,
    initial: States,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, States]:
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    assert w_ih is not None and w_hh is not None
    gates = linear(x, w_ih, b_ih)
    inputs = list(gates.unbind(0) if batch_sizes is None else gates.split(batch_sizes.tolist()))
    ended: list[States] = []  # rows that stopped before the current ones, the last of the batch first
    states = tuple(s[: len(inputs[-1])] for s in initial) if reverse else initial
    outputs = []
    for x_t in reversed(inputs) if reverse else inputs:
        active, rows = len(x_t), len(states[0])
        if active < rows:
            ended.append(tuple(s[active:] for s in states))
            states = tuple(s[:active] for s in states)
        elif active > rows:
            states = tuple(
                torch.cat((s, first[rows:active])) for s, first in zip(states, initial, strict=True)
            )
        states = step(x_t, linear(states[0], w_hh, b_hh), states)
        if w_hr is not None:
            states = (linear(states[0], w_hr), *states[1:])
        outputs.append(states[0])
    final = tuple(torch.cat(parts) for parts in zip(states, *reversed(ended), strict=True))
    if reverse:
        outputs.reverse()
    return (torch.stack(outputs) if batch_sizes is None else torch.cat(outputs)), final
