"""One layer in each of the operator's forms: what it takes, what its gradients take, and its twin in torch
operations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnnfused import _decomposed
from rnnfused._layer import LayerConfig, Layout

__all__ = ["LAYOUTS", "SEED", "VARIANTS", "Case", "cases", "one_of_each"]

SEED = -0x123456789ABCDEF
VARIANTS = [("rnn_tanh", False), ("rnn_relu", False), ("lstm", False), ("lstm", True), ("gru", False)]
PLAIN = ("padded", "batch_first", "unbatched", "batch_first_unbatched", "packed", "step", "unbatched_step")
LAYOUTS = (
    "padded",
    "batch_first",
    "unbatched",
    "batch_first_unbatched",
    "packed",
    "lengths",
    "batch_first_lengths_resets",
    "unbatched_resets",
    "concatenated",
    "concatenated_resets",
    "cells",
    "batch_first_lengths_cells",
    "step",
    "unbatched_step",
)


# The same tensors in every call: to a tracer they are constants, as a user's would be.


@functools.cache
def _batch_sizes(steps: int, batch: int) -> Tensor:
    return torch.linspace(batch, 1, steps).long()


@functools.cache
def _lengths(steps: int, batch: int) -> Tensor:
    return torch.tensor([(2 * b + 1) % (steps + 1) for b in range(batch)])


@functools.cache
def _resets(sizes: tuple[int, ...]) -> Tensor:
    return (torch.arange(math.prod(sizes)) % 3 == 1).view(sizes)


@dataclass(frozen=True)
class Case:
    """cell, whether it is projected, one of LAYOUTS, and sizes: T steps, B sequences, I and H units; options
    of LayerConfig by name.
    """

    cell: str
    projected: bool = False
    layout: str = "padded"
    directions: int = 1
    biases: bool = True
    steps: int = 3
    batch: int = 2
    input: int = 3
    hidden: int = 4
    dtype: torch.dtype = torch.float64
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.config.text}-{self.layout}".replace(" ", "-")

    @property
    def step(self) -> bool:
        return self.layout.endswith("step")

    @property
    def batched(self) -> bool:
        return "unbatched" not in self.layout

    @property
    def packed(self) -> bool:
        return self.layout == "packed"

    @property
    def states(self) -> int:
        return 2 if self.cell == "lstm" else 1

    @property
    def config(self) -> LayerConfig:
        return LayerConfig(
            self.cell,
            bidirectional=self.directions == 2,
            batch_first=self.layout.startswith("batch_first"),
            bias=self.biases,
            projected=self.projected,
            cells="cells" in self.layout,
            step=self.step,
            **dict(self.options),
        )

    @property
    def lengths(self) -> Tensor:
        """[B], in no order; of more than two sequences one has none."""
        return _lengths(self.steps, self.batch)

    @property
    def where(self) -> Layout:
        """batch_sizes, from the whole batch down to one sequence, lengths and resets."""
        if self.packed:
            return Layout(_batch_sizes(self.steps, self.batch))
        lengths = resets = None
        if "lengths" in self.layout or self.concatenated:
            lengths = self.lengths
        if "resets" in self.layout:
            resets = _resets(self.leading)
        return Layout(None, lengths, resets)

    @property
    def concatenated(self) -> bool:
        return self.layout.startswith("concatenated")

    @property
    def leading(self) -> tuple[int, ...]:
        """The input's sizes without its features."""
        if self.packed:
            assert self.where.batch_sizes is not None
            return (int(self.where.batch_sizes.sum()),)
        if self.concatenated:
            return (int(self.lengths.sum()),)
        middle = (self.batch,) if self.batched else ()
        steps = () if self.step else (self.steps,)
        return middle + steps if self.config.batch_first else steps + middle

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of input, hx and params but the seed."""
        b, h = self.batch, self.hidden
        p = h // 2 if self.projected else h
        middle = (b,) if self.batched else ()
        parts = () if self.step else (self.directions,)
        shapes = [(*self.leading, self.input), (*parts, *middle, p)]
        if self.cell == "lstm":
            shapes.append((*parts, *middle, h))
        config = self.config
        gates, k = len(config.gates), config.num_heads
        g = gates * h
        own = {"weight_peephole": (gates - 1, h), "norm_c_weight": (h,), "norm_c_bias": (h,)}
        for _ in range(self.directions):
            shapes += [(g, self.input), (g, p) if k == 1 else (k, g // k, p // k)]
            shapes += [(g,)] * 2 * self.biases + [(p, h)] * self.projected
            shapes += [own.get(name, (g,)) for name in config.own_params]
        return shapes

    def leaves(self, requires_grad: bool = False) -> list[Tensor]:
        """Of input, hx and params but the seed, from torch's generator."""
        return [torch.randn(s, dtype=self.dtype).requires_grad_(requires_grad) for s in self.shapes]

    def split(self, leaves: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Input, hx and params, the seed of what is drawn among them."""
        first = 1 + self.states
        seeds = [torch.tensor([SEED])] if self.config.drawn else []
        return leaves[0], list(leaves[1:first]), [*leaves[first:], *seeds]

    def run(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        """The operator."""
        where = self.where
        if leaves[0].is_meta and where.resets is not None:
            where = where._replace(resets=where.resets.to("meta"))
        return tuple(torch.ops.rnnfused.recurrent(*self.split(leaves), *where, self.config.text, False))

    def twin(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        """The same in torch operations."""
        return tuple(_decomposed.recurrent(self.config, *self.split(leaves), *self.where))

    def outer(self) -> list[Tensor]:
        """Outer gradients for what `run` returns."""
        with torch.no_grad():
            return [torch.randn_like(t) for t in self.run(*self.leaves())]

    def kept(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """The first output and the tape, without a graph."""
        with torch.no_grad():
            own = self.split([t.detach() for t in leaves])
            first, *_, tape = torch.ops.rnnfused.recurrent(*own, *self.where, self.config.text, True)
        return [first, tape]

    def calls(self, requires_grad: bool = False) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """Each operator and arguments for it."""
        ops = torch.ops.rnnfused
        leaves = self.leaves(requires_grad)
        arguments = (*self.split(leaves), *self.where)
        text, every = self.config.text, list(range(len(leaves)))
        output, tape = self.kept(leaves)
        outer = [t.requires_grad_(requires_grad) for t in self.outer()]
        tangents = [torch.randn_like(t) for t in leaves]
        moved = [torch.randn_like(t) for t in outer]
        for save in (False, True):
            yield ops.recurrent.default, (*arguments, text, save)
        yield ops.recurrent_backward.default, (outer, *arguments, output, tape, text, every)
        yield ops.recurrent_tangent.default, (tangents, outer, moved, *arguments, output, text, True, every)
        plain = (*self.split([t.detach() for t in leaves]), *self.where)
        yield ops.recurrent_gate_gradients.default, ([t.detach() for t in outer], *plain, output, text)


def cases(layouts: Sequence[str] = LAYOUTS, **sizes: Any) -> list[Case]:
    """Every cell, with a projection and without, in each layout, in one direction and two, with biases and
    without.
    """
    found = []
    for cell, projected in VARIANTS:
        for layout in layouts:
            one_step = layout.endswith("step")
            if not _has(layout, cell, projected):
                continue
            for directions in (1,) if one_step else (1, 2):
                # Where the sequences are has nothing to do with the biases.
                biases = (True, False) if layout in PLAIN else (directions == 2,)
                found += [Case(cell, projected, layout, directions, b, **sizes) for b in biases]
    return found


def _has(layout: str, cell: str, projected: bool) -> bool:
    return not (projected if layout.endswith("step") else "cells" in layout and cell != "lstm")


def one_of_each(**sizes: Any) -> list[Case]:
    """Every cell in every layout, directions and biases taking turns."""
    found = []
    for row, (cell, projected) in enumerate(VARIANTS):
        for column, layout in enumerate(LAYOUTS):
            one_step = layout.endswith("step")
            if not _has(layout, cell, projected):
                continue
            turn = row + column
            found.append(
                Case(cell, projected, layout, 1 if one_step else 1 + turn % 2, turn % 3 > 0, **sizes)
            )
    return found
