"""Layers whose equations torch.nn has not, by an option or by their cell: where they run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnfused._layer import LayerConfig
from rnnfused._load import build_info

__all__ = ["in_float32", "native_dtype"]

NARROW = (torch.float16, torch.bfloat16)


def native_dtype(layer: LayerConfig, input: Tensor) -> torch.dtype | None:
    """The type in which native code runs such a layer: the input's, or float32 for 16 bits on the CPU.

    None where torch's operations run it, step by step.
    """
    device = input.device.type
    if layer.projected:
        return None
    if device == "cuda":
        return input.dtype if build_info.cuda else None
    if device not in ("cpu", "meta"):
        return None
    return torch.float32 if input.dtype in NARROW else input.dtype


def in_float32(
    input: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The same with all tensors of 16 bits in 32."""

    def wide(t: Tensor) -> Tensor:
        return t.float() if t.dtype in NARROW else t

    return wide(input), [wide(s) for s in hx], [wide(p) for p in params]
