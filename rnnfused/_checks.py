"""Every check of arguments that Python makes: before any work, naming the argument, what was expected and
what came.

Sizes, dtypes and devices of single layers are checked once more at the native boundary
(csrc/torch/inputs.cpp), which trusts nobody; here stand those that need words of torch's own, or that see
more than one layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rnnfused._load import _C
from rnnfused.cells import CellSpec

__all__ = [
    "SLOTS",
    "check_cell",
    "check_dimensions",
    "check_dropout",
    "check_input",
    "check_params",
    "check_sequence",
]

SLOTS = 5  # of a layer's weights in one direction; absent ones are None


def check_input(input: Tensor) -> None:
    """Raises RuntimeError unless kernels exist for the tensor's device and dtype."""
    _C.check_input(input)


def check_dropout(dropout: float) -> None:
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a probability in [0, 1], got {dropout}")


def check_dimensions(input: Tensor, batch_sizes: Tensor | None) -> None:
    dimensions = 3 if batch_sizes is None else 2
    if input.dim() != dimensions:
        raise RuntimeError(f"input must have {dimensions} dimensions, got {input.dim()}")


def check_sequence(
    spec: CellSpec, input: Tensor, hx: tuple[Tensor, ...], layers: int, batch_sizes: Tensor | None
) -> None:
    """Checks what one layer cannot see; `input` is [T, B, I], or [rows, I] with batch_sizes."""
    check_input(input)
    if len(hx) != len(spec.states):
        raise RuntimeError(
            f"hx: expected {len(spec.states)} states ({', '.join(spec.states)}), got {len(hx)}"
        )
    for name, state in zip(spec.states, hx, strict=True):
        if state.dim() != 3 or state.shape[0] != layers:
            raise RuntimeError(f"{name}_0: expected size [{layers}, batch, units], got {list(state.shape)}")
    if batch_sizes is None and input.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def check_params(
    params: Sequence[Tensor], has_biases: bool, projected: bool, layers: int
) -> list[Tensor | None]:
    """The flat list with all SLOTS of every layer and direction: W_ih, W_hh, b_ih, b_hh, W_hr."""
    each = 2 + 2 * has_biases + projected
    if len(params) != each * layers:
        raise ValueError(
            f"params: expected {each * layers} tensors ({each} for each of {layers}), got {len(params)}"
        )
    slots: list[Tensor | None] = []
    for first in range(0, len(params), each):
        slots += params[first : first + each]
        if not has_biases:
            slots[first // each * SLOTS + 2 : first // each * SLOTS + 2] = [None, None]
        if not projected:
            slots.append(None)
    return slots


def check_cell(
    spec: CellSpec, input: Tensor, hx: tuple[Tensor, ...], weights: tuple[Tensor | None, ...]
) -> None:
    """Raises what torch's cells raise for sizes that do not match."""
    check_input(input)
    w_ih, w_hh = weights[:2]
    assert w_ih is not None and w_hh is not None
    if input.size(1) != w_ih.size(1):
        raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {w_ih.size(1)}")
    for index, state in enumerate(hx):
        if input.size(0) != state.size(0):
            raise RuntimeError(
                f"Input batch size {input.size(0)} doesn't match hidden{index} batch size {state.size(0)}"
            )
        if state.size(1) != w_hh.size(1):
            raise RuntimeError(
                f"hidden{index} has inconsistent hidden_size: got {state.size(1)}, expected {w_hh.size(1)}"
            )
