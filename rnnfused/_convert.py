"""Swaps recurrent layers inside a model, in either direction."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from rnnfused import modules
from rnnfused._weights import Weights

__all__ = ["convert", "to_torch"]

M = TypeVar("M", bound=torch.nn.Module)

_NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
_OURS: dict[type, type] = {getattr(torch.nn, name): getattr(modules, name) for name in _NAMES}
_TORCH: dict[type, type] = {ours: theirs for theirs, ours in _OURS.items()}


def convert(module: M) -> M:
    """Makes every torch.nn.RNN, LSTM, GRU and cell in `module` rnnfused's, `module` included; returns it.

    Layers change in place, their type only. They stay the same objects with the same Parameters, so that
    optimizers, hooks, parametrisations, pruning and whatever else holds a layer go on working. Layers of
    other types, subclasses included, are left alone: what they override is unknown. Raises TypeError if
    `module` is not a torch.nn.Module.
    """
    return _retype(module, _OURS)


def to_torch(module: M) -> M | torch.nn.Module:
    """The reverse of `convert`: every rnnfused layer in `module` becomes torch.nn's again, in place.

    What torch.nn's layers do not have goes: recompute.
    """
    return _retype(module, _TORCH)


def _retype(module: M, types: dict[type, type]) -> M:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    for layer in module.modules():
        source = type_before_parametrizations(layer)
        if source in types:
            _become(layer, source, types[source])
    return module


def _become(layer: torch.nn.Module, source: type, target: type) -> None:
    """Both classes keep exactly torch.nn's attributes, but for those that `source` names."""
    for name in getattr(source, "_beyond_torch", ()):
        layer.__dict__.pop(name, None)
    if is_parametrized(layer):
        # torch makes a class for each parametrised layer, with the properties that compute its weights.
        own = dict(vars(type(layer)))
        layer.__class__ = type(f"Parametrized{target.__name__}", (target,), own)
    else:
        layer.__class__ = target
    if isinstance(layer, Weights):
        layer._drop_graphs()
