"""Layers whose equations torch.nn has not, by an option or by their cell: where they run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnfused._layer import LayerConfig
from rnnfused._load import build_info

__all__ = ["in_float32", "is_native"]


def is_native(layer: LayerConfig, input: Tensor) -> bool:
    """Whether native code runs such a layer; otherwise torch's operations do, step by step."""
    device = input.device.type
    if layer.projected or not (device in ("cpu", "meta") or (device == "cuda" and build_info.cuda)):
        return False
    return device == "cuda" or input.dtype in (torch.float32, torch.float64)


def in_float32(
    input: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The same with all tensors of 16 bits in 32: what autocast means to such a layer."""

    def wide(t: Tensor) -> Tensor:
        return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t

    return wide(input), [wide(s) for s in hx], [wide(p) for p in params]
