"""The operators trust nobody: every check of csrc/torch, tripped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rnnfused._load import _C

T, B, INPUT, H, P = 3, 2, 4, 5, 3
LAYER = "lstm"


def forward_arguments(projected: bool = False) -> dict[str, Any]:
    width = P if projected else H
    return {
        "input": torch.randn(T, B, INPUT),
        "hx": [torch.randn(1, B, width), torch.randn(1, B, H)],
        "params": [
            torch.randn(4 * H, INPUT),
            torch.randn(4 * H, width),
            torch.randn(4 * H),
            torch.randn(4 * H),
            *([torch.randn(P, H)] if projected else []),
        ],
        "batch_sizes": None,
        "lengths": None,
        "resets": None,
        "layer": LAYER + (" projected" if projected else ""),
    }


def backward_arguments() -> dict[str, Any]:
    given = forward_arguments()
    y, hn, cn, tape = torch.ops.rnnfused.recurrent(**given, save=True)
    return given | {"output": y, "tape": tape, "grads": [y, hn, cn], "wanted": list(range(7))}


def params(place: int, value: Tensor) -> list[Tensor]:
    found: list[Tensor] = forward_arguments()["params"]
    found[place] = value
    return found


def hx(h: Tensor | None = None, c: Tensor | None = None) -> list[Tensor]:
    before = forward_arguments()["hx"]
    return [before[0] if h is None else h, before[1] if c is None else c]


FORWARD: list[tuple[dict[str, Any], str]] = [
    ({"layer": "elman"}, "cell: unknown cell 'elman'"),
    ({"layer": "lstm layers"}, "layer: unknown word 'layers' in 'lstm layers'"),
    ({"layer": "lstm layers=-1"}, "layer: unknown word 'layers=-1'"),
    ({"layer": "lstm step layers=2"}, "layer: a step has one layer in one direction"),
    ({"layer": "gru projected"}, "layer: a projection needs a cell with a state beside h"),
    (
        {"input": torch.zeros(T, B, INPUT).long()},
        r"RNN input dtype \(torch.int64\) does not match weight dtype",
    ),
    ({"input": torch.zeros(T, B, INPUT).half()}, r"RNN input dtype \(torch.float16\) does not match"),
    ({"input": torch.zeros(INPUT)}, "LSTM: Expected input to be 2D or 3D, got 1D instead"),
    (
        {"input": torch.zeros(T, B, INPUT + 1)},
        r"input.size\(-1\) must be equal to input_size. Expected 4, got 5",
    ),
    ({"input": torch.zeros(0, B, INPUT)}, "Expected sequence length to be larger than 0 in RNN"),
    ({"hx": hx(torch.zeros(B, H))}, r"hx and cx should also be 3-D but got \(2-D, 3-D\) tensors"),
    (
        {"hx": hx(torch.zeros(1, B + 1, H))},
        r"Expected hidden\[0\] size \(1, 2, 5\), got \[1, 3, 5\]",
    ),
    ({"hx": hx(torch.zeros(1, B, P))}, r"Expected hidden\[0\] size \(1, 2, 5\), got \[1, 2, 3\]"),
    ({"hx": hx(torch.zeros(1, B, H).double())}, "h0: expected dtype Float, got Double"),
    ({"hx": hx()[:1]}, r"hx: expected 2 states \(h, c\), got 1"),
    ({"layer": "rnn_tanh"}, r"hx: expected 1 state \(h\), got 2"),
    ({"hx": hx(None, torch.zeros(1, B, P))}, r"Expected hidden\[1\] size \(1, 2, 5\), got \[1, 2, 3\]"),
    ({"params": []}, r"params: expected 4 tensors \(4 for each of 1\), got 0"),
    ({"params": params(0, torch.zeros(4))}, "weight_ih: expected 2 dimensions, got 1"),
    ({"params": params(0, torch.zeros(21, INPUT))}, r"weight_ih_l0: expected size \[20, 4\], got \[21, 4\]"),
    (
        {"params": params(1, torch.zeros(21, H))},
        r"weight_hh: expected size \[4 \* hidden_size, hidden_size\]",
    ),
    ({"params": params(1, torch.zeros(20, P))}, r"weight_hh_l0: expected size \[20, 5\], got \[20, 3\]"),
    ({"params": params(2, torch.zeros(4))}, r"bias_ih_l0: expected size \[20\], got \[4\]"),
    ({"params": params(3, torch.zeros(20, 1))}, r"bias_hh_l0: expected size \[20\], got \[20, 1\]"),
    ({"params": params(3, torch.zeros(20).double())}, "bias_hh_l0: expected dtype Float, got Double"),
]


@pytest.mark.parametrize("change, message", FORWARD)
@pytest.mark.parametrize("save", [False, True])
def test_forward_refuses(change: dict[str, Any], message: str, save: bool) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.rnnfused.recurrent(**(forward_arguments() | change), save=save)


@pytest.mark.parametrize("change, message", FORWARD)
def test_tensors_without_memory_are_refused_in_the_same_words(change: dict[str, Any], message: str) -> None:
    given = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to("meta"), forward_arguments() | change)
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.rnnfused.recurrent(**given, save=False)


def test_several_layers_keep_no_tape() -> None:
    given = forward_arguments()
    given["params"] += [torch.zeros(4 * H, H), *given["params"][1:]]
    with pytest.raises(ValueError, match="save: expected one layer, got 2"):
        torch.ops.rnnfused.recurrent(**(given | {"layer": "lstm layers=2", "hx": []}), save=True)


@pytest.mark.parametrize(
    "batch_sizes, message",
    [
        (torch.tensor([2, 1]).int(), "batch_sizes: expected a one-dimensional int64 tensor"),
        (torch.tensor([[2, 1]]), "batch_sizes: expected a one-dimensional int64 tensor"),
        (torch.tensor([], dtype=torch.int64), "batch_sizes: expected at least one step, got none"),
        (torch.tensor([1, 2]), "batch_sizes: expected sizes that never grow, got 2 after 1"),
        (torch.tensor([2, -1]), "batch_sizes: expected sizes that never grow, got -1 after 2"),
        (torch.tensor([2, 2]), r"batch_sizes: expected a sum of 3 \(the rows of input\), got 4"),
        (torch.tensor([1, 1, 1]), r"Expected hidden\[0\] size \(1, 1, 5\), got \[1, 2, 5\]"),
    ],
)
def test_batch_sizes_are_refused(batch_sizes: Tensor, message: str) -> None:
    given = forward_arguments() | {"input": torch.zeros(3, INPUT), "batch_sizes": batch_sizes}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.rnnfused.recurrent(**given, save=False)


def test_a_projection_needs_its_weights() -> None:
    given = forward_arguments(projected=True)
    with pytest.raises(ValueError, match=r"params: expected 5 tensors \(5 for each of 1\), got 4"):
        torch.ops.rnnfused.recurrent(**(given | {"params": given["params"][:4]}), save=False)
    given["params"][4] = torch.zeros(P, H + 1)
    with pytest.raises(RuntimeError, match=r"weight_hr_l0: expected size \[3, 5\], got \[3, 6\]"):
        torch.ops.rnnfused.recurrent(**given, save=False)
    given["params"][1] = torch.zeros(4 * H, H)
    with pytest.raises(RuntimeError, match=r"weight_hr: expected a projection to fewer than 5 units"):
        torch.ops.rnnfused.recurrent(**given, save=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"output": torch.zeros(T, B, P)}, r"output: expected size \[3, 2, 5\], got \[3, 2, 3\]"),
        ({"output": torch.zeros(T, B, H).double()}, "output: expected dtype Float, got Double"),
        ({"tape": torch.zeros(1, 7)}, r"tape: expected size \[1, \d+\], got \[1, 7\]"),
        ({"grads": [torch.zeros(T, B, P), None, None]}, r"grad_output: expected size \[3, 2, 5\]"),
        ({"grads": [None, torch.zeros(1, B, P), None]}, r"grad_h_n: expected size \[1, 2, 5\]"),
        (
            {"grads": [None, None, torch.zeros(1, B, H).double()]},
            "grad_c_n: expected dtype Float, got Double",
        ),
        ({"grads": [None]}, "grads: expected 3 entries, got 1"),
        ({"wanted": [7]}, "wanted: expected indices below 7, got 7"),
        ({"wanted": [-1]}, "wanted: expected indices below 7, got -1"),
    ],
)
def test_backward_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.rnnfused.recurrent_backward(**(backward_arguments() | change))


def test_a_strided_tape_is_refused() -> None:
    given = backward_arguments()
    given["tape"] = given["tape"].repeat_interleave(2, 1)[:, ::2]
    with pytest.raises(RuntimeError, match="tape: expected a contiguous tensor"):
        torch.ops.rnnfused.recurrent_backward(**given)


@pytest.mark.parametrize("place", ["input", "hx", "params", "tape", "output"])
def test_sizes_without_memory_are_refused(place: str) -> None:
    given = backward_arguments()
    held = given[place]
    tensor = held[0] if isinstance(held, list) else held
    tensor.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="expected a tensor with memory of its own size, got 0 bytes"):
        torch.ops.rnnfused.recurrent_backward(**given)


# ---- Derivatives beyond the gradients


LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "lengths": {"lengths": torch.tensor([2, 3])},
    "resets": {"resets": torch.tensor([[False, True]]).expand(T, B).contiguous()},
    "packed": {"batch_sizes": torch.tensor([2, 2, 2]), "input": torch.randn(T * B, INPUT)},
}


def tangent_arguments(layout: str) -> dict[str, Any]:
    given = forward_arguments() | LAYOUTS[layout]
    outputs = torch.ops.rnnfused.recurrent(**given, save=False)
    tangents = [given["input"], *given["hx"], *given["params"]]
    every = list(range(7))
    return given | {
        "tangents": tangents,
        "grads": outputs,
        "grad_tangents": outputs,
        "output": outputs[0],
        "outputs": True,
        "wanted": every,
    }


def with_one(tensors: list[Tensor], place: int, other: Tensor) -> list[Tensor]:
    return [*tensors[:place], other, *tensors[place + 1 :]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tangents", "grads", "grad_tangents"])
def test_tangents_of_other_sizes_are_refused(layout: str, name: str) -> None:
    given = tangent_arguments(layout)
    assert len(torch.ops.rnnfused.recurrent_tangent(**given)) == 10
    for place, tensor in enumerate(given[name]):
        for other in (tensor[..., :1], tensor[:1].expand(4, *tensor.shape[1:]), tensor.unsqueeze(0)):
            if other.shape == tensor.shape:
                continue
            with pytest.raises(RuntimeError, match=f"^{name}: expected size"):
                torch.ops.rnnfused.recurrent_tangent(**given | {name: with_one(given[name], place, other)})
        held = tensor.clone()
        held.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=f"^{name}: expected a tensor with memory"):
            torch.ops.rnnfused.recurrent_tangent(**given | {name: with_one(given[name], place, held)})
        with pytest.raises(RuntimeError, match=f"^{name}: expected a floating-point dtype, got Long"):
            torch.ops.rnnfused.recurrent_tangent(
                **given | {name: with_one(given[name], place, tensor.long())}
            )
    with pytest.raises(RuntimeError, match=f"^{name}: expected {len(given[name])} entries, got 1"):
        torch.ops.rnnfused.recurrent_tangent(**given | {name: given[name][:1]})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_of_other_sizes_are_refused(layout: str) -> None:
    given = tangent_arguments(layout)
    gates = {name: given[name] for name in (*forward_arguments(), "grads", "output")}
    torch.ops.rnnfused.recurrent_gate_gradients(**gates)
    for call, arguments in (
        (torch.ops.rnnfused.recurrent_tangent, given),
        (torch.ops.rnnfused.recurrent_gate_gradients, gates),
    ):
        with pytest.raises(RuntimeError, match=r"^output: expected size"):
            call(**arguments | {"output": given["output"][..., :1]})
        with pytest.raises(RuntimeError, match=r"^grads: expected size"):
            call(**arguments | {"grads": with_one(given["grads"], 1, torch.zeros(1, B, 1))})
        with pytest.raises(RuntimeError, match=r"^grads: expected 3 entries, got 2"):
            call(**arguments | {"grads": given["grads"][:2]})
        for name in ("input", "hx"):
            held = (given[name] if name == "input" else given[name][0]).clone()
            held.untyped_storage().resize_(0)
            with pytest.raises(RuntimeError, match=f"^{name}: expected a tensor with memory"):
                call(**arguments | {name: held if name == "input" else [held, given["hx"][1]]})


def test_what_is_no_tensor() -> None:
    x, weights = torch.zeros(T, B, INPUT), forward_arguments()["params"]
    with pytest.raises(TypeError, match="expected Tensor as element 3 in argument 2, but got NoneType"):
        _C.recurrent(LAYER, x, [], [*weights[:3], None], None, None, None)
    with pytest.raises(AttributeError, match="'list' object has no attribute 'dim'"):
        _C.recurrent(LAYER, [1.0], [], weights, None, None, None)  # type: ignore[arg-type]


def test_directions_of_a_plan() -> None:
    with pytest.raises(ValueError, match="directions: expected 1 or 2, got 0"):
        _C.describe_plan("gru", 1, 1, 1, 1, 1, 1, 0, torch.float32)
