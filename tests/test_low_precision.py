"""16 bits on the CPU: computed in float32, given back in the type that torch.nn gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from results import tensors
from tolerances import FLOOR_ULPS, TORCH_ERRORS
from torch import Tensor

import rnnfused

LAYERS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
NARROW = (torch.bfloat16, torch.float16)
INPUT, H = 6, 17


def pair(kind: str, dtype: torch.dtype | None = None, **options: Any) -> tuple[Any, Any]:
    theirs = getattr(torch.nn, kind)(INPUT, H, dtype=dtype, **options)
    ours = getattr(rnnfused, kind)(INPUT, H, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def gradients(module: Any, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    found = tensors(module(x))
    grads = torch.autograd.grad([t.float().sin().sum() for t in found], [x, *module.parameters()])
    return [*(t.detach() for t in found), *grads]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_errors_of_modules(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, theirs = pair(kind, dtype, **options)
    x = torch.randn(12, 4, INPUT).to(dtype)
    exact_module = getattr(torch.nn, kind)(INPUT, H, dtype=torch.float64, **options)
    exact_module.load_state_dict(theirs.state_dict())
    got, exact = gradients(ours, x), gradients(exact_module, x.double())
    assert {t.dtype for t in got} == {dtype}
    try:
        torchs = gradients(theirs, x)
    except RuntimeError:  # oneDNN has no float16 LSTM on some processors
        torchs = exact
    for one, other, want in zip(got, torchs, exact, strict=True):
        error, theirs_error = ((t.double() - want).abs().max() for t in (one, other))
        floor = FLOOR_ULPS * torch.finfo(dtype).eps * want.abs().max()
        assert error <= max(TORCH_ERRORS * theirs_error, floor)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_autocast_gives_torchs_types(kind: str, dtype: torch.dtype) -> None:
    ours, theirs = pair(kind)
    x = torch.randn(4, INPUT) if kind in CELLS else torch.randn(7, 4, INPUT)
    with torch.autocast("cpu", dtype):
        got = tensors(ours(x))
        try:
            want = tensors(theirs(x))
        except RuntimeError:  # as above
            assert {t.dtype for t in got} == {dtype}
            return
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=FLOOR_ULPS * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_under_autocast_have_the_parameters_types(kind: str) -> None:
    ours, _ = pair(kind)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(t.float().sin().sum() for t in tensors(ours(torch.randn(7, 4, INPUT))))
    loss.backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in ours.parameters())


def test_training_in_bfloat16_goes_as_torchs() -> None:
    x = torch.randn(10, 8, INPUT).to(torch.bfloat16)
    curves = []
    for module in pair("GRU", torch.bfloat16):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = module(x)[0].float().sub(0.3).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    ours, theirs = curves
    assert ours[-1] < ours[0]
    # Each step rounds every weight: by up to an eps of its size.
    assert ours == pytest.approx(theirs, rel=20 * torch.finfo(torch.bfloat16).eps)
