"""Sequences of unequal length, padded to a batch: how each backend is told of their lengths."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import rnnfused

_OURS = (rnnfused.RNN, rnnfused.GRU, rnnfused.LSTM)


def pad(sequences: Sequence[Tensor], batch_first: bool = True) -> tuple[Tensor, Tensor]:
    """Sequences [T_i, ...] as one tensor [B, T, ...], padded with zeros, and their lengths [B]."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return pad_sequence(list(sequences), batch_first=batch_first), lengths


def mask(lengths: Tensor) -> Tensor:
    """Which of [B, T] is no padding."""
    return torch.arange(int(lengths.max())) < lengths.unsqueeze(1)


def run_ragged(layer: nn.RNNBase, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
    """A layer's padded output and final states: rnnfused's with `lengths=`, torch.nn's packed and padded
    again, as its users must.
    """
    if isinstance(layer, _OURS):
        return layer(padded, lengths=lengths)
    packed = pack_padded_sequence(padded, lengths, layer.batch_first, enforce_sorted=False)
    output, states = layer(packed)
    steps = padded.shape[1 if layer.batch_first else 0]
    return pad_packed_sequence(output, layer.batch_first, total_length=steps)[0], states
