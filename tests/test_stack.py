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
from rnnfused._load import _C

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
                assert _C.describe_plan("lstm", 200, 1, 64, 64, 64, 2, 1, False)[0] == "wavefront"
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
        "cell": "lstm",
        "x": torch.randn(5, 2, 4),
        "h0": torch.randn(4, 2, 3),
        "c0": torch.randn(4, 2, 3),
        "params": params,
        "batch_sizes": None,
        "has_biases": True,
        "layers": 2,
        "bidirectional": True,
        "batch_first": False,
    }


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"h0": torch.zeros(2, 2, 3)}, RuntimeError, r"h0: expected size \[4, batch, units\], got \[2, 2, 3\]"),
    ({"h0": torch.zeros(2, 3)}, RuntimeError, r"h0: expected size \[4, batch, units\], got \[2, 3\]"),
    ({"c0": torch.zeros(3, 2, 3)}, RuntimeError, r"c0: expected size \[4, batch, units\], got \[3, 2, 3\]"),
    ({"params": []}, ValueError, "params: expected 16 tensors, got 0"),
    ({"has_biases": False}, ValueError, "params: expected 8 tensors, got 16"),
    ({"h0": torch.zeros(4, 2, 2)}, ValueError, "params: expected 20 tensors, got 16"),
    ({"layers": 0}, RuntimeError, r"h0: expected size \[0, batch, units\]"),
    ({"x": torch.zeros(5, 2, 5)}, RuntimeError, r"weight_ih: expected size \[12, 5\], got \[12, 4\]"),
    ({"x": torch.zeros(5, 4)}, RuntimeError, "input: expected 3 dimensions, got 2"),
    ({"batch_first": True}, RuntimeError, r"h0: expected size \[2, 5, 3\], got \[2, 2, 3\]"),
    (
        {"params": arguments()["params"][:12] + arguments()["params"][:4]},
        RuntimeError,
        r"weight_ih: expected size \[12, 6\], got \[12, 4\]",
    ),
]


@pytest.mark.parametrize("change, kind, message", REFUSED)
def test_refused(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        _C.stack_forward(**(arguments() | change))


def test_functional_refuses_in_its_own_words() -> None:
    given = arguments()
    hx = (given["h0"], given["c0"])
    options: Any = {"num_layers": 2, "bidirectional": True}
    functional.lstm(given["x"], hx, given["params"], **options)
    with pytest.raises(ValueError, match=r"params: expected 16 tensors \(4 for each of 4\), got 15"):
        functional.lstm(given["x"], hx, given["params"][:-1], **options)
    with pytest.raises(ValueError, match=r"dropout: expected a probability in \[0, 1\], got 2"):
        functional.lstm(given["x"], hx, given["params"], dropout=2, **options)
    with pytest.raises(RuntimeError, match=r"hx: expected 2 states \(h, c\), got 1"):
        functional.lstm(given["x"], hx[:1], given["params"], **options)  # type: ignore[arg-type]
