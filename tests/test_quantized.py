"""Weights of 8 bits: against the NumPy reference, the same bits on every way to the kernels, and what models
do with the layers.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import split_by_hand
from results import assert_same_bits, tensors
from test_sequence import check_errors
from tolerances import FLOOR_ULPS, eps
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

import rnnfused
from rnnfused import reference
from rnnfused._load import _C
from rnnfused._quantized import to_int8

# torch's own: torch.ao.quantization is deprecated, and so is torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

INPUT, H = 7, 37
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu", "bidirectional": True, "bias": False}),
    ("LSTM", {}),
    ("LSTM", {"bidirectional": True, "bias": False}),
    ("LSTM", {"bidirectional": True, "proj_size": 0.5}),
    ("GRU", {}),
    ("GRU", {"bidirectional": True, "bias": False}),
]
STACKS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 3, "batch_first": True, "return_cells": True}),
    ("LSTM", {"num_layers": 2, "proj_size": 9, "bias": False, "bidirectional": True}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {"bias": False, "learn_initial_state": True}),
    ("RNN", {"num_layers": 2, "nonlinearity": "relu"}),
]
CELLS: list[tuple[str, dict[str, Any]]] = [
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu", "bias": False}),
    ("LSTMCell", {}),
    ("LSTMCell", {"bias": False}),
    ("GRUCell", {}),
    ("GRUCell", {"bias": False}),
]
EACH = pytest.mark.parametrize("kind, options", STACKS)
EACH_CELL = pytest.mark.parametrize("kind, options", CELLS)
BOTH = pytest.mark.parametrize("kind", ["LSTM", "GRU"])
# I, H: one, and below, at and above the vectors of every ISA and what a tile takes of them.
SIZES = [
    (1, 1),
    (3, 2),
    (2, 5),
    (7, 8),
    (9, 15),
    (15, 16),
    (17, 17),
    (33, 31),
    (16, 32),
    (65, 33),
    (5, 64),
    (31, 65),
]
# A number within this part of a step of the middle between two may become either: float32 leaves its place on
# 127 steps uncertain by some 2^-17 (x, h), and more where the number itself is a result (h before W_hr).
MIDDLE, MIDDLE_OF_RESULTS = 1e-4, 1e-3
WORDS = "weights of 8 bits are for inference, and have no derivative"


def make(kind: str, options: dict[str, Any], input: int = INPUT, hidden: int = H) -> Any:
    options = dict(options)  # proj_size below 1: as part of the hidden units
    if "proj_size" in options and options["proj_size"] < 1:
        options["proj_size"] = max(1, int(hidden * options["proj_size"]))
    layer = getattr(rnnfused, kind)(input, hidden, **options)
    if options.get("learn_initial_state"):
        with torch.no_grad():
            for names in layer._initial_names():
                for name in names:
                    getattr(layer, name).normal_()
    return layer


def states_for(layer: Any, batch: int) -> tuple[Tensor, ...]:
    first = layer.num_layers * (1 + layer.bidirectional)
    widths = ((getattr(layer, "proj_size", 0) or layer.hidden_size), layer.hidden_size)
    return tuple(torch.randn(first, batch, n) for n in widths[: len(layer._config().spec.states)])


def as_hx(states: Any) -> Any:
    return tuple(states) if len(states) > 1 else states[0]


def operator(quantized: Any, x: Tensor, hx: Any = (), layout: Any = (None, None, None)) -> list[Tensor]:
    text = quantized._config().text
    return torch.ops.rnnfused.recurrent(x, list(hx), quantized._params(), *layout, text, False)


# ---- The numbers


def matrix(quantized: Any, name: str) -> np.ndarray:
    numbers, scale = getattr(quantized, name), getattr(quantized, name.replace("weight", "scale"))
    assert numbers.dtype == torch.int8 and scale.dtype == torch.float32
    return (numbers.double() * scale.double().unsqueeze(1)).numpy()


def weights_of(quantized: Any, suffix: str = "") -> reference.Weights:
    def bias(name: str) -> np.ndarray | None:
        return getattr(quantized, name + suffix).numpy() if quantized.bias else None

    projected = getattr(quantized, "proj_size", 0) > 0
    return reference.Weights(
        matrix(quantized, "weight_ih" + suffix),
        matrix(quantized, "weight_hh" + suffix),
        bias("bias_ih"),
        bias("bias_hh"),
        matrix(quantized, "weight_hr" + suffix) if projected else None,
    )


def is_clear(rows: np.ndarray, middle: float = MIDDLE) -> np.ndarray:
    """Of each row whether no number is in the middle between two steps."""
    steps = 127 * rows / np.maximum(np.abs(rows).max(1, keepdims=True), 1e-30)
    return (np.abs(steps - np.floor(steps) - 0.5) > middle).all(1)


def check_steps(
    cell: str, weights: reference.Weights, x: Tensor, before: list[Tensor], after: list[Tensor], words: Any
) -> tuple[int, int]:
    """Steps (rows) from the states that the kernel itself had, side by side; returns how many were compared,
    and of how many.
    """
    rows, given = x.double().numpy(), [t.double().numpy() for t in before]
    found = reference.forward(cell, rows[None], tuple(given), weights, rounds=True)
    clear = is_clear(rows) & is_clear(given[0])
    if weights.w_hr is not None:
        clear &= is_clear(found.tape.steps[0].new[0], MIDDLE_OF_RESULTS)
    if clear.any():
        want = {f"state {i}": state[clear] for i, state in enumerate(found.states)}
        got = {f"state {i}": t.double().numpy()[clear] for i, t in enumerate(after)}
        check_errors(got, want, FLOOR_ULPS * eps(np.float32), words)
    return int(clear.sum()), len(clear)


@pytest.mark.parametrize("kind, options", KINDS)
def test_each_step_of_a_layer_is_the_references(kind: str, options: dict[str, Any], threads: int) -> None:
    compared = rows = 0
    more = {"return_cells": True} if kind == "LSTM" else {}
    for input, hidden in SIZES:
        if "proj_size" in options and hidden == 1:
            continue
        layer = rnnfused.Quantized(make(kind, options | more, input, hidden))
        cell = layer._config().cell
        for steps, batch in ((1, 1), (6, 3), (4, 17)):
            x, hx = torch.randn(steps, batch, input), states_for(layer, batch)
            y, final, *cells = layer(x, as_hx(hx))
            sequences = [y, *cells]
            for d, suffix in enumerate(("_l0", "_l0_reverse")[: 1 + layer.bidirectional]):
                own = [t.chunk(1 + layer.bidirectional, -1)[d] for t in sequences]
                first = [state[d : d + 1] for state in hx]
                order = -1 if d else 1  # of a direction's steps
                before = [
                    torch.cat((f, t[1:] if d else t[:-1])) if not d else torch.cat((t[1:], f))
                    for f, t in zip(first, own, strict=True)
                ]
                for state, t in zip(tensors(final), own, strict=True):
                    assert torch.equal(state[d], t[::order][-1] if order > 0 else t[0])
                counts = check_steps(
                    cell,
                    weights_of(layer, suffix),
                    x.flatten(0, 1),
                    [t.flatten(0, 1) for t in before],
                    [t.flatten(0, 1) for t in own],
                    (kind, options, input, hidden, steps, batch, suffix),
                )
                compared, rows = compared + counts[0], rows + counts[1]
    assert compared > rows / 2


@EACH_CELL
def test_cells(kind: str, options: dict[str, Any], threads: int) -> None:
    compared = rows = 0
    for input, hidden in SIZES:
        for made in (rnnfused, torch.nn):
            source = getattr(made, kind)(input, hidden, **options)
            cell = rnnfused.Quantized(source)
            for batch in (1, 3, 17):
                x = torch.randn(batch, input)
                hx = [torch.randn(batch, hidden) for _ in range(1 + (kind == "LSTMCell"))]
                found = tensors(cell(x, as_hx(hx)))
                counts = check_steps(
                    cell._config().cell, weights_of(cell), x, hx, found, (kind, input, hidden)
                )
                compared, rows = compared + counts[0], rows + counts[1]
                assert_same_bits(found, operator(cell, x, hx))
                one = cell(x[0], as_hx([t[0] for t in hx]))
                assert_same_bits(tensors(one), [t[0] for t in found])
                assert_same_bits(cell(x), cell(x, as_hx([torch.zeros_like(t) for t in hx])))
    assert compared > rows / 2


def test_the_numbers_of_a_matrix() -> None:
    weight = torch.randn(50, 33) * torch.logspace(-20, 20, 50).unsqueeze(1)
    weight[3], weight[4, 5], weight[5, 6] = 0, torch.inf, torch.nan
    numbers, scale = to_int8(weight)
    finite = torch.tensor([row not in (4, 5) for row in range(50)])
    assert numbers.dtype == torch.int8 and numbers.min() >= -127
    assert scale.dtype == torch.float32 and torch.equal(scale.isfinite(), finite)
    assert not numbers[3].any() and scale[3] == 0
    others = finite & (scale > 0)
    assert (numbers[others].int().abs().amax(1) == 127).all()
    error = (numbers * scale.unsqueeze(1) - weight)[others].abs()
    assert (error <= scale[others].unsqueeze(1) * (0.5 + 1e-4)).all()
    assert all(t.size(0) == 3 for t in to_int8(torch.zeros(3, 0)))


def test_every_number_of_8_bits() -> None:
    """-128 among them, which this library does not make, but torch.ao does."""
    for kind in ("rnn_tanh", "gru", "lstm"):
        hidden, x = 33, torch.randn(40, 5)
        gates = len(reference.CELLS[kind].x_to) * hidden
        matrices = [torch.randint(-128, 128, (gates, n), dtype=torch.int8) for n in (5, hidden)]
        matrices[0][:, 0], matrices[1][:, 0] = -128, -128
        scales = [torch.rand(gates) / 500 for _ in range(2)]
        hx = [torch.randn(40, hidden) for _ in reference.CELLS[kind].states]
        params = [*matrices, *scales]
        text = f"{kind} no_biases step int8"
        found = torch.ops.rnnfused.recurrent(x, hx, params, None, None, None, text, False)
        exact = [
            (m.double() * s.double().unsqueeze(1)).numpy() for m, s in zip(matrices, scales, strict=True)
        ]
        compared, rows = check_steps(kind, reference.Weights(*exact), x, hx, found, kind)
        assert compared > rows / 2


def test_the_references_rounding() -> None:
    rows = np.array([[0.0, 0.0, 0.0], [127.0, 0.4, -63.6], [-254.0, 3.1, 0.9], [1.0, np.inf, 2.0]])
    want = np.array([[0.0, 0.0, 0.0], [127.0, 0.0, -64.0], [-254.0, 4.0, 0.0], [np.nan] * 3])
    np.testing.assert_allclose(reference.rounded(rows), want, rtol=1e-15)
    assert reference.rounded(np.zeros((2, 0))).shape == (2, 0)
    rng = np.random.default_rng(0)
    x, h, c = rng.standard_normal((1, 3, 4)), rng.standard_normal((3, 2)), rng.standard_normal((3, 5))
    shapes = {"w_ih": (20, 4), "w_hh": (20, 2), "w_hr": (2, 5)}
    weights = reference.Weights(**{name: rng.standard_normal(shape) for name, shape in shapes.items()})
    found = reference.forward("lstm", x, (h, c), weights, rounds=True)
    given = reference.rounded(x[0])[None], (reference.rounded(h), c)
    unprojected = reference.forward("lstm", *given, weights).tape.steps[0].new
    np.testing.assert_array_equal(found.states[1], unprojected[1])
    np.testing.assert_array_equal(found.y[0], reference.rounded(unprojected[0]) @ weights.w_hr.T)


@pytest.mark.long
@pytest.mark.skipif("RNNFUSED_ISA" in os.environ, reason="this is such a run")
@pytest.mark.parametrize("isa", [isa for isa in _C.available_isas() if isa != _C.isa()])
def test_every_isa(isa: str) -> None:
    tests = "(each_step and 1-thread) or every_number or tiny or overflow or long_sequences"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", tests],
        env=os.environ | {"RNNFUSED_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]


@BOTH
def test_nearer_to_the_layer_than_torch_aos(kind: str) -> None:
    layer = getattr(nn, kind)(40, 96, 2, bidirectional=True)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.mul_(1.5)  # so that gates leave the middle
    theirs = torch.ao.quantization.quantize_dynamic(nn.Sequential(copy.deepcopy(layer)), {type(layer)})[0]
    x = torch.randn(30, 5, 40)
    with torch.no_grad():
        want = layer(x)[0]
        errors = [float((m(x)[0] - want).square().mean().sqrt()) for m in (rnnfused.Quantized(layer), theirs)]
    assert 0 < errors[0] < errors[1] < 0.1


@BOTH
def test_rows_from_tiny_to_huge(kind: str) -> None:
    """A row has a scale of its own: others do not matter, and numbers too small to be divided by are zero."""
    layer = rnnfused.Quantized(make(kind, {}))
    x = torch.randn(5, 6, INPUT)
    scaled = x * torch.tensor([0.0, 1e-44, 1e-37, 1.0, 1e30, 1e38]).view(6, 1)
    y = layer(scaled)[0]
    assert y.isfinite().all()
    zero = layer(torch.zeros_like(x))[0]
    assert torch.equal(y[:, :3], zero[:, :3]) and torch.equal(y[:, 3:4], layer(x[:, 3:4])[0])


# ---- Forms of input


@EACH
def test_every_form_of_input(kind: str, options: dict[str, Any], threads: int) -> None:
    source = make(kind, options)
    layer = rnnfused.Quantized(source)
    lengths, steps = [5, 0, 12, 1, 12], 12
    x, hx = torch.randn(steps, 5, INPUT), states_for(source, 5)
    resets = torch.rand(steps, 5) < 0.2
    never = torch.zeros_like(resets)

    def first(t: Tensor) -> Tensor:
        return t.transpose(0, 1) if source.batch_first else t

    def check(got: Any, want: list[Tensor]) -> None:
        y, final, *cells = got
        for one, other in zip((first(y), *tensors(final), *map(first, cells)), want, strict=True):
            assert torch.equal(one, other)

    given, whole = as_hx(hx), [steps] * 5
    check(layer(first(x), given), split_by_hand(layer, x, hx, whole, never))
    check(layer(first(x), given, resets=first(resets)), split_by_hand(layer, x, hx, whole, resets))
    want = split_by_hand(layer, x, hx, lengths, resets)
    check(layer(first(x), given, lengths=torch.tensor(lengths), resets=first(resets)), want)

    rows = torch.cat([x[:n, b] for b, n in enumerate(lengths)])
    cuts = torch.cat([resets[:n, b] for b, n in enumerate(lengths)])
    y, final, *_ = layer(rows, given, cu_seqlens=torch.tensor([0, *lengths]).cumsum(0), resets=cuts)
    assert torch.equal(y, torch.cat([want[0][:n, b] for b, n in enumerate(lengths)]))
    assert all(map(torch.equal, tensors(final), want[1:]))

    some = [b for b, n in enumerate(lengths) if n]
    packed = pack_sequence([x[: lengths[b], b] for b in some], enforce_sorted=False)
    y, final, *_ = layer(packed, as_hx([s[:, some] for s in hx]))
    want = split_by_hand(layer, x, hx, lengths, never)
    parts = pack_sequence([want[0][: lengths[b], b] for b in some], enforce_sorted=False)
    assert torch.equal(y.data, parts.data) and torch.equal(y.batch_sizes, packed.batch_sizes)
    assert all(torch.equal(s, w[:, some]) for s, w in zip(tensors(final), want[1:], strict=False))

    alone = layer(x[:, 2], as_hx([s[:, 2] for s in hx]), resets=resets[:, 2])
    want = split_by_hand(layer, x, hx, whole, resets)
    assert torch.equal(alone[0], want[0][:, 2])
    assert all(torch.equal(s, w[:, 2]) for s, w in zip(tensors(alone[1]), want[1:], strict=False))


@EACH
def test_no_sequences_and_one_step(kind: str, options: dict[str, Any]) -> None:
    source = make(kind, options)
    layer = rnnfused.Quantized(source)
    for steps, batch in ((3, 0), (1, 4), (1, 1)):
        x = torch.randn(*((batch, steps) if source.batch_first else (steps, batch)), INPUT)
        got = tensors(layer(x))
        assert [t.shape for t in got] == [t.shape for t in tensors(source(x))]
        hx = source._learned() or [torch.zeros_like(s[:, 0]) for s in states_for(source, 1)]
        hx = [s.detach().unsqueeze(1).repeat(1, batch, 1) for s in hx]
        assert_same_bits(got, layer(x, as_hx(hx)))


@EACH
def test_a_stack_is_its_layers(kind: str, options: dict[str, Any]) -> None:
    layer = rnnfused.Quantized(make(kind, options | {"return_cells": False} if kind == "LSTM" else options))
    x, hx = torch.randn(9, 4, INPUT), states_for(layer, 4)
    want, final = layer(x.transpose(0, 1) if layer.batch_first else x, as_hx(hx))
    directions, y, ends = 1 + layer.bidirectional, x, []
    for index in range(layer.num_layers):
        own = {"num_layers": 1, "batch_first": False, "learn_initial_state": False}
        single = rnnfused.Quantized(make(kind, options | own, y.size(-1)))
        state = {n: t for n, t in layer.state_dict().items() if f"_l{index}" in n and "initial" not in n}
        single.load_state_dict({n.replace(f"_l{index}", "_l0"): t for n, t in state.items()})
        y, end, *_ = single(y, as_hx([s[index * directions : (index + 1) * directions] for s in hx]))
        ends.append(tensors(end))
    assert torch.equal(want.transpose(0, 1) if layer.batch_first else want, y)
    assert_same_bits(final, [torch.cat(parts) for parts in zip(*ends, strict=True)])


# ---- The same bits, whoever calls


@EACH
def test_all_ways_to_the_kernels_have_the_same_bits(kind: str, options: dict[str, Any]) -> None:
    source = make(kind, options)
    layer, frozen = rnnfused.Quantized(source), rnnfused.Frozen(source, weights="int8")
    assert repr(frozen) == f"Frozen({source!r}, weights='int8')"
    assert repr(layer) == f"Quantized({source!r})"
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(1)
            found.append([])
            for steps, batch in ((40, 1), (3, 2), (9, 20), (5, 70)):
                x = torch.randn(*((batch, steps) if source.batch_first else (steps, batch)), INPUT)
                hx = states_for(source, batch)
                got = layer(x, as_hx(hx))
                found[-1] += tensors(got)
                assert_same_bits(frozen(x, as_hx(hx)), got)
                assert_same_bits(operator(layer, x, hx), tensors(got))
                native = _C.recurrent(layer._config().text, x, hx, layer._params(), None, None, None)
                assert_same_bits(native, tensors(got))
                if not source.bidirectional:
                    stepper = rnnfused.Stepper(source, batch, weights="int8")
                    stepper.state = as_hx(hx)
                    y = torch.stack(
                        [stepper(row) for row in (x.transpose(0, 1) if source.batch_first else x)]
                    )
                    assert torch.equal(y.transpose(0, 1) if source.batch_first else y, got[0])
                    assert_same_bits(stepper.state, got[1])
        finally:
            torch.set_num_threads(before)
    assert_same_bits(*found)


@BOTH
@pytest.mark.parametrize("batch", [1, 6, 64])
def test_large_layers_share_the_work(kind: str, batch: int) -> None:
    source = getattr(rnnfused, kind)(300, 400, 2)
    layer, stepper = rnnfused.Quantized(source), rnnfused.Stepper(source, batch, weights="int8")
    x, before, found = torch.randn(6, batch, 300), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            found.append(tensors(layer(x)))
            stepper.reset()
            assert torch.equal(torch.stack([stepper(row) for row in x]), found[-1][0])
    finally:
        torch.set_num_threads(before)
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])


@pytest.mark.parametrize("kind, options", STACKS[2:4])
@pytest.mark.parametrize("batch", [1, 3])
def test_long_sequences(kind: str, options: dict[str, Any], batch: int, threads: int) -> None:
    """Whose input is multiplied chunk by chunk: one direction's pieces have the bits of the whole."""
    layer = rnnfused.Quantized(make(kind, options | {"bidirectional": False}))
    x = torch.randn(3000, batch, INPUT)
    want, final = layer(x)
    hx, found = None, []
    for piece in x.split(170):
        y, hx = layer(piece, hx)
        found.append(y)
    assert torch.equal(torch.cat(found), want)
    assert_same_bits(hx, final)


def test_frozen_layers_are_copied_and_refreshed() -> None:
    source = make("GRU", {"num_layers": 2, "learn_initial_state": True})
    frozen, x = rnnfused.Frozen(source, weights="int8"), torch.randn(12, 4, INPUT)
    want = rnnfused.Quantized(source)(x)
    for copied in (frozen, copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert_same_bits(copied(x), want)
    with torch.no_grad():
        source.weight_hh_l1.mul_(2)
    assert_same_bits(frozen(x), want)
    frozen.refresh()
    assert_same_bits(frozen(x), rnnfused.Quantized(source)(x))
    traced = torch.jit.trace(lambda t: frozen(t)[0], x, check_trace=False)
    assert torch.equal(traced(2 * x), frozen(2 * x)[0])


def test_a_stepper_goes_on_where_it_was() -> None:
    source = make("LSTM", {"num_layers": 2, "proj_size": 9})
    x = torch.randn(8, 3, INPUT)
    want, final = rnnfused.Quantized(source)(x)
    stepper = rnnfused.Stepper(source, 3, weights="int8")
    assert repr(stepper).endswith("batch_size=3, weights='int8')")
    for row in x[:4]:
        stepper(row)
    for copied in (copy.deepcopy(stepper), pickle.loads(pickle.dumps(stepper)), stepper):
        assert torch.equal(torch.stack([copied(row) for row in x[4:]]), want[4:])
        assert_same_bits(copied.state, final)
    stepper.reset()
    active = torch.tensor([True, False, True])
    y = stepper(x[0], active=active)
    assert torch.equal(y[active], want[0][active]) and not y[1].any()
    with torch.no_grad():
        source.weight_ih_l0.mul_(3)
    stepper.refresh()
    stepper.reset()
    assert torch.equal(stepper(x[0]), rnnfused.Quantized(source)(x)[0][0])


def test_many_callers() -> None:
    source = make("GRU", {"num_layers": 2})
    inputs = [torch.randn(5 + n % 7, 1 + n % 4, INPUT) for n in range(48)]
    twin = rnnfused.Quantized(source)
    want = [twin(x) for x in inputs]
    for _ in range(5):
        layer = rnnfused.Quantized(source)  # the first calls pack its weights
        with ThreadPoolExecutor(6) as callers:
            found = list(callers.map(layer, inputs))
        assert_same_bits(found, want)


# ---- What is refused


def arguments(text: str = "lstm int8 projected") -> dict[str, Any]:
    layer = rnnfused.Quantized(make("LSTM", {"proj_size": 3}, 4, 5))
    hx = [torch.randn(1, 2, 3), torch.randn(1, 2, 5)]
    none = {"batch_sizes": None, "lengths": None, "resets": None}
    return {"input": torch.randn(3, 2, 4), "hx": hx, "params": layer._params(), "layer": text, **none}


def with_param(place: int, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], Any]:
    def changed(given: dict[str, Any]) -> None:
        given["params"][place] = change(given["params"][place])

    return changed


def with_input(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], Any]:
    return lambda given: given.update(input=change(given["input"]))


ONLY_FLOAT = "input: expected dtype torch.float32 with weights of 8 bits, got torch."
# The order of params: W_ih, W_hh, b_ih, b_hh, W_hr, scale_ih, scale_hh, scale_hr.
REFUSED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (with_input(Tensor.double), ONLY_FLOAT + "float64"),
    (with_input(Tensor.bfloat16), ONLY_FLOAT + "bfloat16"),
    (with_input(Tensor.half), ONLY_FLOAT + "float16"),
    (with_input(Tensor.char), ONLY_FLOAT + "int8"),
    (with_input(lambda t: t[..., :3]), r"input.size\(-1\) must be equal to input_size. Expected 4, got 3"),
    (lambda given: given["params"].pop(), r"params: expected 8 tensors \(8 for each of 1\), got 7"),
    (with_param(0, Tensor.float), "weight_ih_l0: expected dtype Char, got Float"),
    (with_param(1, Tensor.byte), "weight_hh_l0: expected dtype Char, got Byte"),
    (with_param(2, Tensor.double), "bias_ih_l0: expected dtype Float, got Double"),
    (with_param(3, Tensor.bfloat16), "bias_hh_l0: expected dtype Float, got BFloat16"),
    (with_param(4, Tensor.int), "weight_hr_l0: expected dtype Char, got Int"),
    (with_param(5, Tensor.double), "scale_ih_l0: expected dtype Float, got Double"),
    (with_param(6, Tensor.char), "scale_hh_l0: expected dtype Float, got Char"),
    (with_param(7, Tensor.half), "scale_hr_l0: expected dtype Float, got Half"),
    (with_param(5, lambda t: t[1:]), r"scale_ih_l0: expected size \[20\], got \[19\]"),
    (with_param(6, lambda t: t[:1]), r"scale_hh_l0: expected size \[20\], got \[1\]"),
    (with_param(7, lambda t: t.unsqueeze(1)), r"scale_hr_l0: expected size \[3\], got \[3, 1\]"),
    (with_param(4, lambda t: t[:, 1:]), r"weight_hr_l0: expected size \[3, 5\], got \[3, 4\]"),
    (
        lambda given: given["hx"].__setitem__(1, given["hx"][1].double()),
        "c0: expected dtype Float, got Double",
    ),
    (lambda given: given["hx"].pop(), r"hx: expected 2 states \(h, c\), got 1"),
]


@pytest.mark.parametrize("change, message", REFUSED, ids=[message for _, message in REFUSED])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operator_refuses(change: Callable[[dict[str, Any]], Any], message: str, device: str) -> None:
    given = arguments()
    change(given)
    given = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device), given)
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.rnnfused.recurrent(**given, save=False)
    if device == "cpu":
        with pytest.raises((RuntimeError, ValueError), match=message):
            _C.Frozen(given["layer"], given["params"]).forward(
                *(given[name] for name in ("input", "hx", "batch_sizes", "lengths", "resets"))
            )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operator_keeps_no_tape(device: str) -> None:
    given = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device), arguments())
    with pytest.raises(RuntimeError, match="LSTM: " + WORDS):
        torch.ops.rnnfused.recurrent(**given, save=True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operator_has_no_backward(device: str) -> None:
    given = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device), arguments())
    y, h, c = torch.ops.rnnfused.recurrent(**given, save=False)
    others = {"output": y, "tape": torch.zeros(1, 1, device=device), "grads": [y, h, c], "wanted": [0]}
    with pytest.raises(RuntimeError, match="LSTM: " + WORDS):
        torch.ops.rnnfused.recurrent_backward(**given, **others)


def test_sums_that_could_overflow_are_refused() -> None:
    """Of 65536 columns at most: 127 * 127 * 65536 (and 255 * 127 * 65536) fit into 32 bits."""
    most = 1 << 16
    layer = rnnfused.Quantized(nn.RNN(most, 2))
    layer.weight_ih_l0.fill_(127)
    layer.scale_ih_l0.fill_(1 / 127)
    layer.weight_ih_l0[1].fill_(-127)
    x = torch.ones(1, 2, most)
    x[:, 1] = -1
    layer.scale_ih_l0 /= most
    want = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    bias = (layer.bias_ih_l0 + layer.bias_hh_l0).double()
    found = layer(x)[0][0].double()
    assert float((found - torch.tanh(want + bias)).abs().max()) <= FLOOR_ULPS * eps(np.float32)
    with pytest.raises(RuntimeError, match="params: expected at most 65536 columns of 8 bits, got 65537"):
        rnnfused.Quantized(nn.RNN(most + 1, 2))(torch.zeros(1, 1, most + 1))


def test_modules_that_are_refused() -> None:
    words = "layer: expected an RNN, LSTM, GRU or cell of rnnfused's or torch.nn's, got "
    for wrong in (nn.Linear(2, 2), 3, rnnfused.Quantized(nn.GRU(2, 2)), OwnMaths(2, 2), CallsSuper(2, 2)):
        with pytest.raises(TypeError, match=words + type(wrong).__name__):
            rnnfused.Quantized(wrong)  # type: ignore[arg-type]
    for options in ({"dtype": torch.float64}, {"dtype": torch.bfloat16}, {"device": "meta"}):
        source = nn.GRU(2, 3, **options)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match=r"weight_ih_l0: expected dtype torch.float32 on cpu, got"):
            rnnfused.Quantized(source)
        assert type(source) is nn.GRU
    cell = nn.GRUCell(2, 3)
    cell.bias_hh = None  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="bias_hh: expected a tensor of a layer whose bias is True, got "):
        rnnfused.Quantized(cell)
    for packed in (rnnfused.Frozen, rnnfused.Stepper):
        with pytest.raises(ValueError, match=r"module: expected dtype torch.float32 with weights"):
            packed(rnnfused.GRU(2, 3, dtype=torch.float64), weights="int8")  # type: ignore[call-arg]
        with pytest.raises(
            ValueError, match=r"weights: expected None or one of 'bf16', 'f16', 'int8', got 'i8'"
        ):
            packed(rnnfused.GRU(2, 3), weights="i8")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        rnnfused.quantize_dynamic(3)  # type: ignore[type-var]


def test_calls_that_are_refused() -> None:
    source = make("LSTM", {})
    x, hx = torch.randn(3, 2, INPUT), (torch.zeros(1, 2, H), torch.zeros(1, 2, H))
    for layer in (rnnfused.Quantized(source), rnnfused.Frozen(source, weights="int8")):
        for dtype in (torch.float64, torch.bfloat16):
            with pytest.raises(RuntimeError, match=ONLY_FLOAT):
                layer(x.to(dtype))
            with pytest.raises(RuntimeError, match="h0: expected dtype Float"):
                layer(x, tuple(s.to(dtype) for s in hx))
        for wrong in (x[..., 1:], x[None], x[:0], x[0, 0]):
            with pytest.raises((RuntimeError, ValueError)) as want:
                source(wrong)
            with pytest.raises(type(want.value)) as got:
                layer(wrong)
            assert str(got.value) == str(want.value)
        with pytest.raises(RuntimeError, match="not at the same device"):
            layer(x.to("meta"))
        with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 2, 37\), got \[1, 1, 37\]"):
            layer(x, tuple(s[:, :1] for s in hx))
        assert_same_bits(layer(x), layer(x, hx))  # nothing has happened to it
    cell = rnnfused.Quantized(nn.LSTMCell(INPUT, H))
    for name in ("lengths", "resets", "cu_seqlens"):
        with pytest.raises(TypeError, match=f"{name}: expected none, since a cell runs one step"):
            cell(x[0], **{name: torch.ones(2)})
    stepper = rnnfused.Stepper(source, 2, weights="int8")
    stepper(x[0])
    before = stepper.state
    for wrong in (x[0].double(), x[0].bfloat16(), x[0, :1], x[0, :, 1:], x):
        with pytest.raises(RuntimeError, match="input: expected"):
            stepper(wrong)
    assert_same_bits(stepper.state, before)


# ---- What is not finite


@BOTH
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_reaches_what_depends_on_it(
    kind: str, value: float, threads: int
) -> None:
    layer = rnnfused.Quantized(make(kind, {"bidirectional": True}))
    x = torch.randn(7, 5, INPUT)
    bad = x.clone()
    bad[3, 1, 2] = value
    (want, _), (got, _) = layer(x), layer(bad)
    spoilt = torch.zeros_like(got, dtype=torch.bool)
    spoilt[3:, 1, :H] = spoilt[:4, 1, H:] = True
    assert torch.equal(got.isnan(), spoilt) and torch.equal(got[~spoilt], want[~spoilt])
    hx = [torch.zeros(2, 5, H) for _ in range(1 + (kind == "LSTM"))]
    hx[0][0, 4, 36] = value
    got, _ = layer(x, as_hx(hx))
    spoilt.zero_()[:, 4, :H] = True
    assert torch.equal(got.isnan(), spoilt) and torch.equal(got[~spoilt], want[~spoilt])


@BOTH
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_of_weights_that_is_not_finite(kind: str, name: str, value: float) -> None:
    source = make(kind, {})
    want = rnnfused.Quantized(source)(torch.ones(1, 3, INPUT))[0]
    with torch.no_grad():
        getattr(source, name)[5, 1] = value
    got = rnnfused.Quantized(source)(torch.ones(1, 3, INPUT))[0]
    spoilt = torch.zeros(H, dtype=torch.bool)
    spoilt[5] = True
    assert torch.equal(got.isnan(), spoilt.expand_as(got)) and torch.equal(
        got[..., ~spoilt], want[..., ~spoilt]
    )


# ---- Gradients


@pytest.mark.parametrize("kind, options", [*STACKS, *CELLS])
def test_there_is_no_way_back(kind: str, options: dict[str, Any]) -> None:
    layer = rnnfused.Quantized(make(kind, options))
    x = torch.randn(*((5,) if kind.endswith("Cell") else (4, 5)), INPUT)
    want = tensors(layer(x))
    followed = x.clone().requires_grad_()
    for call in (layer, lambda t: operator(layer, t)):
        if "learn_initial_state" in options and call is not layer:
            continue
        found = tensors(call(followed))
        assert_same_bits(found, want)
        for result in found:
            assert result.requires_grad
            with pytest.raises(RuntimeError, match=WORDS):
                result.sum().backward()
        with torch.no_grad():
            assert not any(t.requires_grad for t in tensors(call(followed)))
        with torch.inference_mode():
            assert_same_bits(call(x), want)
    assert followed.grad is None
    with pytest.raises(RuntimeError, match="derivative"):
        torch.func.grad(lambda t: tensors(layer(t))[0].sum())(x)
    with pytest.raises(RuntimeError, match="derivative"):
        torch.func.jvp(lambda t: tensors(layer(t))[0], (x,), (x,))


def test_states_that_require_gradients_have_no_way_back() -> None:
    layer = rnnfused.Quantized(make("LSTM", {}))
    hx = tuple(torch.zeros(1, 2, H, requires_grad=True) for _ in range(2))
    y, _ = layer(torch.ones(3, 2, INPUT), hx)
    with pytest.raises(RuntimeError, match=WORDS):
        y.sum().backward()


@pytest.mark.parametrize("weights", [None, "bf16"])
def test_steppers_of_other_weights_refuse_an_input_that_requires_a_gradient(weights: str | None) -> None:
    stepper = rnnfused.Stepper(make("GRU", {}), weights=weights)
    with pytest.raises(RuntimeError, match=r"input: .* packed layers have no derivative"):
        stepper(torch.zeros(1, INPUT, requires_grad=True))


def test_a_stepper_does_not_silently_drop_a_gradient() -> None:
    stepper = rnnfused.Stepper(make("GRU", {}), weights="int8")
    with pytest.raises(RuntimeError, match=r"have no derivative"):
        stepper(torch.zeros(1, INPUT, requires_grad=True)).sum().backward()


# ---- Files and copies


@EACH
def test_state_dicts(kind: str, options: dict[str, Any]) -> None:
    source, other = make(kind, options), make(kind, options)
    layer, x = rnnfused.Quantized(source), torch.randn(12, 4, INPUT)
    want = layer(x)
    saved = layer.state_dict()
    matrices = [name for name in saved if name.startswith("weight")]
    assert all(saved[name].dtype == torch.int8 for name in matrices)
    assert all(t.dtype == torch.float32 for name, t in saved.items() if name not in matrices)
    assert saved.keys() == source.state_dict().keys() | {n.replace("weight", "scale") for n in matrices}
    assert not list(layer.parameters()) and not layer.training
    doubled = copy.deepcopy(source).double().state_dict()
    for state, ways in ((saved, 2), (source.state_dict(), 2), (doubled, 1)):
        keys = list(state)
        for assign in (False, True)[:ways]:  # what is assigned keeps its dtype
            loaded = rnnfused.Quantized(other)
            assert not torch.equal(loaded(x)[0], want[0])
            loaded.load_state_dict(state, assign=assign)
            assert list(state) == keys
            assert_same_bits(loaded(x), want)
            model = nn.Sequential(nn.Identity(), rnnfused.Quantized(other))
            model(x)
            model.load_state_dict({f"1.{name}": t for name, t in state.items()}, assign=assign)
            assert_same_bits(model(x), want)


@EACH_CELL
def test_state_dicts_of_cells(kind: str, options: dict[str, Any]) -> None:
    source, x = getattr(nn, kind)(INPUT, H, **options), torch.randn(4, INPUT)
    layer = rnnfused.Quantized(source)
    for state in (layer.state_dict(), source.state_dict()):
        loaded = rnnfused.Quantized(getattr(nn, kind)(INPUT, H, **options))
        loaded(x)
        loaded.load_state_dict(state)
        assert_same_bits(loaded(x), layer(x))


def test_state_dicts_that_do_not_fit() -> None:
    layer, x = rnnfused.Quantized(make("GRU", {})), torch.randn(3, 2, INPUT)
    want = layer(x)
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        copy.deepcopy(layer).load_state_dict({"weight_ih_l0": torch.zeros(3 * H, INPUT + 1)}, strict=False)
    with pytest.raises(RuntimeError, match=r"Missing key.*scale_ih_l0"):
        layer.load_state_dict({n: t for n, t in layer.state_dict().items() if "scale" not in n})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*other"):
        layer.load_state_dict(layer.state_dict() | {"other": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_ih_l0"):
        layer.load_state_dict({})
    assert_same_bits(layer(x), want)
    shifted = torch.quantize_per_tensor(torch.randn(3 * H, INPUT), 0.01, 3, torch.qint8)
    with pytest.raises(RuntimeError, match=r"weight: expected dtype torch.qint8 with zero point 0"):
        layer.load_state_dict(layer.state_dict() | {"weight_ih_l0": shifted})
    assert_same_bits(layer(x), want)


def test_a_state_dict_with_a_vector_for_a_matrix() -> None:
    layer = rnnfused.Quantized(make("GRU", {}))
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        layer.load_state_dict(make("GRU", {}).state_dict() | {"weight_ih_l0": torch.zeros(3 * H)})


def test_a_matrix_that_does_not_fit_leaves_its_scales() -> None:
    layer = rnnfused.Quantized(make("GRU", {}))
    before = layer.scale_ih_l0.clone()
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        layer.load_state_dict({"weight_ih_l0": torch.randn(3 * H, INPUT + 1)}, strict=False)
    assert torch.equal(layer.scale_ih_l0, before)


@pytest.mark.parametrize("kind, options", [*STACKS, ("GRUCell", {}), ("LSTMCell", {"bias": False})])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one)), "saved"])
@pytest.mark.parametrize("called", [False, True])
def test_copies(kind: str, options: dict[str, Any], copied: Any, called: bool) -> None:
    layer = rnnfused.Quantized(make(kind, options))
    x = torch.randn(*((4,) if kind.endswith("Cell") else (12, 4)), INPUT)
    if called:
        layer(x)
    twin = saved_and_loaded(layer) if copied == "saved" else copied(layer)
    assert_same_bits(twin(x), layer(x))
    assert repr(twin) == repr(layer) and twin.hidden_size == H
    other = rnnfused.Quantized(make(kind, options))
    want = layer(x)
    twin.load_state_dict(other.state_dict())  # and its hooks are its own
    assert_same_bits(twin(x), other(x))
    assert_same_bits(layer(x), want)
    fresh = make(kind, options)
    twin.load_state_dict(fresh.state_dict())
    assert_same_bits(twin(x), rnnfused.Quantized(fresh)(x))


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def size_of(value: Any) -> int:
    file = io.BytesIO()
    torch.save(value, file)
    return len(file.getvalue())


@BOTH
def test_files_are_a_quarter(kind: str) -> None:
    source = getattr(nn, kind)(256, 256, 2)
    layer = rnnfused.Quantized(source)
    layer(torch.zeros(3, 1, 256))
    assert size_of(layer.state_dict()) <= 0.27 * size_of(source.state_dict())
    assert size_of(layer) <= 0.27 * size_of(source)


@BOTH
@pytest.mark.parametrize("batch", [1, 5])
def test_the_sources_weights_may_change(kind: str, batch: int, threads: int) -> None:
    source = make(kind, {"num_layers": 2, "learn_initial_state": True})
    x = torch.randn(12, batch, INPUT)
    made = [rnnfused.Quantized(source) for _ in range(2)] + [rnnfused.Frozen(source, weights="int8")]
    want = made[0](x)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    for layer in made:
        assert_same_bits(layer(x), want)
        torch.set_num_threads(3 - threads)  # another layout packs the same weights anew
        assert_same_bits(layer(x), want)
        torch.set_num_threads(threads)
    assert not torch.equal(rnnfused.Quantized(source)(x)[0], want[0])
    state = make(kind, {"num_layers": 2, "learn_initial_state": True}).state_dict()
    made[0].load_state_dict(state, assign=True)
    want = made[0](x)
    for t in state.values():
        t.add_(1)
    if not any(t.data_ptr() in {s.data_ptr() for s in state.values()} for t in made[0].buffers()):
        assert_same_bits(made[0](x), want)


# ---- torch.ao's layers


def of_torch_ao(layer: nn.Module, per_channel: bool) -> Any:
    ao = torch.ao.quantization
    how = ao.per_channel_dynamic_qconfig if per_channel else ao.default_dynamic_qconfig
    return ao.quantize_dynamic(nn.Sequential(copy.deepcopy(layer)), {type(layer): how})


PER_CHANNEL = pytest.mark.parametrize("per_channel", [False, True])


@BOTH
@PER_CHANNEL
def test_torch_aos_layers(kind: str, per_channel: bool) -> None:
    source = getattr(nn, kind)(INPUT, 70, 2, bidirectional=True, batch_first=True)
    theirs, x = of_torch_ao(source, per_channel), torch.randn(3, 12, INPUT)
    keys = list(theirs.state_dict())
    made = rnnfused.quantize_dynamic(theirs)
    assert type(theirs[0]).__module__.startswith("torch.ao") and list(theirs.state_dict()) == keys
    assert type(made[0]) is rnnfused.Quantized and made[0].batch_first
    loaded = nn.Sequential(
        rnnfused.Quantized(getattr(nn, kind)(INPUT, 70, 2, True, True, bidirectional=True))
    )
    loaded.load_state_dict(theirs.state_dict())
    assert_same_bits(loaded(x), made(x))
    loaded[0].load_state_dict(theirs[0].state_dict())
    assert_same_bits(loaded(x), made(x))
    # The same numbers: rounding of input and h alone tells the two apart.
    for name, weight in theirs[0].get_weight().items():
        numbers, scale = (getattr(made[0], n) for n in (name, name.replace("weight", "scale")))
        assert torch.equal(weight.int_repr(), numbers)
        torch.testing.assert_close(weight.dequantize(), numbers * scale.unsqueeze(1))
    exact = nn.Sequential(source)(x)[0].detach()
    ours_off, theirs_off = ((m(x)[0] - exact).square().mean().sqrt() for m in (made, theirs))
    assert ours_off < 1.5 * theirs_off


@PER_CHANNEL
@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_torch_aos_cells(kind: str, per_channel: bool) -> None:
    source = getattr(nn, kind)(INPUT, 70)
    theirs, x = of_torch_ao(source, per_channel), torch.randn(3, INPUT)
    made = rnnfused.quantize_dynamic(theirs)
    assert type(made[0]) is rnnfused.Quantized
    loaded = rnnfused.Quantized(getattr(nn, kind)(INPUT, 70))
    loaded.load_state_dict(theirs[0].state_dict())
    assert_same_bits(loaded(x), made(x))
    for got, want in zip(tensors(made(x)), tensors(source(x)), strict=True):
        assert float((got - want).abs().max()) < 0.05


@BOTH
def test_torch_aos_layers_of_16_bits_lose_no_precision_in_silence(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = getattr(nn, kind)(INPUT, 70)
    theirs = torch.ao.quantization.quantize_dynamic(nn.Sequential(source), {type(source)}, torch.float16)
    with pytest.raises(RuntimeError):
        rnnfused.Quantized(getattr(nn, kind)(INPUT, 70)).load_state_dict(theirs[0].state_dict())
    made = rnnfused.quantize_dynamic(theirs)
    assert type(made[0]) is not rnnfused.Quantized and caplog.records


# ---- Models


class OwnMaths(nn.LSTM):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return input.sum()


class CallsSuper(nn.GRU):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(input * 2, hx)


class OfOurs(rnnfused.GRU):
    pass


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(INPUT, 64, batch_first=True)
        self.same = self.first
        self.inner = nn.ModuleDict({"again": self.first, "gru": rnnfused.GRU(64, 70, batch_first=True)})
        self.cell = nn.GRUCell(70, 64)
        self.small = nn.RNN(64, 63)
        self.head = nn.Linear(63, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.first(x)
        y, h = self.inner["gru"](y)
        y = torch.stack([self.cell(row) for row in y.unbind(1)])
        return self.head(self.small(y)[0]) + h.mean()


def test_models(caplog: pytest.LogCaptureFixture) -> None:
    model, x = Tagger(), torch.randn(2, 5, INPUT)
    types = {name: type(module) for name, module in model.named_modules()}
    with caplog.at_level("INFO", logger="rnnfused"):
        made = rnnfused.quantize_dynamic(model)
    assert {name: type(module) for name, module in model.named_modules()} == types and made is not model
    assert made.first is made.same and made.first is made.inner["again"]
    kinds = [type(m) for m in (made.first, made.inner["gru"], made.cell, made.small, made.head)]
    assert kinds == [rnnfused.Quantized] * 3 + [rnnfused.RNN, nn.Linear]
    texts = [record.getMessage() for record in caplog.records if "converted" not in record.getMessage()]
    assert texts == [
        "first is quantised",
        "inner.gru is quantised",
        "cell is quantised",
        "small stays as it is: 63 hidden units, fewer than 64",
    ]
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x), atol=0.05, rtol=0)
    again = rnnfused.quantize_dynamic(made)
    assert_same_bits(again(x), made(x))
    assert type(rnnfused.quantize_dynamic(model, smallest=65).first) is rnnfused.LSTM
    assert type(rnnfused.quantize_dynamic(model, smallest=1).small) is rnnfused.Quantized
    assert rnnfused.quantize_dynamic(model, inplace=True) is model
    assert type(model.first) is rnnfused.Quantized and model.first is model.inner["again"]
    assert_same_bits(model(x), made(x))


def test_what_torch_aos_function_is_asked_for() -> None:
    model = nn.ModuleDict({"a": nn.LSTM(64, 64), "b": nn.Sequential(nn.GRU(64, 64), nn.GRU(64, 64))})
    kinds = {"a", "b.0", "b.1"}

    def quantised(*args: Any, **options: Any) -> set[str]:
        made = rnnfused.quantize_dynamic(model, *args, **options)
        assert isinstance(model["a"], nn.LSTM) and made is not model
        return {name for name in kinds if isinstance(made.get_submodule(name), rnnfused.Quantized)}

    assert quantised() == quantised(None) == kinds
    assert quantised({nn.LSTM, nn.Linear}, dtype=torch.qint8) == {"a"}
    assert quantised({rnnfused.GRU}) == {"b.0", "b.1"}
    assert quantised({"b"}) == {"b.0", "b.1"} and quantised(["b.1", "a"]) == {"b.1", "a"}
    config = torch.ao.quantization.default_dynamic_qconfig
    for spec in (
        {nn.LSTM: config, nn.GRU: None},
        {nn.GRU: config, "b.1": None},
        {nn.GRU: config, "b": None},  # the type of what is in it is asked for all the same
        {"": config, "b": None},
        {"": config, nn.GRU: None, "b.1": config},
        {nn.Sequential: config},
        {nn.ModuleDict: config, nn.Sequential: None},
        {"b": config, nn.LSTM: None},
    ):
        by_torch = torch.ao.quantization.quantize_dynamic(model, spec)
        theirs = {name for name in kinds if "dynamic" in type(by_torch.get_submodule(name)).__module__}
        assert quantised(spec) == theirs, spec
    assert quantised(set()) == set()
    theirs = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.GRU})
    made = rnnfused.quantize_dynamic(theirs, {nn.GRU})
    assert isinstance(made["b"][0], rnnfused.Quantized) and type(made["a"]) is type(theirs["a"])
    with pytest.raises(TypeError, match="qconfig_spec: expected None, or a set of types and names, got True"):
        rnnfused.quantize_dynamic(model, True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="qconfig_spec: expected types and names of modules, got 3"):
        rnnfused.quantize_dynamic(model, {3})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dtype: expected torch\.qint8, got torch\.float16"):
        rnnfused.quantize_dynamic(model, dtype=torch.float16)


def test_the_layout_may_be_changed_afterwards() -> None:
    layer = rnnfused.LSTM(16, 64)
    made, x = rnnfused.Quantized(layer), torch.randn(5, 5, 16)
    want = made(x)
    made.batch_first = True
    assert made.batch_first
    assert_same_bits(made(x.transpose(0, 1))[0].transpose(0, 1), want[0])
    made.return_cells = True
    assert len(made(x)) == 3
    made.batch_first = made.return_cells = False
    assert_same_bits(made(x), want)
    twin = copy.copy(made)
    twin.batch_first = twin.return_cells = True
    assert not (made.batch_first or made.return_cells)
    assert_same_bits(made(x), want)
    assert_same_bits(twin(x.transpose(0, 1))[0].transpose(0, 1), want[0])


@pytest.mark.parametrize("inplace", [False, True])
def test_a_model_that_is_a_layer(inplace: bool) -> None:
    layer, x = nn.LSTM(INPUT, 64), torch.randn(3, 2, INPUT)
    made = rnnfused.quantize_dynamic(layer, inplace=inplace)
    assert isinstance(made, rnnfused.Quantized)
    assert_same_bits(made(x), rnnfused.Quantized(layer)(x))
    assert type(rnnfused.quantize_dynamic(nn.LSTM(INPUT, 63))) is rnnfused.LSTM
    assert type(rnnfused.quantize_dynamic(nn.Linear(2, 2))) is nn.Linear


def test_what_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(OwnMaths(2, 64), nn.GRU(2, 64, dtype=torch.float64), nn.GRU(2, 64, device="meta"))
    made = rnnfused.quantize_dynamic(model)
    assert [type(m) for m in made] == [OwnMaths, rnnfused.GRU, rnnfused.GRU]
    texts = [record.getMessage().split(":")[0] for record in caplog.records]
    assert texts == [
        f"0 ({__name__}.OwnMaths) is left alone",
        "1 stays as it is",
        "2 stays as it is",
    ]
    assert all(record.levelname == "WARNING" for record in caplog.records)


@pytest.mark.parametrize("kind", [CallsSuper, OfOurs])
def test_subclasses_are_left_alone_and_named(kind: type, caplog: pytest.LogCaptureFixture) -> None:
    made = rnnfused.quantize_dynamic(nn.Sequential(kind(2, 64)))
    assert isinstance(made[0], kind)  # what it computes is its own business
    assert any(record.getMessage().startswith("0 ") for record in caplog.records)


@pytest.mark.parametrize(
    "change",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.weight_norm,
        lambda layer, name: prune.l1_unstructured(layer, name, 0.5),
    ],
)
def test_parametrised_layers(change: Any) -> None:
    layer = change(nn.GRU(INPUT, 64), "weight_hh_l0")
    kind, x = type(layer), torch.randn(4, 2, INPUT)
    plain = nn.GRU(INPUT, 64)
    with torch.no_grad():
        layer(x)
        for name, weight in plain.named_parameters():
            weight.copy_(getattr(layer, name))
    want = rnnfused.Quantized(plain)(x)
    assert_same_bits(rnnfused.Quantized(layer)(x), want)
    assert type(layer) is kind
    assert_same_bits(rnnfused.quantize_dynamic(nn.Sequential(layer))(x), want)


def test_hooks_stay() -> None:
    layer, calls = nn.GRU(INPUT, 64), []
    layer.register_forward_hook(lambda *_: calls.append(0))
    x = torch.randn(4, 2, INPUT)
    of_torch_ao(layer, False)(x)
    assert len(calls) == 1
    rnnfused.quantize_dynamic(nn.Sequential(layer))(x)
    assert len(calls) == 2


def test_the_layers_attributes() -> None:
    source = make("LSTM", {"num_layers": 2, "proj_size": 9, "bidirectional": True, "batch_first": True})
    layer = rnnfused.Quantized(source)
    for name in (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "bidirectional",
        "proj_size",
    ):
        assert getattr(layer, name) == getattr(source, name)
    layer.flatten_parameters()
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = layer.other
    with pytest.raises(AttributeError, match="no attribute '_other'"):
        _ = layer._other
    assert not layer.train()(torch.zeros(2, 3, INPUT))[0].isnan().any()


def test_weights_moved_to_the_meta_device_and_back_as_others() -> None:
    layer, x = rnnfused.Quantized(make("GRU", {})), torch.randn(3, 2, INPUT)
    want = layer(x)
    state = layer.state_dict()
    layer.to("meta")
    assert layer(x.to("meta"))[0].is_meta
    layer.to_empty(device="cpu").load_state_dict(state)
    assert_same_bits(layer(x), want)
    for change in (nn.Module.half, nn.Module.double):
        with pytest.raises(
            RuntimeError, match=r"(scale|bias)_ih_l0: expected dtype Float|input: expected dtype"
        ):
            change(copy.deepcopy(layer))(x)


@pytest.mark.parametrize("how", ["in place", "assigned", "functional_call"])
def test_changed_buffers_are_seen(how: str) -> None:
    layer, x = rnnfused.Quantized(make("GRU", {})), torch.randn(3, 2, INPUT)
    layer(x)
    other = {"bias_ih_l0": layer.bias_ih_l0 + 1}
    fresh = copy.deepcopy(layer)
    fresh.load_state_dict(other, strict=False)
    want = fresh(x)
    if how == "functional_call":
        assert_same_bits(torch.func.functional_call(layer, other, (x,)), want)
        return
    if how == "in place":
        layer.bias_ih_l0.copy_(other["bias_ih_l0"])
    else:
        layer.bias_ih_l0 = other["bias_ih_l0"]
    assert_same_bits(layer(x), want)


def test_one_input_has_one_output() -> None:
    layer, x = rnnfused.Quantized(make("GRU", {})), torch.randn(3, 9, INPUT)
    layer(x[:, :1])
    layer.bias_ih_l0.add_(1)
    assert torch.equal(layer(x[:, :1])[0], layer(x)[0][:, :1])


# ---- Compilers, tracers, transforms


TRACED = pytest.mark.parametrize("kind, options", [*STACKS, *CELLS[::2]])


def example(kind: str, steps: int = 6) -> Tensor:
    return torch.randn(*((5,) if kind.endswith("Cell") else (steps, 5)), INPUT)


@pytest.mark.long
@TRACED
def test_compiled(kind: str, options: dict[str, Any]) -> None:
    layer, x = rnnfused.Quantized(make(kind, options)), example(kind)
    want = layer(x)
    torch.compiler.reset()
    for backend in ("eager", "aot_eager"):
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        assert_same_bits(compiled(x), want)
        with torch.no_grad():
            assert_same_bits(compiled(x), want)


def test_compiled_by_inductor() -> None:
    model = rnnfused.quantize_dynamic(Tagger())
    x = torch.randn(2, 5, INPUT)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


@TRACED
def test_exported(kind: str, options: dict[str, Any]) -> None:
    layer, x = rnnfused.Quantized(make(kind, options)), example(kind)
    for called in (False, True):
        program = torch.export.export(layer, (x,))
        assert_same_bits(program.module()(x), layer(x) if called else rnnfused.Quantized.forward(layer, x))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert_same_bits(torch.export.load(file).module()(x), layer(x))
    if not kind.endswith("Cell"):
        steps = torch.export.Dim("steps", min=2)
        place = 1 if options.get("batch_first") else 0
        other = torch.randn(9, 5, INPUT) if place == 0 else torch.randn(6, 11, INPUT)
        if place == 1:
            x = torch.randn(6, 5, INPUT)
        program = torch.export.export(layer, (x,), dynamic_shapes={"input": {place: steps}})
        assert_same_bits(program.module()(other), layer(other))


@TRACED
def test_traced(kind: str, options: dict[str, Any]) -> None:
    layer, x = rnnfused.Quantized(make(kind, options)), example(kind)
    symbolic = torch.fx.symbolic_trace(nn.Sequential(layer))
    assert [node.op for node in symbolic.graph.nodes] == ["placeholder", "call_module", "output"]
    assert_same_bits(symbolic(x), layer(x))
    traced = torch.jit.trace(lambda t: tuple(tensors(layer(t))), x, check_trace=False)
    assert_same_bits(traced(2 * x), tensors(layer(2 * x)))


@TRACED
def test_fake_and_meta_tensors(kind: str, options: dict[str, Any]) -> None:
    layer, x = rnnfused.Quantized(make(kind, options)), example(kind)
    shapes = [(t.shape, t.dtype) for t in tensors(layer(x))]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = tensors(layer(mode.from_tensor(x)))
    assert [(t.shape, t.dtype) for t in found] == shapes
    assert all(type(t).__name__ == "FakeTensor" for t in found)
    with FakeTensorMode() as mode:
        fake = rnnfused.Quantized(make(kind, options))
        assert [(t.shape, t.dtype) for t in tensors(fake(mode.from_tensor(x)))] == shapes
    found = tensors(copy.deepcopy(layer).to("meta")(x.to("meta")))
    assert [(t.shape, t.dtype) for t in found] == shapes and all(t.is_meta for t in found)


@TRACED
def test_mapped(kind: str, options: dict[str, Any]) -> None:
    layer, x = rnnfused.Quantized(make(kind, options)), torch.stack([example(kind) for _ in range(3)])
    found = tensors(torch.func.vmap(lambda t: tuple(tensors(layer(t))))(x))
    for got, want in zip(found, zip(*(tensors(layer(t)) for t in x), strict=True), strict=True):
        assert torch.equal(got, torch.stack(want))


@BOTH
def test_ensembles(kind: str) -> None:
    """Each with weights of its own."""
    layers, x = [rnnfused.Quantized(make(kind, {})) for _ in range(3)], example(kind)
    params, buffers = torch.func.stack_module_state(layers)
    text = layers[0]._config().text
    stacked = [torch.stack(parts) for parts in zip(*(layer._params() for layer in layers), strict=True)]
    assert not params and len(buffers) == len(stacked)
    found = torch.func.vmap(
        lambda *weights: tuple(
            torch.ops.rnnfused.recurrent(x, [], list(weights), None, None, None, text, False)
        )
    )(*stacked)
    for got, want in zip(found, zip(*(tensors(layer(x)) for layer in layers), strict=True), strict=True):
        assert torch.equal(got, torch.stack(want))


@BOTH
def test_operations_are_counted_as_the_layers(kind: str) -> None:
    source, x, found = make(kind, {"bidirectional": True}), example(kind), []
    for layer in (source, rnnfused.Quantized(source)):
        with FlopCounterMode(display=False) as counter:
            layer(x)
        found.append(counter.get_total_flops())
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_autocast_leaves_it_alone(kind: str, dtype: torch.dtype) -> None:
    layer, x = rnnfused.Quantized(make(kind, {})), example(kind)
    want = layer(x)
    with torch.autocast("cpu", dtype):
        assert_same_bits(layer(x), want)


def test_onnx_says_that_there_is_none() -> None:
    layer = rnnfused.Quantized(make("LSTM", {}))
    with pytest.raises(Exception, match="ONNX's LSTM has no weights of 8 bits"):
        torch.onnx.export(layer, (example("LSTM"),), io.BytesIO(), dynamo=False)


def test_nested_and_strided_input() -> None:
    layer = rnnfused.Quantized(make("GRU", {"batch_first": True}))
    parts = [torch.randn(n, INPUT) for n in (4, 1, 9)]
    y, h = layer(torch.nested.nested_tensor(parts, layout=torch.jagged))
    for part, got, state in zip(parts, y.unbind(), h.unbind(1), strict=True):
        want, final = layer(part)
        assert torch.equal(got, want) and torch.equal(state, final)
    wide = torch.randn(2 * INPUT, 4, 6)
    strided = wide[::2, ::2].permute(2, 1, 0)
    assert not strided.is_contiguous()
    assert_same_bits(layer(strided), layer(strided.contiguous()))
    negative = torch.complex(torch.zeros_like(strided), -strided).conj().imag
    assert negative.is_neg()
    assert_same_bits(layer(negative), layer(strided))
