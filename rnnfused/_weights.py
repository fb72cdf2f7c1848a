"""The weights of a layer as they are at a call, whoever has put them there."""

from __future__ import annotations

import weakref
from operator import is_
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from torch.nn.utils.prune import BasePruningMethod

__all__ = ["Weights", "is_of_weights", "with_computed_weights"]

M = TypeVar("M", bound=torch.nn.Module)


class Weights(torch.nn.RNNBase):
    """A recurrent layer whose weights may be set in each of the ways that torch.nn's layers honour.

    By name: a replaced Parameter, a parametrisation, pruning, functional_call, FSDP; these leave
    `_flat_weights`, torch.nn's list of them, as it was. And in that list, whole or by element, as older code
    for weight drop does; the names then hold what they held when the list was made, which is what
    `_flat_weight_refs` remember.
    """

    def _params(self) -> list[Any]:
        """The weights in the order of `_flat_weights_names`: Tensors, or None where there is none.

        Raises RuntimeError if `_flat_weights` was set to a list of another length.
        """
        names, flat = self._flat_weights_names, self._flat_weights
        # Nearly always the list holds what the names do. (== would compare numbers.)
        if len(flat) == len(names) and all(map(is_, map(self._parameters.get, names), flat)):
            return flat
        return self._settled()

    def _settled(self) -> list[Any]:
        """The weights where list and names differ: torch.nn's rule, weight by weight."""
        names, flat, refs = self._flat_weights_names, self._flat_weights, self._flat_weight_refs
        if len(flat) != len(names):
            raise RuntimeError(f"_flat_weights: expected {len(names)} weights, got {len(flat)}")
        weights = [self._named(name) for name in names]
        for index, (weight, listed, ref) in enumerate(zip(weights, flat, refs, strict=True)):
            if weight is listed:
                continue
            if weight is None or (ref is not None and ref() is weight):
                weights[index] = listed  # the name is as it was: the list was written to
            elif type(weight) is Parameter and not torch.compiler.is_compiling():
                # So that a later write to the list is seen. Nothing that belongs to a graph is kept.
                flat[index], refs[index] = weight, weakref.ref(weight)
        return weights

    def _named(self, name: str) -> Tensor | None:
        if name in self._parameters:
            return self._parameters[name]
        if hasattr(type(self), name):  # a parametrisation: what it raises is the caller's
            weight: Tensor = getattr(self, name)
            return weight
        return getattr(self, name, None)

    def _init_flat_weights(self) -> None:
        super()._init_flat_weights()
        self._drop_graphs()

    def _drop_graphs(self) -> None:
        """Keeps what a parametrisation has computed without its graph: with it the layer cannot be copied."""
        for index, name in enumerate(self._flat_weights_names):
            weight = self._flat_weights[index]
            if weight is not None and not weight.is_leaf and hasattr(type(self), name):
                self._flat_weights[index] = weight.detach()


def is_of_weights(hook: Any) -> bool:
    """Whether a hook before forward is one of torch.nn.utils (pruning, weight_norm, spectral_norm), which
    computes a weight from others.
    """
    return isinstance(hook, BasePruningMethod) or type(hook).__module__.startswith("torch.nn.utils.")


def with_computed_weights(module: M) -> M:
    """A module whose weights are those that a call in eval mode would compute, for who reads them without
    one: `module` itself, or a stand-in where hooks compute some, which leaves its attributes alone.
    """
    hooks = [hook for hook in module._forward_pre_hooks.values() if is_of_weights(hook)]
    if not hooks:
        return module
    stand_in = object.__new__(type(module))
    stand_in.__dict__.update(module.__dict__, training=False)
    with torch.no_grad():
        for hook in hooks:
            hook(stand_in, ())
    return stand_in
