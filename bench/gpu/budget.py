"""Shares a time out among rows, of which nobody knows how long they take."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Budget"]

MOST_ROUNDS, LEAST_ROUNDS = 9, 3


class Budget:
    def __init__(self, seconds: float, rows: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end, self._rows = clock, clock() + seconds, rows
        self._taken: list[float] = []
        self._started = 0.0

    def left(self) -> float:
        return self._end - self._clock()

    def allows_another(self) -> bool:
        """Whether a row that takes as long as the usual one so far would still end in time."""
        usual = sorted(self._taken)[len(self._taken) // 2] if self._taken else 0.0
        return self.left() > 1.5 * usual

    def rounds(self) -> int:
        """Fewer, the less of a second each of the rows to come has."""
        to_come = max(1, self._rows - len(self._taken))
        share = max(0.0, self.left()) / to_come
        return int(min(MOST_ROUNDS, max(LEAST_ROUNDS, LEAST_ROUNDS + 4 * share)))

    def row_starts(self) -> None:
        self._started = self._clock()

    def row_ended(self) -> None:
        self._taken.append(self._clock() - self._started)
