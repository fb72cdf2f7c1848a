"""Masks of zoneout and recurrent dropout: against the generator in plain integers, and their statistics."""

from __future__ import annotations

import math

import pytest
import torch
from philox import philox, word_of
from tolerances import DEVIATIONS, FLOAT64
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rnnfused import _masks

# Counter and key, and what comes of them: the published answers of Random123, the authors' own program.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
SEEDS = (0, 1, 0x0123456789ABCDEF, -1, -(2**63))


def numbers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize("counter, key, answer", KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    assert philox(numbers(counter), numbers(key)) == numbers(answer)
    c0, c1, c2, c3 = torch.tensor(numbers(counter))
    k0, k1 = torch.tensor(numbers(key))
    assert torch.stack(_masks.philox((c0, c1, c2, c3), (k0, k1))).tolist() == numbers(answer)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("units", [1, 15, 16, 17, 64, 65, 130])
def test_every_unit_has_its_number(seed: int, direction: int, units: int) -> None:
    rows, p = [0, 1, 7, 2**32 - 1, 2**32, 3 * 2**32 + 5], 0.3
    own = torch.tensor(seed), torch.tensor(rows)
    for what in range(3):
        below = torch.tensor(
            [[word_of(seed, what, direction, r, u) < p * 2**32 for u in range(units)] for r in rows]
        )
        if what < 2:
            assert torch.equal(_masks.zoneout(own[0], what, direction, own[1], units, p), below)
        else:
            factors = _masks.recurrent_dropout(own[0], direction, own[1], units, p, torch.float64)
            assert torch.equal(factors, (~below).double() / (1 - p))


@pytest.mark.parametrize("p, keeps", [(0.0, False), (1.0, True)])
def test_never_and_always(p: float, keeps: bool) -> None:
    rows = torch.arange(50)
    assert (_masks.zoneout(torch.tensor(3), 0, 0, rows, 100, p) == keeps).all()
    factors = _masks.recurrent_dropout(torch.tensor(3), 0, rows, 100, p, torch.float32)
    assert (factors == (0.0 if keeps else 1.0)).all()


def deviations(mask: Tensor, p: float) -> Tensor:
    """How many standard deviations the mean over the last dimension is off."""
    return (mask.double().mean(-1) - p).abs() * math.sqrt(mask.size(-1) / (p * (1 - p)))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_means(p: float) -> None:
    """Of all, of each row and of each unit."""
    mask = _masks.zoneout(torch.tensor(11), 0, 0, torch.arange(1000), 500, p)
    for of in (mask.flatten(), mask, mask.t()):
        assert deviations(of, p).max() < DEVIATIONS
    factors = _masks.recurrent_dropout(torch.tensor(11), 0, torch.arange(1000), 500, p, torch.float64)
    assert deviations((factors == 0).flatten(), p) < DEVIATIONS
    assert factors.max().item() == pytest.approx(1 / (1 - p), rel=FLOAT64)


def test_neighbours_are_independent() -> None:
    """Two masks of 1/2 agree in half of their places: of neighbouring rows, units, seeds, directions, and of
    what is drawn.
    """
    p, rows, units = 0.5, torch.arange(1000), 512

    def mask(seed: int = 5, what: int = 0, direction: int = 0) -> Tensor:
        return _masks.zoneout(torch.tensor(seed), what, direction, rows, units, p)

    one = mask()
    dropped = _masks.recurrent_dropout(torch.tensor(5), 0, rows, units, p, torch.float32) == 0
    pairs = [(one, other) for other in (mask(seed=6), mask(seed=5 + 2**32), mask(what=1), mask(direction=1))]
    pairs += [(one, dropped), (mask(what=1), dropped)]
    pairs += [(one[:-by], one[by:]) for by in (1, 2, 32)]
    pairs += [(one[:, :-by], one[:, by:]) for by in (1, 16, 64)]
    for first, second in pairs:
        assert deviations((first == second).flatten(), p) < DEVIATIONS


def test_fake_tensors_and_compiled() -> None:
    def both(seed: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return (
            _masks.zoneout(seed, 1, 1, rows, 70, 0.4),
            _masks.recurrent_dropout(seed, 0, rows, 70, 0.4, torch.float32),
        )

    with FakeTensorMode():
        fake = both(torch.tensor(1), torch.arange(5))
    assert [(t.shape, t.dtype) for t in fake] == [((5, 70), torch.bool), ((5, 70), torch.float32)]
    own = torch.tensor(-12345), torch.arange(2**31, 2**31 + 5)
    for ours, theirs in zip(torch.compile(both, fullgraph=True)(*own), both(*own), strict=True):
        assert torch.equal(ours, theirs)
