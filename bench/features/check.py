"""What probes compare, and how closely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["bits", "flat", "raises", "same", "trained"]

# float32 sums of some dozen terms of order 1, in another order, through a handful of steps: assert_close's
# own bounds for values, ten times them for gradients, which are sums over all steps.
VALUES: dict[str, float] = {"rtol": 1.3e-6, "atol": 1e-5}
GRADIENTS: dict[str, float] = {"rtol": 1.3e-5, "atol": 1e-4}


def flat(value: Any) -> list[Tensor]:
    """The tensors of a result, in their order: output, h, c."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for key in sorted(value) for tensor in flat(value[key])]
    return [tensor for part in value for tensor in flat(part)]


def same(got: Any, want: Any, **bounds: Any) -> None:
    """Raises AssertionError unless both hold equal tensors: number, shapes, dtypes and values."""
    torch.testing.assert_close(flat(got), flat(want), **(bounds or (VALUES | {"check_layout": True})))


def bits(got: Any, want: Any) -> None:
    """The same, to the last bit."""
    same(got, want, rtol=0, atol=0, equal_nan=True)


def trained(call: Callable[..., Any], module: torch.nn.Module, *inputs: Any) -> list[Tensor]:
    """Results of call(*inputs), then gradients of inputs and parameters, of a loss that uses every result."""
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, tuple) and not isinstance(value, PackedSequence):
            return tuple(leaf(part) for part in value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1]

    inputs = tuple(leaf(value) for value in inputs)
    module.zero_grad()
    results = flat(call(*inputs))
    torch.stack([result.sin().sum() for result in results]).sum().backward()
    gradients = [leaf.grad for leaf in leaves] + [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None for gradient in gradients), "a gradient is missing"
    return [result.detach() for result in results] + [g for g in gradients if g is not None]


def raises(call: Callable[[], Any]) -> Exception:
    """What the call raises. AssertionError if nothing."""
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")
