"""Zoneout, around a step: units that keep their previous value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rnnfused.reference._maths import Array, Arrays


@dataclass(frozen=True)
class Zoneout:
    """How much of its previous value each unit keeps: a mask in training, the probability in evaluation.

    keep: of each state, [N, P|H] for h, [N, H] otherwise, or [1, 1] for all of them.
    """

    keep: Arrays

    def forward(self, rows: slice, prev: Arrays, new: Arrays) -> Arrays:
        """keep prev + (1 - keep) new, where a unit that takes one of them whole sees no NaN of the other."""
        mixed = []
        for keep, before, after in zip(self._at(rows), prev, new, strict=True):
            some = np.where(keep == 1, before, keep * before + (1 - keep) * after)
            mixed.append(np.where(keep == 0, after, some))
        return tuple(mixed)

    def backward(self, rows: slice, dmixed: Arrays) -> tuple[Arrays, Arrays]:
        """Gradients of the previous and of the new states."""
        pairs = [(keep * d, (1 - keep) * d) for keep, d in zip(self._at(rows), dmixed, strict=True)]
        return tuple(prev for prev, _ in pairs), tuple(new for _, new in pairs)

    def _at(self, rows: slice) -> list[Array]:
        return [keep if keep.shape == (1, 1) else keep[rows] for keep in self.keep]
