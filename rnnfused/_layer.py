"""One description of a layer, built once and passed on whole."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from rnnfused.cells import EVERY_CELL, OWN_CELLS, CellSpec

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

    Those from peephole on make a layer `varied`, as cells do that torch.nn has not; docs/cells.md has both.
    zoneout: of h and c. drawn: whether zoneout and recurrent dropout are drawn, as in training, and the last
    of all params is one seed for each layer, int64; otherwise zoneout has its mean and dropout does nothing.
    What they bring follows a direction's other params in the order of `own_params`.

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
    peephole: bool = False
    coupled_gates: bool = False
    reset_before: bool = False
    layer_norm: str | None = None
    cell_norm: str | None = None
    update_bias: float = 0.0
    zoneout: tuple[float, float] = (0.0, 0.0)
    recurrent_dropout: float = 0.0
    drawn: bool = False
    cell_clip: float | None = None
    gate_clip: float | None = None
    grad_clip: float | None = None
    num_heads: int = 1

    text: str = field(init=False, repr=False, compare=False)
    varied: bool = field(init=False, repr=False, compare=False)  # whether torch.nn has none such

    def __post_init__(self) -> None:
        words = [self.cell]
        if self.num_layers != 1:
            words.append(f"layers={self.num_layers}")
        if not self.bias:
            words.append("no_biases")
        words += [name for name in _FLAGS if getattr(self, name)]
        for name, (default, write, _) in _VALUES.items():
            if getattr(self, name) != default:
                words.append(f"{name}={write(getattr(self, name))}")
        object.__setattr__(self, "text", " ".join(words))
        object.__setattr__(self, "varied", bool(self.variations) or self.cell in OWN_CELLS)

    @staticmethod
    @functools.cache
    def parse(text: str) -> LayerConfig:
        """The reverse of `text`; raises ValueError for a word that it does not know."""
        cell, *words = text.split()
        options: dict[str, Any] = {}
        for word in words:
            name, _, value = word.partition("=")
            if name in _VALUES and value:
                options[name] = _VALUES[name][2](value)
            elif word.startswith("layers="):
                options["num_layers"] = int(word.removeprefix("layers="))
            elif word == "no_biases":
                options["bias"] = False
            elif word in _FLAGS:
                options[word] = True
            else:
                raise ValueError(f"layer: unknown word '{word}' in '{text}'")
        return LayerConfig(cell, **options)

    @property
    def single(self) -> LayerConfig:
        """The same of one layer."""
        return dataclasses.replace(self, num_layers=1)

    @property
    def inner(self) -> LayerConfig:
        """The same of one layer that is not the last."""
        return dataclasses.replace(self.single, cells=False)

    @property
    def spec(self) -> CellSpec:
        return EVERY_CELL[self.cell]

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def gates(self) -> tuple[str, ...]:
        """In the order of the row blocks of W_ih and W_hh."""
        gates = self.spec.gates
        return tuple(gate for gate in gates if gate != "f") if self.coupled_gates else gates

    @property
    def variations(self) -> tuple[str, ...]:
        """The options that torch.nn's layers have not, as the modules call them."""
        flags = [_CALLED.get(name, name) for name in _VARYING if getattr(self, name)]
        values = [name for name, (default, *_) in _VALUES.items() if getattr(self, name) != default]
        return (*flags, *values)

    @property
    def is_random(self) -> bool:
        """Whether training draws anything within the layers."""
        return self.recurrent_dropout > 0 or any(self.zoneout)

    @property
    def own_params(self) -> tuple[str, ...]:
        """What the options bring for each layer and direction, by name (the suffix `_l{k}` left out)."""
        names = ["weight_peephole"] if self.peephole else []
        norms = {"separate": ["ih", "hh"], "joint": [""], "input": ["ih"]}.get(self.layer_norm or "", [])
        for norm in [*norms, *(["c"] if self.cell_norm else [])]:
            names += ["_".join(part for part in ("norm", norm, kind) if part) for kind in ("weight", "bias")]
        return tuple(names)

    @property
    def params_each(self) -> int:
        """Tensors of one layer in one direction."""
        biases = len(self.spec.biases) * self.bias
        return (self.spec.matrices + self.projected) * (1 + self.int8) + biases + len(self.own_params)

    @property
    def params(self) -> int:
        """Tensors of all layers and directions, and the seeds."""
        return self.params_each * self.num_layers * self.directions + self.drawn

    def shapes(self, input: int, hidden: int, output: int) -> list[dict[str, tuple[int, ...]]]:
        """The sizes of the params, by their names, for each layer and direction; the seeds left out.

        input, hidden, output: I of the first layer (the weight of a row is none of them), H, P. Raises
        ValueError for heads that do not divide H and P.
        """
        heads, rows = self.num_heads, len(self.gates) * hidden
        if hidden % heads or output % heads:
            raise ValueError(
                f"num_heads: expected a divisor of {hidden} units and of {output}, which h has, got {heads}"
            )
        found = []
        for index in range(self.num_layers):
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (rows, self.directions * output if index else input)
            }
            if self.spec.recurrent == "vector":
                shapes["weight_hh"] = (hidden,)
            elif self.spec.recurrent == "matrix":
                shapes["weight_hh"] = (
                    (rows, output) if heads == 1 else (heads, rows // heads, output // heads)
                )
            if self.bias:
                shapes |= dict.fromkeys(self.spec.biases, (rows,))
            if self.projected:
                shapes["weight_hr"] = (output, hidden)
            for name in self.own_params:
                shapes[name] = (hidden,) if name.startswith("norm_c_") else (rows,)
            if self.peephole:
                shapes["weight_peephole"] = (len(self.gates) - 1, hidden)  # all of them but g
            for suffix in ("", "_reverse")[: self.directions]:
                place = "" if self.step else f"_l{index}{suffix}"
                found.append({name + place: shape for name, shape in shapes.items()})
        return found

    def state_sizes(self, params: Sequence[Tensor]) -> tuple[int, ...]:
        """Units of each state, by the params: W_ih [G H, I], and W_hr [P, H] where h is projected."""
        hidden = params[0].size(0) // len(self.gates)
        output = params[self.spec.matrices + 2 * self.bias].size(0) if self.projected else hidden
        return (output, max(len(self.spec.memory), 1) * hidden)[: len(self.spec.states)]

    @property
    def outputs(self) -> int:
        """Tensors that the operator returns beside a tape: the output (of a step none), the states, and c of
        every step.
        """
        return (not self.step) + len(self.spec.states) + self.cells

    def is_sequence(self, output: int) -> bool:
        """Whether one of these is laid out as the input, a row for each of its rows."""
        return not self.step and (output == 0 or (self.cells and output == self.outputs - 1))


_VARYING = ("peephole", "coupled_gates", "reset_before")
_CALLED = {"reset_before": "reset_after=False"}
_FLAGS = (
    *("bidirectional", "batch_first", "projected", "recompute", "cells", "step", "int8", "drawn"),
    *_VARYING,
)


def _pair(text: str) -> tuple[float, float]:
    first, second = text.split(",")
    return float(first), float(second)


# Of options with values: what stands for torch.nn's equations, and how it is written and read.
_VALUES: dict[str, tuple[Any, Callable[[Any], str], Callable[[str], Any]]] = {
    "layer_norm": (None, str, str),
    "cell_norm": (None, str, str),
    "update_bias": (0.0, repr, float),
    "zoneout": ((0.0, 0.0), lambda pair: f"{pair[0]!r},{pair[1]!r}", _pair),
    "recurrent_dropout": (0.0, repr, float),
    "cell_clip": (None, repr, float),
    "gate_clip": (None, repr, float),
    "grad_clip": (None, repr, float),
    "num_heads": (1, repr, int),
}
