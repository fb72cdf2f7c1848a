"""The same layers as differentiable torch operations, step by step: what derivatives of higher order are
derivatives of, and what runs layers that ask for more than the kernels have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from rnnfused._layer import LayerConfig
from rnnfused._steps import Direction, States

__all__ = ["recurrent"]


def recurrent(
    layer: LayerConfig,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
) -> list[Tensor]:
    """What the operator `recurrent` returns of one layer, from the same arguments."""
    if lengths is not None and input.dim() == 2:
        return _concatenated(layer, input, hx, params, lengths, resets)
    packed = batch_sizes is not None
    missing = input.dim() < (1 if packed else 2 if layer.step else 3)  # the batch dimension
    x, states = input, list(hx)
    if layer.step:
        x = (x.unsqueeze(0) if missing else x).unsqueeze(0)
        states = [(s.unsqueeze(0) if missing else s).unsqueeze(0) for s in states]
    elif missing:
        x, states = x.unsqueeze(1), [s.unsqueeze(1) for s in states]
        resets = None if resets is None else resets.unsqueeze(1)
    elif layer.batch_first and not packed:
        x = x.transpose(0, 1)
        resets = None if resets is None else resets.transpose(0, 1)
    if not states:
        batch = int(batch_sizes[0]) if batch_sizes is not None else x.size(1)
        states = [x.new_zeros(layer.directions, batch, size) for size in layer.state_sizes(params)]
    y, final, cells = _layer(layer, x, tuple(states), params, batch_sizes, lengths, resets)
    if layer.step:
        return [s[0, 0] if missing else s[0] for s in final]

    def given(t: Tensor) -> Tensor:
        return t.squeeze(1) if missing else t.transpose(0, 1) if layer.batch_first and not packed else t

    final = tuple(s.squeeze(1) for s in final) if missing else final
    return [given(y), *final, *([given(cells)] if layer.cells else [])]


def _concatenated(
    layer: LayerConfig,
    rows: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    lengths: Tensor,
    resets: Tensor | None,
) -> list[Tensor]:
    """Sequences one after the other, as padded ones."""
    steps = torch.arange(max(int(lengths.max()) if len(lengths) else 0, 1), device=rows.device)
    own = lengths.to(rows.device)
    there = steps < own.unsqueeze(1)
    places = torch.where(there, (own.cumsum(0) - own).unsqueeze(1) + steps, len(rows)).flatten()
    padded = torch.cat((rows, rows.new_zeros(1, rows.size(1)))).index_select(0, places)
    padded = padded.unflatten(0, there.shape)
    if resets is not None:
        resets = torch.cat((resets, resets.new_zeros(1))).index_select(0, places).view(there.shape)
    by_sequence = dataclasses.replace(layer, batch_first=True)
    rows_there = there.flatten().nonzero().squeeze(1)
    return [
        t.flatten(0, 1).index_select(0, rows_there) if layer.is_sequence(index) else t
        for index, t in enumerate(recurrent(by_sequence, padded, hx, params, None, lengths, resets))
    ]


def _layer(
    layer: LayerConfig,
    x: Tensor,
    initial: States,
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, States, Tensor]:
    """x: [T, B, I] or packed rows; initial: h [D, B, P], c [D, B, H]. Returns y, the final states, and the
    last state (c, if there is one) of every row.
    """
    outputs, finals, lasts = [], [], []
    for index in range(layer.directions):
        own = tuple(s[index] for s in initial)
        steps = len(x) if batch_sizes is None else len(batch_sizes)
        direction = Direction.of(layer, params, index, own, steps)
        if lengths is None and resets is None:
            y, final, last = _sequence(direction, x, own, batch_sizes, index == 1)
        else:
            y, final, last = _masked_sequence(direction, x, own, lengths, resets, index == 1)
        lasts.append(last)
        outputs.append(y)
        finals.append(final)
    final = tuple(torch.stack(states) for states in zip(*finals, strict=True))
    return torch.cat(outputs, -1), final, torch.cat(lasts, -1)


def _masked_sequence(
    direction: Direction,
    x: Tensor,
    states: States,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, States, Tensor]:
    """Of padded input: beyond a sequence's length its state stands still and its output is zero."""
    steps = torch.arange(len(x), device=x.device).unsqueeze(1)
    there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if lengths is not None:
        there = steps < lengths.to(x.device)
        x = x.masked_fill(~there.unsqueeze(-1), 0)
    cuts = there if resets is None else there & resets
    inputs = direction.from_x(x).unbind(0)

    def kept(t: int, states: States) -> States:
        return states if resets is None else tuple(s.masked_fill(cuts[t].unsqueeze(1), 0) for s in states)

    outputs: list[Tensor] = []
    lasts: list[Tensor] = []
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        before = states if reverse else kept(t, states)
        after = direction.step(t, inputs[t], before)
        outputs.append(after[0].masked_fill(~there[t].unsqueeze(1), 0))
        lasts.append(after[-1].masked_fill(~there[t].unsqueeze(1), 0))
        if reverse:
            after = kept(t, after)
        states = tuple(torch.where(there[t].unsqueeze(1), a, s) for a, s in zip(after, states, strict=True))
    if reverse:
        outputs.reverse()
        lasts.reverse()
    return torch.stack(outputs), states, torch.stack(lasts)


def _sequence(
    direction: Direction,
    x: Tensor,
    initial: States,
    batch_sizes: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, States, Tensor]:
    from_x = direction.from_x(x)
    inputs = list(from_x.unbind(0) if batch_sizes is None else from_x.split(batch_sizes.tolist()))
    ended: list[States] = []  # rows that stopped before the current ones, the last of the batch first
    states = tuple(s[: len(inputs[-1])] for s in initial) if reverse else initial
    outputs, lasts = [], []
    for t in reversed(range(len(inputs))) if reverse else range(len(inputs)):
        active, rows = len(inputs[t]), len(states[0])
        if active < rows:
            ended.append(tuple(s[active:] for s in states))
            states = tuple(s[:active] for s in states)
        elif active > rows:
            states = tuple(
                torch.cat((s, first[rows:active])) for s, first in zip(states, initial, strict=True)
            )
        states = direction.step(t, inputs[t], states)
        outputs.append(states[0])
        lasts.append(states[-1])
    final = tuple(torch.cat(parts) for parts in zip(states, *reversed(ended), strict=True))
    if reverse:
        outputs.reverse()
        lasts.reverse()
    joined = torch.stack if batch_sizes is None else torch.cat
    return joined(outputs), final, joined(lasts)
