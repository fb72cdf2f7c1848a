"""Sequences that are long, and sizes beyond 32 bits."""

from __future__ import annotations

import os

import pytest
import torch

import rnnfused

STEPS = 100_000


def gradients(layer: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y, _ = layer(x)
    wanted = [x, *layer.parameters()]
    return [y.detach(), *torch.autograd.grad(y.sin().mean(), wanted)]


@pytest.mark.long
@pytest.mark.parametrize("name", ["RNN", "LSTM"])
def test_a_hundred_thousand_steps(name: str) -> None:
    torch.manual_seed(4)
    theirs = getattr(torch.nn, name)(2, 3, dtype=torch.float64)
    ours = getattr(rnnfused, name)(2, 3, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(STEPS, 1, 2, dtype=torch.float64, requires_grad=True)
    for got, want in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-14)


def test_a_hundred_thousand_steps_of_many_rows() -> None:
    # The same sequence in every row: what a row gets does not depend on the others, nor on how long it waits.
    torch.manual_seed(5)
    layer = rnnfused.LSTM(4, 16, recompute=True)
    x = torch.randn(STEPS, 1, 4)
    one, _ = layer(x.requires_grad_())
    many, _ = layer(x.detach().expand(-1, 3, -1))
    for row in range(3):
        assert torch.equal(many[:, row], one[:, 0])
    many.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.skipif("RNNFUSED_LARGE_TESTS" not in os.environ, reason="RNNFUSED_LARGE_TESTS=1: 14 GiB")
def test_more_than_32_bits_of_gates() -> None:
    # 2^31 gates: an index of 32 bits would wrap within the tape. Rows 0 and B - 1 hold the same sequence.
    hidden, batch = 64, 1 << 17
    steps = (1 << 31) // (4 * hidden * batch) + 1
    torch.manual_seed(6)
    layer = rnnfused.LSTM(1, hidden)
    x = torch.randn(steps, 1, 1).expand(-1, batch, -1).contiguous().requires_grad_()
    y, _ = layer(x)
    dy = torch.zeros_like(y)
    dy[:, 0] = dy[:, -1] = torch.randn(steps, hidden)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(y[:, 0], y[:, -1])
    assert torch.equal(dx[:, 0], dx[:, -1])
    small = x[:, :1].detach().requires_grad_()
    (want,) = torch.autograd.grad(layer(small)[0], small, dy[:, :1])
    torch.testing.assert_close(dx[:, :1], want)
    assert dx[:, 1:-1].abs().max() == 0
