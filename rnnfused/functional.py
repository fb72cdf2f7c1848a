"""Stateless forms of the layers and cells.

`params` is the flat list of torch's modules: for each layer, and in it for each direction, weight_ih,
weight_hh, then bias_ih and bias_hh if there are biases, then weight_hr if there is a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

from rnnfused._autograd import followed, layer, plain
from rnnfused._checks import (
    SLOTS,
    check_cell,
    check_dimensions,
    check_dropout,
    check_params,
    check_sequence,
)
from rnnfused.cells import CELLS, CellSpec

__all__ = ["Options", "gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]


class Options(TypedDict, total=False):
    """What `rnn`, `lstm` and `gru` take beside their tensors.

    has_biases: whether params hold biases (True). num_layers: 1. dropout: the probability with which an
    element of a layer's output, the last one's excepted, is zeroed in training (0). training: False.
    bidirectional: False. batch_first: whether input and output are [B, T, .] (False). batch_sizes: of a
    PackedSequence (None). recompute: whether training keeps only the outputs, c and the gates of the last
    steps (512 rows, and a quarter of all, at most; on a GPU none), and backward rebuilds the others (False):
    a fifth to two fifths of what an LSTM's layer keeps beside its output, for up to 1.3 times the time; the
    same gradients.
    """

    has_biases: bool
    num_layers: int
    dropout: float
    training: bool
    bidirectional: bool
    batch_first: bool
    batch_sizes: Tensor | None
    recompute: bool


def rnn(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]:
    """Vanilla RNN (Elman 1990): h' = act(W_ih x + b_ih + W_hh h + b_hh), with act = tanh or relu.

    input: [T, B, I] ([B, T, I] if batch_first), or the data of a PackedSequence, [rows, I], with its
    batch_sizes [T]. hx: [L D, B, H], never batch-first. float32 or float64, on a
    GPU also float16 or bfloat16, the same throughout. options: `Options`.
    Returns the output [T, B, D H] (laid out as the input) and h_n [L D, B, H]. Raises ValueError for an
    unknown nonlinearity or a wrong number of params, TypeError for an unknown option, RuntimeError for wrong
    sizes, dtypes or devices, and for an empty sequence.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    output, (h_n,) = stack(CELLS[f"rnn_{nonlinearity}"], input, (hx,), params, **options)
    return output, h_n


def lstm(
    input: Tensor, hx: tuple[Tensor, Tensor], params: Sequence[Tensor], **options: Unpack[Options]
) -> tuple[Tensor, Tensor, Tensor]:
    """LSTM (Hochreiter & Schmidhuber 1997, forget gate of Gers et al. 2000; projection of Sak et al. 2014).

    As `rnn`, with hx = (h_0 [L D, B, P], c_0 [L D, B, H]); P is H, or the projection's size where h_0 is
    narrower than c_0, and then params hold weight_hr [P, H]. Returns output [T, B, D P], h_n and c_n.
    """
    output, (h_n, c_n) = stack(CELLS["lstm"], input, tuple(hx), params, **options)
    return output, h_n, c_n


def gru(
    input: Tensor, hx: Tensor, params: Sequence[Tensor], **options: Unpack[Options]
) -> tuple[Tensor, Tensor]:
    """GRU (Cho et al. 2014) with the reset gate applied after the recurrent product, as torch. Otherwise as
    `rnn`.
    """
    output, (h_n,) = stack(CELLS["gru"], input, (hx,), params, **options)
    return output, h_n


def rnn_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step of `rnn`: input [B, I], hx [B, H]; returns h' [B, H]."""
    if nonlinearity not in ("tanh", "relu"):
        raise RuntimeError(f"Unknown nonlinearity: {nonlinearity}")
    return _cell(CELLS[f"rnn_{nonlinearity}"], input, (hx,), (w_ih, w_hh, b_ih, b_hh))[0]


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `lstm`: input [B, I], hx = (h, c) of [B, H]; returns (h', c')."""
    h, c = _cell(CELLS["lstm"], input, tuple(hx), (w_ih, w_hh, b_ih, b_hh))
    return h, c


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step of `gru`: input [B, I], hx [B, H]; returns h' [B, H]."""
    return _cell(CELLS["gru"], input, (hx,), (w_ih, w_hh, b_ih, b_hh))[0]


def _cell(
    spec: CellSpec,
    input: Tensor,
    hx: tuple[Tensor, ...],
    weights: tuple[Tensor | None, ...],
) -> tuple[Tensor, ...]:
    check_cell(spec, input, hx, weights)
    _, states = layer(spec.name, input.unsqueeze(0), tuple(s.unsqueeze(0) for s in hx), (*weights, None))
    return tuple(s.squeeze(0) for s in states)


def stack(
    spec: CellSpec,
    input: Tensor,
    hx: tuple[Tensor, ...],
    params: Sequence[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What `rnn`, `lstm` and `gru` have in common: layer over layer, with dropout between them as in torch.

    The native layers check all that they are given: what one call takes is checked here only once it was
    refused, for torch's words. Checking twice would take as long as a step.
    """
    check_dropout(dropout)
    drops = training and dropout > 0 and num_layers > 1
    directions = 2 if bidirectional else 1
    refused: Exception | None = None
    try:
        if not drops and not followed(input, *hx, *params):
            return plain(
                spec.name, input, hx, params, batch_sizes, has_biases, num_layers, bidirectional, batch_first
            )
        if num_layers == 1:
            x, weights = _arranged(input, hx, params, has_biases, directions, batch_first, batch_sizes)
            y, final = layer(spec.name, x, hx, weights, batch_sizes, recompute)
            return _as_given(y, batch_first, batch_sizes), final
    except Exception as error:
        refused = error
    check_dimensions(input, batch_sizes)
    x, weights = _arranged(input, hx, params, has_biases, num_layers * directions, batch_first, batch_sizes)
    check_sequence(spec, x, hx, num_layers * directions, batch_sizes)
    if refused is not None:
        raise refused
    finals = []
    for index in range(num_layers):
        if index > 0 and drops:
            x = torch.nn.functional.dropout(x, dropout, training=True)
        own = slice(index * directions, (index + 1) * directions)
        slots = weights[own.start * SLOTS : own.stop * SLOTS]
        x, final = layer(spec.name, x, tuple(s[own] for s in hx), slots, batch_sizes, recompute)
        finals.append(final)
    return _as_given(x, batch_first, batch_sizes), tuple(
        torch.cat(states) for states in zip(*finals, strict=True)
    )


def _arranged(
    input: Tensor,
    hx: tuple[Tensor, ...],
    params: Sequence[Tensor],
    has_biases: bool,
    parts: int,
    batch_first: bool,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """The input by steps, and the weights of each of the parts (layers, directions) in their slots."""
    projected = len(hx) > 1 and hx[0].shape[-1] != hx[1].shape[-1]
    weights = check_params(params, has_biases, projected, parts)
    return _as_given(input, batch_first, batch_sizes), weights


def _as_given(x: Tensor, batch_first: bool, batch_sizes: Tensor | None) -> Tensor:
    """From the caller's order of steps and batch to the layers', or back."""
    return x.transpose(0, 1) if batch_first and batch_sizes is None else x
