"""Float32 errors against torch.nn's own, and the same bits whatever the threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tolerances import FLOAT64, FLOOR_ULPS, TORCH_ERRORS, eps
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfused

KINDS = ("RNN", "LSTM", "GRU")
# T, B, H: one row; a few; more rows than units; long; large.
SHAPES = [(30, 1, 64), (20, 8, 100), (10, 64, 16), (300, 3, 32), (6, 5, 512)]


def results(module: Any, x: Tensor, ragged: bool = False) -> dict[str, Tensor]:
    x = x.detach().clone().requires_grad_()
    for p in module.parameters():
        p.grad = None
    sequence: Any = x
    if ragged:
        lengths = [max(1, x.size(0) * (b + 1) // x.size(1)) for b in range(x.size(1))]
        sequence = pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, h = module(sequence)
    y = y.data if isinstance(y, PackedSequence) else y
    states = h if isinstance(h, tuple) else (h,)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    ((y * weight).sum() + sum(s.square().sum() for s in states)).backward()
    found = {"y": y.detach(), "dx": x.grad, **{f"state{i}": s.detach() for i, s in enumerate(states)}}
    return found | {f"d{name}": p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_errors_at_most_twice_torchs(kind: str, shape: tuple[int, int, int]) -> None:
    t, b, h = shape
    theirs = getattr(torch.nn, kind)(h, h, bidirectional=True)
    ours = getattr(rnnfused, kind)(h, h, bidirectional=True)
    exact = getattr(torch.nn, kind)(h, h, bidirectional=True, dtype=torch.float64)
    for module in (ours, exact):
        module.load_state_dict(theirs.state_dict())
    x = torch.randn(t, b, h)
    want, got, torchs = results(exact, x.double()), results(ours, x), results(theirs, x)
    for name, truth in want.items():
        error = (got[name] - truth).abs().max()
        allowed = TORCH_ERRORS * (torchs[name] - truth).abs().max()
        floor = FLOOR_ULPS * eps("float32") * truth.abs().max()
        assert error <= max(allowed, floor), f"{name}: {error:.2e}, torch {allowed / TORCH_ERRORS:.2e}"


@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize("shape", [*SHAPES, (5, 40, 130), (2, 1, 700)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_for_every_run_and_thread_count(
    kind: str, shape: tuple[int, int, int], ragged: bool
) -> None:
    t, b, h = shape
    module = getattr(rnnfused, kind)(h, h, bidirectional=True)
    x = torch.randn(t, b, h)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 2, 4):
            torch.set_num_threads(threads)
            found.append(results(module, x, ragged))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("kind", KINDS)
def test_infinity_and_nan_spread_as_in_torch(kind: str, value: float) -> None:
    theirs = getattr(torch.nn, kind)(3, 21, dtype=torch.float64)
    ours = getattr(rnnfused, kind)(3, 21, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    x[2, 1, 0] = value
    want, got = results(theirs, x), results(ours, x)
    for name, truth in want.items():
        torch.testing.assert_close(got[name], truth, rtol=FLOAT64, atol=FLOAT64, equal_nan=True)


def test_an_infinite_gradient_reaches_the_biases_as_in_torch() -> None:
    theirs = torch.nn.RNN(3, 21, nonlinearity="relu", dtype=torch.float64)
    ours = rnnfused.RNN(3, 21, nonlinearity="relu", dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    dy = torch.randn(6, 4, 21, dtype=torch.float64)
    dy[2, 1, :7] = float("inf")
    for module in (theirs, ours):
        module(x)[0].backward(dy)
    assert theirs.bias_ih_l0.grad.isinf().any()
    for name in ("bias_ih_l0", "bias_hh_l0"):
        want, got = getattr(theirs, name).grad, getattr(ours, name).grad
        torch.testing.assert_close(got, want, rtol=FLOAT64, atol=FLOAT64, equal_nan=True)


def test_calls_from_many_threads_at_once() -> None:
    module = rnnfused.LSTM(40, 70)
    x = torch.randn(20, 6, 40)
    with torch.no_grad():
        want = module(x)[0]
        found: list[Tensor] = []

        def work() -> None:
            with torch.no_grad():
                found.extend(module(x)[0] for _ in range(10))

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(found) == 40 and all(torch.equal(y, want) for y in found)
