"""A decoder's sequence made of its steps."""

from __future__ import annotations

import torch
from torch import Tensor

from rnnfused.attention import Memory
from rnnfused.seq2seq import AttentionDecoder, Decoded, DecoderState

__all__ = ["by_steps"]


def by_steps(decoder: AttentionDecoder, tokens: Tensor, memory: Memory, state: DecoderState) -> Decoded:
    scores, weights = [], []
    for given in tokens:
        of_step = decoder.step(given, memory, state)
        state = of_step.state
        scores.append(of_step.scores)
        weights.append(of_step.weights)
    return Decoded(torch.stack(scores), torch.stack(weights), state)
