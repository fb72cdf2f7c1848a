"""What sequences with lengths and resets give, made of calls on one piece of one sequence each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from rnnfused._layer import LayerConfig
from rnnfused._ops import recurrent

__all__ = ["pieces_of", "split_by_hand", "torch_on_pieces"]


def pieces_of(length: int, resets: Sequence[bool]) -> list[tuple[int, int]]:
    """First step and end of each piece into which a sequence is cut."""
    cuts = [0, *(t for t in range(1, length) if resets[t]), length]
    return [] if length == 0 else list(itertools.pairwise(cuts))


def split_by_hand(
    module: Any, x: Tensor, hx: Sequence[Tensor], lengths: Sequence[int], resets: Tensor
) -> list[Tensor]:
    """For x [T, B, I], resets [T, B]: the output [T, B, D P], the final states and, with return_cells, c of
    every step.
    """
    layer: LayerConfig = module._config()
    params = module._params()
    each, directions = layer.params_each * layer.directions, layer.directions
    sequences = [x[:length, b] for b, length in enumerate(lengths)]
    finals = []
    for index in range(layer.num_layers):
        own = params[index * each : (index + 1) * each]
        states = [s[index * directions : (index + 1) * directions] for s in hx]
        results = [
            _sequence(layer.single, sequence, [s[:, b] for s in states], own, resets[:, b].tolist())
            for b, sequence in enumerate(sequences)
        ]
        sequences = [y for y, _, _ in results]
        finals.append([torch.stack(parts, 1) for parts in zip(*(f for _, f, _ in results), strict=True)])

    def padded(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.cat((y, y.new_zeros(len(x) - len(y), y.size(1)))) for y in parts], 1)

    cells = [padded([c for _, _, c in results])] if layer.cells else []
    return [padded(sequences), *(torch.cat(parts) for parts in zip(*finals, strict=True)), *cells]


def _sequence(
    layer: LayerConfig,
    x: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    resets: Sequence[bool],
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Of one sequence [T, I] with states [D, units]: output, final states, and c of every step or nothing."""
    pieces = pieces_of(len(x), resets)
    if not pieces:
        first_units, last_units = (layer.directions * states[place].size(-1) for place in (0, -1))
        return x.new_zeros(0, first_units), list(states), x.new_zeros(0, last_units)
    batched = dataclasses.replace(layer, batch_first=False, recompute=False)
    first, last = not resets[0], len(pieces) - 1
    outputs, cells, ends = [], [], []
    for index, (start, end) in enumerate(pieces):
        begins = [index == 0 and first, index == last][: layer.directions]
        hx = [
            torch.stack([s if begin else torch.zeros_like(s) for s, begin in zip(state, begins, strict=True)])
            for state in states
        ]
        y, *final = recurrent(batched, x[start:end].unsqueeze(1), [s.unsqueeze(1) for s in hx], params)
        outputs.append(y.squeeze(1))
        if layer.cells:
            cells.append(final.pop().squeeze(1))
        ends.append([s.squeeze(1) for s in final])
    # Forward ends at the end of the sequence, the backward direction at its beginning.
    final = []
    for k in range(len(states)):
        parts = [ends[-1][k][0]]
        if layer.bidirectional:
            parts.append(ends[0][k][1] if first else torch.zeros_like(parts[0]))
        final.append(torch.stack(parts))
    return torch.cat(outputs), final, torch.cat(cells or [x.new_zeros(0, 0)])


def torch_on_pieces(
    module: torch.nn.RNNBase,
    x: Tensor,
    hx: Sequence[Tensor] | None,
    lengths: Sequence[int],
    resets: Tensor,
) -> list[Tensor]:
    """The same of torch.nn's layer, which runs all pieces as one PackedSequence: the output [T, B, D P] and
    the final states.
    """
    pieces = [
        (b, *ends) for b, length in enumerate(lengths) for ends in pieces_of(length, resets[:, b].tolist())
    ]
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)
    directions = 1 + module.bidirectional
    if hx is None:
        count = 2 if isinstance(module, torch.nn.LSTM) else 1
        hx = [x.new_zeros(module.num_layers * directions, x.size(1), size) for size in sizes[:count]]
    if not pieces:
        nothing = sum(0 * t.sum() for t in (x, *module.parameters()))  # of which each has a gradient
        return [x.new_zeros(*x.shape[:2], directions * sizes[0]) + nothing, *hx]
    begins = [[start == 0 and not resets[0, b], end == lengths[b]] for b, start, end in pieces]
    own = []
    for state in hx:
        of_pieces = state[:, [b for b, _, _ in pieces]]
        keep = torch.tensor(begins).t()[:directions].repeat(module.num_layers, 1)
        own.append(of_pieces.masked_fill(~keep.unsqueeze(-1), 0))
    packed = pack_sequence([x[start:end, b] for b, start, end in pieces], enforce_sorted=False)
    given: Any = tuple(own) if len(own) > 1 else own[0]
    y, final = module(packed, given)
    rows = pad_packed_sequence(y)[0]
    columns: list[list[Tensor]] = [[] for _ in lengths]
    for index, (b, start, end) in enumerate(pieces):
        columns[b].append(rows[: end - start, index])
    output = torch.stack(
        [
            torch.cat((*parts, rows.new_zeros(len(x) - length, rows.size(-1))))
            for parts, length in zip(columns, lengths, strict=True)
        ],
        1,
    )
    finals = []
    for state, ends in zip(hx, final if isinstance(final, tuple) else (final,), strict=True):
        parts = []
        for b in range(len(lengths)):
            of_row = [index for index, piece in enumerate(pieces) if piece[0] == b]
            if not of_row:
                parts.append(state[:, b])
                continue
            last = ends[:, of_row[-1]]
            if module.bidirectional:
                back = ends[:, of_row[0]] * float(begins[of_row[0]][0])
                is_back = torch.arange(len(last)) % 2 == 1
                last = torch.where(is_back.unsqueeze(1), back, last)
            parts.append(last)
        finals.append(torch.stack(parts, 1))
    return [output, *finals]
