"""One description of a layer, built once and passed on whole."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from rnnfused.cells import CELLS, CellSpec

__all__ = ["PADDED", "LayerConfig", "Layout"]


class Layout(NamedTuple):
    """Where the sequences are in a call's input, as the operators take it (csrc/torch/arguments.h)."""

    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    resets: Tensor | None = None


PADDED = Layout()  # all sequences have all steps


@dataclass(frozen=True)
class LayerConfig:
    """A layer, layers over one another, or (`step`) one step of a cell.

    cell: the registry's name. num_layers, bidirectional, batch_first, bias: as torch.nn's. projected: whether
    each direction's params end with weight_hr. recompute: whether backward rebuilds the gates. cells: whether
    c of every step, of the last layer, is returned too. step: whether input and states come without a time
    dimension. int8: whether the matrices are of 8 bits, the scales of their rows behind the other params.

    `text` is what the operators take, and with it traced and exported graphs: the cell's name and the options
    that are not the default, in words that csrc/torch/options.cpp reads. A new option is a field here, a word
    in `text` and a field there.
    """

    cell: str
    num_layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    bias: bool = True
    projected: bool = False
    recompute: bool = False
    cells: bool = False
    step: bool = False
    int8: bool = False

    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = [self.cell]
        if self.num_layers != 1:
            words.append(f"layers={self.num_layers}")
        if not self.bias:
            words.append("no_biases")
        words += [name for name in _FLAGS if getattr(self, name)]
        object.__setattr__(self, "text", " ".join(words))

    @staticmethod
    @functools.cache
    def parse(text: str) -> LayerConfig:
        """The reverse of `text`; raises ValueError for a word that it does not know."""
        cell, *words = text.split()
        options: dict[str, int | bool] = {}
        for word in words:
            if word.startswith("layers="):
                options["num_layers"] = int(word.removeprefix("layers="))
            elif word == "no_biases":
                options["bias"] = False
            elif word in _FLAGS:
                options[word] = True
            else:
                raise ValueError(f"layer: unknown word '{word}' in '{text}'")
        return LayerConfig(cell, **options)  # type: ignore[arg-type]

    @property
    def single(self) -> LayerConfig:
        """The same of one layer."""
        options = {name: getattr(self, name) for name in ("bias", *_FLAGS)}
        return LayerConfig(self.cell, **options)

    @property
    def inner(self) -> LayerConfig:
        """The same of one layer that is not the last."""
        return dataclasses.replace(self.single, cells=False)

    @property
    def spec(self) -> CellSpec:
        return CELLS[self.cell]

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def params_each(self) -> int:
        """Tensors of one layer in one direction."""
        return (2 + self.projected) * (1 + self.int8) + 2 * self.bias

    @property
    def params(self) -> int:
        """Tensors of all layers and directions."""
        return self.params_each * self.num_layers * self.directions

    def state_sizes(self, recurrent_weight: Sequence[int]) -> tuple[int, ...]:
        """Units of each state, by the size of W_hh [G H, P]."""
        rows, output = recurrent_weight
        return (output, rows // len(self.spec.gates))[: len(self.spec.states)]

    @property
    def outputs(self) -> int:
        """Tensors that the operator returns beside a tape: the output (of a step none), the states, and c of
        every step.
        """
        return (not self.step) + len(self.spec.states) + self.cells

    def is_sequence(self, output: int) -> bool:
        """Whether one of these is laid out as the input, a row for each of its rows."""
        return not self.step and (output == 0 or (self.cells and output == self.outputs - 1))


_FLAGS = ("bidirectional", "batch_first", "projected", "recompute", "cells", "step", "int8")
