"""Several layers in one native call, as where nothing is differentiated: the bits of one call a layer."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from results import assert_same_bits, tensors
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import rnnfused
from rnnfused import functional
from rnnfused._layer import LayerConfig
from rnnfused._load import _C
from rnnfused._ops import recurrent

STACKS = [
    ("LSTM", 3, False, {}),
    ("LSTM", 2, True, {}),
    ("LSTM", 2, False, {"proj_size": 5}),
    ("LSTM", 2, True, {"bias": False, "proj_size": 5}),
    ("GRU", 2, True, {"bias": False}),
    ("GRU", 3, False, {"dtype": torch.float64}),
    ("RNN", 4, False, {"batch_first": True}),
    ("RNN", 2, True, {"nonlinearity": "relu", "batch_first": True}),
]


@pytest.mark.parametrize("kind, layers, bidirectional, options", STACKS)
@pytest.mark.parametrize("form", ["padded", "packed", "one step"])
@pytest.mark.parametrize("given", [False, True])
def test_the_bits_of_one_call_a_layer(
    kind: str, layers: int, bidirectional: bool, options: dict[str, Any], form: str, given: bool
) -> None:
    module = getattr(rnnfused, kind)(7, 20, layers, bidirectional=bidirectional, **options)
    dtype = options.get("dtype", torch.float32)
    batch = 3
    x: Any = torch.randn(1 if form == "one step" else 40, batch, 7, dtype=dtype)
    if form == "packed":
        x = pack_sequence([x[:n, b] for b, n in enumerate((11, 40, 23))], enforce_sorted=False)
    elif module.batch_first:
        x = x.transpose(0, 1)
    rows = layers * (2 if bidirectional else 1)
    widths = (module.proj_size or 20, 20) if kind == "LSTM" else (20,)
    states = tuple(torch.randn(rows, batch, width, dtype=dtype) for width in widths)
    hx = (states if kind == "LSTM" else states[0]) if given else None
    want = module(x, hx)
    assert tensors(want)[0].requires_grad
    with torch.no_grad():
        got = module(x, hx)
    assert_same_bits(got, want)


def test_layers_under_way_at_once() -> None:
    threads = torch.get_num_threads()
    module, x = rnnfused.LSTM(64, 64, 2), torch.randn(200, 1, 64)
    try:
        with torch.no_grad():
            torch.set_num_threads(1)
            want = module(x)
            torch.set_num_threads(2)
            got = module(x)
            if len(_usable_processors()) > 1:
                assert _C.describe_plan("lstm", 200, 1, 64, 64, 64, 2, 1, torch.float32)[0] == "wavefront"
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(got, want)


def _usable_processors() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}


def test_dropout_in_training_without_gradients() -> None:
    module = rnnfused.GRU(5, 6, 2, dropout=0.5)
    x = torch.randn(4, 2, 5)
    torch.manual_seed(1)
    want = module(x)
    torch.manual_seed(1)
    with torch.no_grad():
        got = module(x)
    assert_same_bits(got, want)
    with torch.no_grad():
        assert not torch.equal(module(x)[0], got[0])  # another draw
        module.eval()
        assert torch.equal(module(x)[0], module(x)[0])


def arguments() -> dict[str, Any]:
    """Of two layers in both directions, of three units."""
    params: list[Tensor] = []
    for inputs in (4, 4, 6, 6):
        params += [torch.randn(12, inputs), torch.randn(12, 3), torch.randn(12), torch.randn(12)]
    return {
        "layer": LayerConfig("lstm", num_layers=2, bidirectional=True),
        "input": torch.randn(5, 2, 4),
        "hx": [torch.randn(4, 2, 3), torch.randn(4, 2, 3)],
        "params": params,
    }


STATE = torch.zeros(4, 2, 3)
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hx": [STATE[:2], STATE]}, RuntimeError, r"Expected hidden\[0\] size \(4, 2, 3\), got \[2, 2, 3\]"),
    ({"hx": [STATE[0], STATE]}, RuntimeError, "hx and cx should also be 3-D but got"),
    ({"hx": [STATE, STATE[:3]]}, RuntimeError, r"Expected hidden\[1\] size \(4, 2, 3\), got \[3, 2, 3\]"),
    ({"params": []}, ValueError, r"params: expected 16 tensors \(4 for each of 4\), got 0"),
    (
        {"layer": LayerConfig("lstm", 2, bidirectional=True, bias=False)},
        ValueError,
        r"params: expected 8 tensors \(2 for each of 4\), got 16",
    ),
    ({"layer": LayerConfig("lstm", 0, bidirectional=True)}, ValueError, "layer: unknown word 'layers=0'"),
    ({"input": torch.zeros(5, 2, 5)}, RuntimeError, r"input.size\(-1\) must be equal to input_size"),
    ({"input": torch.zeros(5, 4)}, RuntimeError, "For unbatched 2-D input, hx and cx should also be 2-D"),
    (
        {"layer": LayerConfig("lstm", 2, bidirectional=True, batch_first=True)},
        RuntimeError,
        r"Expected hidden\[0\] size \(4, 5, 3\), got \[4, 2, 3\]",
    ),
    (
        {"params": arguments()["params"][:12] + arguments()["params"][:4]},
        RuntimeError,
        r"weight_ih_l1_reverse: expected size \[12, 6\], got \[12, 4\]",
    ),
]


@pytest.mark.parametrize("change, kind, message", REFUSED)
def test_refused(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        recurrent(**(arguments() | change))


def test_functional_refuses_in_its_own_words() -> None:
    given = arguments()
    hx = tuple(given["hx"])
    options: Any = {"num_layers": 2, "bidirectional": True}
    functional.lstm(given["input"], hx, given["params"], **options)
    with pytest.raises(ValueError, match=r"params: expected 16 tensors \(4 for each of 4\), got 15"):
        functional.lstm(given["input"], hx, given["params"][:-1], **options)
    with pytest.raises(ValueError, match=r"dropout: expected a probability in \[0, 1\], got 2"):
        functional.lstm(given["input"], hx, given["params"], dropout=2, **options)
    with pytest.raises(RuntimeError, match=r"hx: expected 2 states \(h, c\), got 1"):
        functional.lstm(given["input"], hx[:1], given["params"], **options)  # type: ignore[arg-type]
