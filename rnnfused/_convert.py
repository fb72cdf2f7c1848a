"""Swaps recurrent layers inside a model, in either direction."""

from __future__ import annotations

from typing import TypeVar

import torch

from rnnfused import modules

__all__ = ["convert", "to_torch"]

M = TypeVar("M", bound=torch.nn.Module)

_NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
_OURS: dict[type, type] = {getattr(torch.nn, name): getattr(modules, name) for name in _NAMES}
_TORCH: dict[type, type] = {ours: theirs for theirs, ours in _OURS.items()}


def convert(module: M) -> M | torch.nn.Module:
    """Replaces every torch.nn.RNN, LSTM, GRU and cell in `module` by rnnfused's, and returns the module.

    The model is changed in place and keeps its Parameters, the same objects: optimizers go on working. Hooks,
    parametrisations, buffers and the training flag stay with the layer. A layer that stands in several places
    stays one. If `module` itself is such a layer, the returned layer takes its place. Layers of other types,
    subclasses included, are left alone: what they override is unknown. Raises TypeError if `module` is not a
    torch.nn.Module.
    """
    return _swap(module, _OURS)


def to_torch(module: M) -> M | torch.nn.Module:
    """The reverse of `convert`: torch.nn's layers in place of rnnfused's, with the same Parameters."""
    return _swap(module, _TORCH)


def _swap(module: M, types: dict[type, type]) -> M | torch.nn.Module:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    replaced: dict[int, torch.nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and _source(child) in types:
                parent._modules[name] = _once(child, types, replaced)
    return _once(module, types, replaced) if _source(module) in types else module


def _source(module: torch.nn.Module) -> type:
    """The layer's type; that of a parametrised layer is the one from which the parametrisation derived its
    own.
    """
    if torch.nn.utils.parametrize.is_parametrized(module):
        return type(module).__mro__[1]
    return type(module)


def _once(
    layer: torch.nn.Module, types: dict[type, type], replaced: dict[int, torch.nn.Module]
) -> torch.nn.Module:
    if id(layer) not in replaced:
        replaced[id(layer)] = _replace(layer, types[_source(layer)])
    return replaced[id(layer)]


def _replace(layer: torch.nn.Module, target: type) -> torch.nn.Module:
    """A `target` that shares all of the layer's state: both classes keep exactly torch.nn's attributes."""
    made: torch.nn.Module = object.__new__(target)
    made.__dict__.update(layer.__dict__)
    made.__dict__.pop("_layer", None)  # rnnfused's own description, made anew when it is asked for
    if torch.nn.utils.parametrize.is_parametrized(layer):
        # The properties that compute the weights live on a class made for this one layer.
        names = {name: value for name, value in vars(type(layer)).items() if isinstance(value, property)}
        made.__class__ = type(f"Parametrized{target.__name__}", (target,), names)
    return made
