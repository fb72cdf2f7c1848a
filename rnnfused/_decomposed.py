"""The same layers as differentiable torch operations, step by step.

Double backward and forward-mode differentiation go through these; nothing else runs them. Shapes are those of
`_autograd.layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnnfused._checks import SLOTS

__all__ = ["layer"]

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


def layer(
    cell: str,
    x: Tensor,
    initial: States,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
) -> tuple[Tensor, States]:
    """One layer in one or two directions; returns y and the final states, stacked over the directions."""
    outputs, finals = [], []
    for direction in range(len(weights) // SLOTS):
        of_direction = weights[direction * SLOTS : (direction + 1) * SLOTS]
        y, final = _sequence(
            STEPS[cell], x, tuple(s[direction] for s in initial), of_direction, batch_sizes, direction == 1
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
