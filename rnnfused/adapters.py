"""Layers of reinforcement learning packages, run by rnnfused. None of the packages is imported here."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from rnnfused._convert import convert
from rnnfused.modules import LSTM

__all__ = ["recurrent_ppo"]

P = TypeVar("P", bound=torch.nn.Module)


def recurrent_ppo(policy: P) -> P:
    """Makes a policy of sb3-contrib's RecurrentPPO run its LSTMs in one call each; returns it.

    Where an episode begins inside of a sequence, the package calls the layer for one step after the other;
    here the beginnings are `resets`. The policy changes in place: its LSTMs are converted
    (`rnnfused.convert`), and the method that runs them is replaced; parameters, optimizer and saved files
    stay as they are. For a model: recurrent_ppo(model.policy), after it was made or loaded.

    Raises TypeError for what has no such method or no LSTM that is converted.
    """
    if not callable(getattr(policy, "_process_sequence", None)):
        raise TypeError(
            f"policy: expected a recurrent policy of sb3-contrib's RecurrentPPO, got {type(policy).__name__}"
        )
    convert(policy)
    if not any(isinstance(layer, LSTM) for layer in policy.modules()):
        raise TypeError("policy: expected LSTMs to convert, got none (rnnfused.conversions says why)")
    setattr(policy, "_process_sequence", _process_sequence)  # noqa: B010 (a method, to mypy)
    return policy


def _process_sequence(
    features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Any
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """features [B T, I], sequence by sequence; states [L, B, H]; episode_starts [B T], 0 or 1. Returns the
    output [B T, H] and the final states.
    """
    sequences = lstm_states[0].size(1)
    x = features.reshape(sequences, -1, lstm.input_size).transpose(0, 1)
    resets = (episode_starts != 0).reshape(sequences, -1).t()
    y, states = lstm(x, lstm_states, resets=resets)
    return y.transpose(0, 1).flatten(0, 1), states
