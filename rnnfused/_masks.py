"""What zoneout and recurrent dropout draw: nothing of it is stored, each number is a function of its place.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). Its key
is the seed of a layer, its counter (c0, what + 4 direction, row, row / 2**32), where c0 and one of the four
words are the unit's. Whoever computes it, in whatever order, finds the same bits: threads, devices, forward
and backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["philox", "recurrent_dropout", "zoneout"]

# What is drawn: zoneout of the states has their numbers, h 0 and c 1.
_RECURRENT_DROPOUT = 2

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF

_LANES = 16  # neighbouring units have neighbouring counters, so that vectors of this many need no shuffles
_WORDS = 4  # of a counter, one for each of as many groups of lanes


def zoneout(seed: Tensor, state: int, direction: int, rows: Tensor, units: int, p: float) -> Tensor:
    """Whether each unit keeps its previous value [R, units], bool.

    seed: of the layer, int64 []. state: 0 for h, 1 for c. rows: their numbers t B + b, int64 [R].
    """
    return _words(seed, state + 4 * direction, rows, units) < _threshold(p)


def recurrent_dropout(
    seed: Tensor, direction: int, rows: Tensor, units: int, p: float, dtype: torch.dtype
) -> Tensor:
    """What each unit of h is multiplied with [R, units]: 0 with probability p, otherwise 1 / (1 - p).

    rows: the sequences' numbers, int64 [R].
    """
    kept = _words(seed, _RECURRENT_DROPOUT + 4 * direction, rows, units) >= _threshold(p)
    return kept.to(dtype) * (1 / (1 - p) if p < 1 else 0.0)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The four words of each counter. All are 32 bits in int64, of shapes that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return [c0, c1, c2, c3]


def _multiply(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the product, in halves: the whole overflows int64, which no compiler needs to
    bear.
    """
    low = word * (factor & 0xFFFF)
    high = word * (factor >> 16) + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | (low & 0xFFFF)


def _words(seed: Tensor, what: int, rows: Tensor, units: int) -> Tensor:
    """A number of 32 bits for each unit of each row, int64 [R, units]: that of the unit u is the word
    u % 64 / 16 of the counters whose c0 is u / 64 * 16 + u % 16, in whole numbers.
    """
    blocks = -(-units // (_LANES * _WORDS))
    c0 = torch.arange(blocks * _LANES, device=rows.device)
    rows = rows.unsqueeze(1)
    words = philox((c0, torch.full_like(c0, what), *_halves(rows)), _halves(seed))
    by_block = torch.stack([word.unflatten(1, (blocks, _LANES)) for word in words], 2)
    return by_block.flatten(1)[:, :units]


def _halves(number: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high 32 bits."""
    return number & _WORD, number >> 32 & _WORD


def _threshold(p: float) -> int:
    """Words below it are those of probability p."""
    return int(p * 2**32)
