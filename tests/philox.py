"""Philox4x32-10 in Python's integers, as the paper has it, and the number of each unit."""

from __future__ import annotations

__all__ = ["philox", "word_of"]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """The four words of a counter; all are of 32 bits."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = second >> 32 ^ b ^ k, second & 0xFFFFFFFF, first >> 32 ^ d ^ m, first & 0xFFFFFFFF
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def word_of(seed: int, what: int, direction: int, row: int, unit: int) -> int:
    """The number of one unit: what is 0 for zoneout of h, 1 for that of c, 2 for recurrent dropout."""
    counter = [unit // 64 * 16 + unit % 16, what + 4 * direction, row % 2**32, row >> 32]
    return philox(counter, [seed % 2**32, seed >> 32 & 0xFFFFFFFF])[unit % 64 // 16]
