"""Steppers: one step a call, with the bits of the module over the whole sequence."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from results import assert_same_bits, tensors

import rnnfused

T, INPUT, H = 12, 7, 37


def layer(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(rnnfused, kind)(INPUT, H, **options)


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 3, "batch_first": True}),
    ("LSTM", {"num_layers": 2, "proj_size": 9, "bias": False}),
    ("GRU", {"num_layers": 2, "dtype": torch.float64}),
    ("GRU", {"bias": False}),
    ("RNN", {"num_layers": 2, "nonlinearity": "relu"}),
    ("RNN", {}),
    ("LSTM", {"num_layers": 2, "dtype": torch.bfloat16}),
    ("LSTM", {"proj_size": 9, "dtype": torch.float16}),
    ("GRU", {"dtype": torch.bfloat16}),
]


@pytest.mark.parametrize("kind, options", KINDS)
@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_of_the_whole_sequence(kind: str, options: dict[str, Any], batch: int, threads: int) -> None:
    module = layer(kind, **options)
    x = torch.randn(T, batch, INPUT, dtype=options.get("dtype", torch.float32))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            want, final = module(x.transpose(0, 1) if module.batch_first else x)
        stepper = rnnfused.Stepper(module, batch)
        got = torch.stack([stepper(step) for step in x])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, want.transpose(0, 1) if module.batch_first else want)
    assert_same_bits([t.to(x.dtype) for t in tensors(stepper.state)], final)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("weights, dtype", [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_weights_in_16_bits(kind: str, weights: str, dtype: torch.dtype) -> None:
    module, x = layer(kind, num_layers=2), torch.randn(T, 3, INPUT)
    narrow = copy.deepcopy(module).to(dtype)
    stepper = rnnfused.Stepper(module, 3, weights=weights)
    assert repr(stepper).endswith(f"batch_size=3, weights='{weights}')")
    with torch.no_grad():
        want, final = narrow(x.to(dtype))
    for copied in (stepper, copy.deepcopy(stepper), pickle.loads(pickle.dumps(stepper))):
        got = torch.stack([copied(step) for step in x])
        assert got.dtype == torch.float32 and torch.equal(got, want.float())
        assert all(t.dtype == torch.float32 for t in tensors(copied.state))
        assert_same_bits([t.to(dtype) for t in tensors(copied.state)], final)
    stepper.reset()
    active = torch.tensor([True, False, True])
    y = stepper(x[0], active=active)
    assert torch.equal(y[active], want[0].float()[active]) and not y[1].any()
    with torch.no_grad():
        module.weight_ih_l0.zero_()
    stepper.refresh()
    assert not torch.equal(stepper(x[0])[0], want[0, 0].float())


def test_weights_that_there_are_not() -> None:
    with pytest.raises(
        ValueError, match="weights: expected None or one of 'bf16', 'f16', 'int8', got 'int4'"
    ):
        rnnfused.Stepper(layer("GRU"), weights="int4")
    with pytest.raises(
        ValueError, match=r"module: expected dtype torch.float32 with weights, got torch.float64"
    ):
        rnnfused.Stepper(layer("GRU", dtype=torch.float64), weights="bf16")
    with pytest.raises(RuntimeError, match="input: expected dtype Float, got BFloat16"):
        rnnfused.Stepper(layer("GRU"), weights="bf16")(torch.zeros(1, INPUT, dtype=torch.bfloat16))


def test_a_large_layer_on_two_threads_and_on_one() -> None:
    module = rnnfused.LSTM(300, 400, 2)
    x, before = torch.randn(9, 2, 300), torch.get_num_threads()
    want, _ = module(x)
    stepper = rnnfused.Stepper(module, 2)
    try:
        for step, (row, threads) in enumerate(zip(x, [2, 1, 2, 2, 1, 1, 2, 4, 2], strict=True)):
            torch.set_num_threads(threads)  # the plan and the packed weights follow
            assert torch.equal(stepper(row), want[step])
    finally:
        torch.set_num_threads(before)


def test_the_state_can_be_had_and_set() -> None:
    module = layer("LSTM", num_layers=2)
    x = torch.randn(T, 3, INPUT)
    with torch.no_grad():
        want, final = module(x)
        _, half = module(x[:5])
    stepper = rnnfused.Stepper(module, 3)
    stepper.state = half
    kept = stepper.state
    outputs = [stepper(row) for row in x[5:]]
    assert torch.equal(torch.stack(outputs), want[5:])
    assert_same_bits(stepper.state, final)
    assert_same_bits(kept, half)  # a copy
    stepper.reset()
    assert torch.equal(stepper(x[0]), want[0])
    stepper.state = tuple(s.requires_grad_() for s in half)
    assert not any(s.requires_grad for s in tensors(stepper.state))


def test_changed_weights_are_taken_when_asked_for() -> None:
    module = layer("GRU")
    x = torch.randn(9, 4, INPUT)
    stepper = rnnfused.Stepper(module, 4)
    old, _ = module(x)
    assert torch.equal(stepper(x[0]), old[0])
    with torch.no_grad():
        module.weight_hh_l0.mul_(1.5)
    assert torch.equal(stepper(x[1]), old[1])
    module.weight_ih_l0 = torch.nn.Parameter(module.weight_ih_l0 * 0.5)
    stepper.refresh()
    stepper.reset()
    new, _ = module(x)
    assert torch.equal(stepper(x[0]), new[0])
    assert not torch.equal(new[0], old[0])


def test_inputs_of_any_kind_that_fits() -> None:
    module = layer("LSTM")
    stepper = rnnfused.Stepper(module, 2)
    wide = torch.randn(2 * INPUT, 4)
    strided = wide[::2, ::2].t()
    want, _ = module(strided.expand(9, 2, INPUT).contiguous())
    assert not strided.is_contiguous()
    assert torch.equal(stepper(strided), want[0])
    stepper.reset()
    negative = torch.complex(torch.zeros(2, INPUT), -strided).conj().imag
    assert negative.is_neg()
    assert torch.equal(stepper(negative), want[0])


def test_an_empty_batch_is_refused_and_so_is_what_does_not_fit() -> None:
    with pytest.raises(TypeError, match=r"module: expected an rnnfused.RNN, LSTM or GRU, got LSTM"):
        rnnfused.Stepper(torch.nn.LSTM(2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="module: expected one direction, got bidirectional=True"):
        rnnfused.Stepper(layer("GRU", bidirectional=True))
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        rnnfused.Stepper(layer("GRU"), 0)
    with pytest.raises(RuntimeError, match=r"module: expected tensors on the CPU.*, got meta"):
        rnnfused.Stepper(layer("GRU", device="meta"))
    stepper = rnnfused.Stepper(layer("LSTM"), 2)
    before = stepper.state
    with pytest.raises(RuntimeError, match=r"input: expected size \[2, 7\], got \[1, 7\]"):
        stepper(torch.zeros(1, INPUT))
    with pytest.raises(RuntimeError, match="input: expected dtype Float, got Double"):
        stepper(torch.zeros(2, INPUT).double())
    with pytest.raises(RuntimeError, match="input: expected a tensor on cpu, got meta"):
        stepper(torch.zeros(2, INPUT, device="meta"))
    with pytest.raises(RuntimeError, match="packed layers have no derivative"):
        stepper(torch.zeros(2, INPUT, requires_grad=True))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.zeros(2, INPUT), torch.ones(2, INPUT))
        with pytest.raises(RuntimeError, match="packed layers have no derivative"):
            stepper(dual)
    with pytest.raises(ValueError, match="state: expected 2 states, got 1"):
        stepper.state = before[:1]
    with pytest.raises(TypeError, match=r"state: expected \(h, c\), got None"):
        stepper.state = None
    with pytest.raises(IndexError, match="rows: expected what indexes the sequences, got None"):
        stepper.reset_rows(None)
    with pytest.raises(ValueError, match=r"state: expected size \[1, 2, 37\], got \[1, 3, 37\]"):
        stepper.state = (torch.zeros(1, 3, H), before[1])
    assert_same_bits(stepper.state, before)
    with torch.no_grad():
        stepper(torch.zeros(2, INPUT, requires_grad=True))


def test_many_callers_take_turns() -> None:
    module = layer("GRU")
    x = torch.randn(1, INPUT).expand(64, 1, INPUT).contiguous()
    want, final = module(x)
    stepper = rnnfused.Stepper(module)
    with ThreadPoolExecutor(6) as callers:
        found = list(callers.map(stepper, x))
    # In some order, every step was taken once.
    assert_same_bits(stepper.state, final)
    assert {row.sum().item() for row in found} == {row.sum().item() for row in want}


def test_outputs_stay_and_the_module_is_shown() -> None:
    stepper = rnnfused.Stepper(layer("RNN"))
    first = stepper(torch.randn(1, INPUT))
    kept = first.clone()
    stepper(torch.randn(1, INPUT))
    assert torch.equal(first, kept)
    assert repr(stepper) == "Stepper(RNN(7, 37), batch_size=1)"


@pytest.mark.parametrize("weights", [None, "bf16"])
def test_an_output_of_the_callers(weights: str | None) -> None:
    stepper = rnnfused.Stepper(layer("LSTM", num_layers=2), 3, weights=weights)
    twin, rows = copy.deepcopy(stepper), torch.tensor([True, False, True])
    out = torch.full((3, H), 7.0)
    for active in (None, rows):
        x = torch.randn(3, INPUT)
        assert stepper(x, active, out=out) is out
        assert torch.equal(out, twin(x, active))
    assert_same_bits(stepper.state, twin.state)
    x = torch.randn(3, INPUT)
    overlapping = torch.zeros(3 * (INPUT + H))
    refused = [
        (x, out.double(), "out: expected dtype Float, got Double"),
        (x, out[:2], r"out: expected size \[3, 37\], got \[2, 37\]"),
        (x, torch.zeros(H, 3).t(), "out: expected a contiguous tensor"),
        (x, torch.zeros(3, H, requires_grad=True), "out: .* packed layers have no derivative"),
        (overlapping[: x.numel()].view_as(x), overlapping[9 : 9 + 3 * H].view(3, H), "memory location"),
    ]
    for given, to, words in refused:
        with pytest.raises(RuntimeError, match=words):
            stepper(given, out=to)
    assert_same_bits(stepper.state, twin.state)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_goes_on_by_itself(copied: Any) -> None:
    stepper = rnnfused.Stepper(layer("LSTM"), 2)
    for _ in range(3):
        stepper(torch.randn(2, INPUT))
    twin, x = copied(stepper), torch.randn(2, INPUT)
    assert_same_bits(twin.state, stepper.state)
    want = stepper(x)
    assert_same_bits(twin(x), want)
    stepper(x)
    assert not torch.equal(twin.state[0], stepper.state[0])


def test_the_state_waits_for_steps_of_other_threads() -> None:
    stepper = rnnfused.Stepper(rnnfused.LSTM(16, 64), 256)
    x = torch.randn(1, 16).expand(256, 16).contiguous()  # the same for all: so are their states
    done = threading.Event()

    def steps() -> None:
        while not done.is_set():
            stepper(x)

    def all_alike(states: Any) -> bool:
        return all(bool((t == t[:, :1]).all()) for t in states)

    other = threading.Thread(target=steps)
    other.start()
    try:
        for _ in range(60):
            assert all_alike(stepper.state)
            stepper.reset_rows(slice(None))
            assert all_alike(stepper.state)
            assert all_alike(copy.deepcopy(stepper).state)
            kept = stepper.get_rows(torch.arange(256))
            stepper.refresh()
            stepper.state = kept
    finally:
        done.set()
        other.join()
    assert all_alike(stepper.state)


def test_one_made_in_inference_mode_goes_on_outside() -> None:
    module = layer("GRU")
    with torch.inference_mode():
        stepper = rnnfused.Stepper(module, 2)
        stepper(torch.randn(2, INPUT))
        stepper.refresh()
        kept = stepper.state
        twin = copy.deepcopy(stepper)
    twin.reset()
    assert not twin.state.any() and stepper.state.any()
    y = stepper(torch.randn(2, INPUT))
    assert y.isfinite().all()
    stepper.reset_rows(1)
    assert not stepper.get_rows(1).any() and stepper.get_rows(0).any()
    stepper.state = kept
    stepper.set_rows(0, kept[:, 1:])
    stepper.reset()
    assert not stepper.state.any()


@pytest.mark.parametrize("row", [1, np.int64(1), torch.tensor(1)])
def test_a_row_by_any_number(row: Any) -> None:
    stepper = rnnfused.Stepper(layer("LSTM"), 3)
    stepper(torch.randn(3, INPUT))
    h, c = stepper.get_rows(row)
    assert h.shape == c.shape == (1, 1, H)
    assert torch.equal(h, stepper.state[0][:, 1:2])
    stepper.set_rows(row, (2 * h, c))
    assert_same_bits(stepper.get_rows([1])[0], 2 * h)
    stepper.reset_rows(row)
    assert not stepper.state[0][:, 1].any() and stepper.state[0][:, 0].any()


def test_another_dtype_is_taken_when_asked_for() -> None:
    module = layer("GRU", learn_initial_state=True)
    stepper = rnnfused.Stepper(module, 2)
    module.double()
    stepper.refresh()
    stepper.reset()
    x = torch.randn(3, 2, INPUT).double()
    want = module(x)[0]
    torch.testing.assert_close(torch.stack([stepper(step) for step in x]), want, rtol=1e-12, atol=1e-12)


def test_a_finalizer_or_a_signal_may_come_in_between() -> None:
    stepper = rnnfused.Stepper(rnnfused.LSTM(3, 4), 8)

    class Session:
        def __init__(self, row: int) -> None:
            self.itself = self  # so that the garbage collector ends it, wherever it happens to run
            weakref.finalize(self, stepper.reset_rows, row)

    before = gc.get_threshold()
    handler = signal.signal(signal.SIGALRM, lambda *_: stepper.reset())
    gc.set_threshold(50)
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    try:
        for i in range(1000):
            Session(i % 8)
            stepper(torch.randn(8, 3))
            stepper.refresh()
            assert stepper.state[0].shape == (1, 8, 4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        gc.set_threshold(*before)


def test_inside_a_custom_operator() -> None:
    stepper, twin = (rnnfused.Stepper(layer("LSTM"), 2) for _ in range(2))

    @torch.library.custom_op("rnnfused_tests::step", mutates_args=())
    def step(x: torch.Tensor) -> torch.Tensor:
        return stepper(x).clone()

    @step.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return x.new_empty(2, H)

    for call in (step, torch.compile(lambda x: step(x), backend="eager", fullgraph=True)):
        x = torch.randn(2, INPUT)
        assert torch.equal(call(x), twin(x))
    with torch.inference_mode(), torch.enable_grad():
        x = torch.randn(2, INPUT)
        assert torch.equal(stepper(x), twin(x))


def test_under_another_default_device() -> None:
    module = layer("GRU")
    with torch.device("meta"):
        stepper = rnnfused.Stepper(module, 2)
    assert stepper(torch.zeros(2, INPUT)).device.type == "cpu"


def test_a_step_is_not_traced() -> None:
    stepper = rnnfused.Stepper(layer("GRU"))
    with pytest.raises(RuntimeError, match="a step changes its state in place"):
        torch.jit.trace(lambda x: stepper(x), torch.randn(1, INPUT), check_trace=False)
