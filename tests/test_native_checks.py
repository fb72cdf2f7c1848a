"""The native boundary trusts nobody: every check of csrc/torch/inputs.cpp, tripped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rnnfused._load import _C, build_info

T, B, INPUT, H, P = 3, 2, 4, 5, 3


def forward_arguments(projected: bool = False) -> dict[str, Any]:
    width = P if projected else H
    return {
        "cell": "lstm",
        "x": torch.randn(T, B, INPUT),
        "h0": torch.randn(1, B, width),
        "c0": torch.randn(1, B, H),
        "weights": [
            torch.randn(4 * H, INPUT),
            torch.randn(4 * H, width),
            torch.randn(4 * H),
            torch.randn(4 * H),
            torch.randn(P, H) if projected else None,
        ],
        "batch_sizes": None,
        "recompute": False,
    }


def backward_arguments() -> dict[str, Any]:
    given = forward_arguments()
    y, hn, cn, tape = _C.layer_forward(**given, save=True)
    return given | {"y": y, "tape": tape, "dy": y, "dhn": hn, "dcn": cn, "wanted": [True] * 8}


def weights(slot: int, value: Tensor | None) -> list[Tensor | None]:
    found: list[Tensor | None] = forward_arguments()["weights"]
    found[slot] = value
    return found


FORWARD: list[tuple[dict[str, Any], str]] = [
    ({"cell": "elman"}, "cell: unknown cell 'elman'"),
    (
        {"x": torch.zeros(T, B, INPUT, device="meta")},
        "input: expected a tensor on the CPU or a CUDA device, got meta"
        if build_info.cuda
        else r"input: expected a tensor on the CPU \(rnnfused was built without CUDA kernels: .*\), got meta",
    ),
    ({"x": torch.zeros(T, B, INPUT).half()}, "input: expected dtype float32 or float64, got Half"),
    ({"x": torch.zeros(T, INPUT)}, "input: expected 3 dimensions, got 2"),
    ({"x": torch.zeros(T, B, INPUT + 1)}, r"weight_ih: expected size \[20, 5\], got \[20, 4\]"),
    ({"h0": torch.zeros(B, H)}, "h0: expected 3 dimensions, got 2"),
    ({"h0": torch.zeros(1, B + 1, H)}, r"h0: expected size \[1, 2, 5\], got \[1, 3, 5\]"),
    ({"h0": torch.zeros(1, B, H + 1)}, r"h0: expected at most hidden_size \(5\) units, got 6"),
    ({"h0": torch.zeros(1, B, P)}, r"weight_hh: expected size \[20, 3\], got \[20, 5\]"),
    ({"h0": torch.zeros(1, B, H).double()}, "h0: expected dtype Float, got Double"),
    ({"h0": torch.zeros(1, B, H, device="meta")}, "h0: expected a tensor on cpu, got meta"),
    ({"c0": None}, "c0: expected a tensor, got none"),
    ({"cell": "rnn_tanh"}, "c0: expected none, got a tensor"),
    ({"c0": torch.zeros(1, B, P)}, r"c0: expected size \[1, 2, 5\], got \[1, 2, 3\]"),
    ({"weights": []}, "weights: expected 5 or 10 entries, got 0"),
    ({"weights": weights(0, None)}, r"weight_ih: expected \[4 \* hidden_size, input_size\]"),
    (
        {"weights": weights(0, torch.zeros(21, INPUT))},
        r"weight_ih: expected \[4 \* hidden_size, input_size\]",
    ),
    ({"weights": weights(1, None)}, r"weight_hh: expected a tensor of size \[20, 5\], got none"),
    ({"weights": weights(2, torch.zeros(4))}, r"bias_ih: expected size \[20\], got \[4\]"),
    ({"weights": weights(3, torch.zeros(20, 1))}, r"bias_hh: expected size \[20\], got \[20, 1\]"),
    ({"weights": weights(4, torch.zeros(P, H))}, r"weight_hr: expected none, since h0 has hidden_size \(5\)"),
]


@pytest.mark.parametrize("change, message", FORWARD)
def test_forward_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        _C.layer_forward(**(forward_arguments() | change), save=False)


@pytest.mark.parametrize(
    "batch_sizes, message",
    [
        (torch.tensor([2, 1]).int(), "batch_sizes: expected a one-dimensional int64 tensor"),
        (torch.tensor([[2, 1]]), "batch_sizes: expected a one-dimensional int64 tensor"),
        (torch.tensor([], dtype=torch.int64), "batch_sizes: expected at least one step, got none"),
        (torch.tensor([1, 2]), "batch_sizes: expected sizes that never grow, got 2 after 1"),
        (torch.tensor([2, -1]), "batch_sizes: expected sizes that never grow, got -1 after 2"),
        (torch.tensor([2, 2]), r"batch_sizes: expected a sum of 3 \(the rows of input\), got 4"),
    ],
)
def test_batch_sizes_are_refused(batch_sizes: Tensor, message: str) -> None:
    given = forward_arguments() | {"x": torch.zeros(3, INPUT), "batch_sizes": batch_sizes}
    with pytest.raises(RuntimeError, match=message):
        _C.layer_forward(**given, save=False)


def test_a_projection_needs_its_weights() -> None:
    given = forward_arguments(projected=True)
    given["weights"][4] = None
    with pytest.raises(RuntimeError, match=r"weight_hr: expected a tensor of size \[3, 5\], got none"):
        _C.layer_forward(**given, save=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"y": torch.zeros(T, B, P)}, r"output: expected size \[3, 2, 5\], got \[3, 2, 3\]"),
        ({"y": torch.zeros(T, B, H).double()}, "output: expected dtype Float, got Double"),
        ({"tape": torch.zeros(1, 7)}, r"tape: expected size \[1, \d+\], got \[1, 7\]"),
        ({"recompute": True}, r"tape: expected size \[1, \d+\], got \[1, \d+\]"),
        ({"dy": torch.zeros(T, B, P)}, r"grad_output: expected size \[3, 2, 5\], got \[3, 2, 3\]"),
        ({"dhn": torch.zeros(1, B, P)}, r"grad_h_n: expected size \[1, 2, 5\], got \[1, 2, 3\]"),
        ({"dcn": torch.zeros(1, B, H).double()}, "grad_c_n: expected dtype Float, got Double"),
        ({"wanted": [True]}, "wanted: expected 8 entries, got 1"),
    ],
)
def test_backward_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        _C.layer_backward(**(backward_arguments() | change))


def test_a_strided_tape_is_refused() -> None:
    given = backward_arguments()
    given["tape"] = given["tape"].repeat_interleave(2, 1)[:, ::2]
    with pytest.raises(RuntimeError, match="tape: expected a contiguous tensor"):
        _C.layer_backward(**given)


def test_directions_of_a_plan() -> None:
    with pytest.raises(ValueError, match="directions: expected 1 or 2, got 0"):
        _C.describe_plan("gru", 1, 1, 1, 1, 1, 1, 0, False)
