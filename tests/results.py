"""What layers return, in whatever form, as a list of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["assert_same_bits", "tensors"]


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [tensor for part in result for tensor in tensors(part)]


def assert_same_bits(got: Any, want: Any) -> None:
    """Every tensor has the bits of its counterpart, and lies as that one does."""
    for one, other in zip(tensors(got), tensors(want), strict=True):
        assert one.stride() == other.stride()
        assert torch.equal(one, other)
