"""Forms of a batch of sequences that torch.nn's layers do not have, as the operators take them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from rnnfused._layer import Layout

__all__ = ["Sequences", "detach"]


class Sequences:
    """A batch given by lengths, resets, cu_seqlens or as a nested jagged tensor: `input` and `layout` are
    what the operators take, `like_input` makes their output what the caller expects.
    """

    input: Tensor
    layout: Layout

    def __init__(self, input: Any, lengths: Any, resets: Tensor | None, cu_seqlens: Tensor | None) -> None:
        self._offsets: Tensor | None = None
        if not isinstance(input, Tensor):
            input.dim()  # AttributeError for what is no tensor, as torch.nn's
        if input.is_nested:
            input, lengths, resets = self._rows_of_nested(input, lengths, resets, cu_seqlens)
        elif cu_seqlens is not None:
            if lengths is not None:
                raise ValueError("lengths: expected none with cu_seqlens, which tell them")
            if input.dim() != 2:
                raise RuntimeError(f"input must have 2 dimensions with cu_seqlens, got {input.dim()}")
            lengths = _lengths_of(cu_seqlens)
        elif lengths is not None:
            if not isinstance(lengths, Tensor):
                lengths = torch.as_tensor(lengths)
            if input.dim() == 2:
                raise RuntimeError(
                    "lengths: expected a batch of padded sequences, got an input of 2 dimensions "
                    "(for rows one sequence after the other give cu_seqlens)"
                )
        self.input, self.layout = input, Layout(None, lengths, resets)

    def _rows_of_nested(
        self, input: Any, lengths: Any, resets: Any, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        for name, given in (("lengths", lengths), ("cu_seqlens", cu_seqlens)):
            if given is not None:
                raise ValueError(f"{name}: expected none with a nested tensor, which has its own")
        if input.layout != torch.jagged or input.dim() != 3:
            raise ValueError(
                "input: expected a nested tensor of layout torch.jagged and size [B, T_b, I], got layout "
                f"{input.layout} and {input.dim()} dimensions"
            )
        if input.lengths() is not None:
            raise ValueError("input: expected a nested tensor without holes (call contiguous() on it)")
        self._offsets = input.offsets()
        if resets is not None and resets.is_nested:
            resets = resets.values()
        return input.values(), _lengths_of(self._offsets), resets

    def like_input(self, output: Tensor) -> Tensor:
        if self._offsets is None:
            return output
        return torch.nested.nested_tensor_from_jagged(output, self._offsets)


def _lengths_of(offsets: Tensor) -> Tensor:
    if not isinstance(offsets, Tensor):
        raise TypeError(f"cu_seqlens: expected a tensor, got {type(offsets).__name__}")
    if offsets.dim() != 1 or offsets.size(0) == 0:
        raise RuntimeError(
            f"cu_seqlens: expected size [sequences + 1], beginning with 0, got {list(offsets.shape)}"
        )
    if _can_be_read(offsets) and offsets[0] != 0:
        raise RuntimeError(f"cu_seqlens: expected 0 as its first, got {int(offsets[0])}")
    return offsets.diff()


def _can_be_read(t: Tensor) -> bool:
    """Whether its numbers are there, on the host, and no trace asks what is done with them."""
    return (
        type(t) is Tensor
        and t.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and _get_current_dispatch_mode() is None
    )


def detach(hx: Any) -> Any:
    """States to carry over to the next part of a sequence, cut off from the graph of this one: truncated
    back-propagation through time (Williams & Peng 1990).

    hx: a tensor, a tuple or list of them, nested or not, or None; what a layer returned. Returns the same of
    detached tensors. Raises TypeError for anything else.
    """
    if hx is None:
        return None
    if isinstance(hx, Tensor):
        return hx.detach()
    if isinstance(hx, (tuple, list)):
        found = [detach(state) for state in hx]
        return (
            type(hx)(*found) if hasattr(hx, "_fields") else type(hx)(found)
        )  # a NamedTuple takes its fields
    raise TypeError(f"hx: expected a tensor, or tuples or lists of them, got {type(hx).__name__}")
