"""What all frameworks' weights pass through: a layer of ours as the weights of its directions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from rnnfused import _gates
from rnnfused._options import DEFAULTS, asked
from rnnfused.cells import CELLS
from rnnfused.modules import CELLS_OF_MODE, GRU, LSTM, RNN

__all__ = [
    "EPSILON",
    "Direction",
    "Layer",
    "Stack",
    "array",
    "build",
    "check_name",
    "check_names",
    "check_option",
    "check_shape",
    "describe",
    "from_columns",
    "state_of",
    "tensor",
]

Layer: TypeAlias = RNN | LSTM | GRU

EPSILON = 1e-5  # inside the root of our layer norms
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
# What options bring for each gate, in the order of the gates.
_OF_GATES = frozenset(f"norm_{norm}{kind}" for norm in ("ih_", "hh_", "") for kind in ("weight", "bias"))


class Direction(NamedTuple):
    """One direction of one layer as torch.nn keeps it: w_ih [G H, I], w_hh [G H, H], the biases [G H] or
    None. own: what options bring, by the names of LayerConfig.own_params. Only the order of the gates may be
    another's.
    """

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    own: Mapping[str, Tensor] = MappingProxyType({})

    def to_torch(self, framework: str, cell: str) -> Direction:
        return self.taken(_gates.to_torch(framework, cell))

    def from_torch(self, framework: str, cell: str) -> Direction:
        return self.taken(_gates.from_torch(framework, cell))

    def taken(self, places: Sequence[int]) -> Direction:
        """The gates in these places, in this order."""
        count = len(self.w_hh) // self.w_hh.size(1)

        def blocks(weight: Tensor) -> Tensor:
            gates = weight.chunk(count)
            return torch.cat([gates[place] for place in places])

        b_ih, b_hh = (None if bias is None else blocks(bias) for bias in (self.b_ih, self.b_hh))
        own = {name: blocks(each) if name in _OF_GATES else each for name, each in self.own.items()}
        return Direction(blocks(self.w_ih), blocks(self.w_hh), b_ih, b_hh, own)

    @property
    def bias(self) -> Tensor:
        """Both biases in one, for cells in which they are added; zeros where there are none."""
        b_ih, b_hh = self.biases
        return b_ih + b_hh

    @property
    def biases(self) -> tuple[Tensor, Tensor]:
        """Zeros for those that are not there."""
        zeros = self.w_hh.new_zeros(len(self.w_hh))
        return zeros if self.b_ih is None else self.b_ih, zeros if self.b_hh is None else self.b_hh


class Stack(NamedTuple):
    """A layer's cell, its name in the registry, the directions of each of its layers, and what its
    constructor is told beyond sizes.
    """

    cell: str
    layers: list[list[Direction]]
    options: Mapping[str, Any] = MappingProxyType({})


def tensor(name: str, value: Any) -> Tensor:
    """A tensor of what is one or an array. Raises ValueError for what holds no floating-point numbers."""
    if isinstance(value, Tensor):
        found = value.detach()
    else:
        import numpy as np  # which the package does not need

        values = np.array(value)  # a copy: other frameworks' arrays may be read-only
        if values.dtype.name == "bfloat16":  # ml_dtypes', which torch does not read
            found = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        else:
            found = torch.from_numpy(values)
    if not found.is_floating_point():
        raise ValueError(f"{name}: expected floating-point numbers, got {found.dtype}")
    return found


def array(weight: Tensor) -> Any:
    """A NumPy array with memory of its own. Raises ValueError for bfloat16, which NumPy has not."""
    if weight.dtype == torch.bfloat16:
        raise ValueError("layer: expected weights in float16, float32 or float64, got bfloat16")
    return weight.cpu().contiguous().numpy().copy()


def check_name(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, allowed))}, got {value!r}")


def check_names(name: str, got: Collection[str], expected: Collection[str], of: str) -> None:
    if set(got) != set(expected):
        raise ValueError(f"{name}: expected {', '.join(expected)} of {of}, got {', '.join(got)}")


def check_option(name: str, got: Any, expected: Any) -> None:
    if got != expected:
        raise ValueError(f"{name}: expected {expected!r}, got {got!r}")


def check_shape(name: str, weight: Tensor, *shape: int) -> None:
    if weight.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(weight.shape)}")


def state_of(source: torch.nn.Module | Mapping[str, Any]) -> Mapping[str, Any]:
    """The state_dict of what is a module, or already one. Raises ValueError for a module with a layer norm
    whose epsilon is not ours, or that has none.
    """
    if not isinstance(source, torch.nn.Module):
        return source
    for name, module in source.named_modules():
        # A layer norm may have any class; without an eps its name tells it, a scripted one's original_name.
        kind = getattr(module, "original_name", type(module).__name__)
        if hasattr(module, "eps") or kind.endswith("LayerNorm"):
            check_option(f"eps of {name or kind}", getattr(module, "eps", None), EPSILON)
    return source.state_dict()


def from_columns(
    framework: str, cell: str, named: Mapping[str, Tensor], own: Mapping[str, Tensor] = MappingProxyType({})
) -> Direction:
    """From weights whose gates are columns, by their names in errors: kernel [I, G H], recurrent kernel
    [H, G H], then none, one or two biases [G H]. own: a Direction's.
    """
    kernel, recurrent, *biases = named.values()
    hidden, columns = len(recurrent), len(CELLS[cell].gates) * len(recurrent)
    shapes = ((len(kernel), columns), (hidden, columns), (columns,), (columns,))
    for (name, weight), shape in zip(named.items(), shapes, strict=False):
        check_shape(name, weight, *shape)
    b_ih, b_hh = (*biases, None, None)[:2]
    return Direction(kernel.t(), recurrent.t(), b_ih, b_hh, own).to_torch(framework, cell)


def build(stack: Stack, dtype: torch.dtype | None, batch_first: bool) -> Layer:
    """The layer with these weights, in torch's order of the gates, each checked in itself.

    dtype None: the weights' own. Raises ValueError for layers that do not fit on one another.
    """
    first = stack.layers[0][0]
    inputs, hidden, directions = first.w_ih.size(1), first.w_hh.size(1), len(stack.layers[0])
    for index, layer in enumerate(stack.layers):
        if len(layer) != directions:
            raise ValueError(f"layers: expected {directions} directions in each, got {len(layer)} in {index}")
        features = inputs if index == 0 else directions * hidden
        for direction in layer:
            got = direction.w_ih.size(1), direction.w_hh.size(1)
            if got != (features, hidden):
                raise ValueError(
                    f"layers: expected {features} features and {hidden} units in layer {index}, "
                    f"got {got[0]} and {got[1]}"
                )
    everyone = [direction for layer in stack.layers for direction in layer]
    biased = any(bias is not None for direction in everyone for bias in (direction.b_ih, direction.b_hh))
    make: Callable[..., Layer] = {"lstm": LSTM, "gru": GRU}.get(stack.cell, RNN)
    kind = {"nonlinearity": stack.cell.removeprefix("rnn_")} if make is RNN else {}
    dtype = dtype or first.w_ih.dtype
    # On "meta" nothing is drawn, and torch's generator stays as it is.
    built = make(
        *(inputs, hidden, len(stack.layers), *kind.values()),
        bias=biased,
        batch_first=batch_first,
        bidirectional=directions == 2,
        device="meta",
        dtype=dtype,
        **stack.options,
    )
    state: dict[str, Tensor] = {}
    for index, layer in enumerate(stack.layers):
        for suffix, direction in zip(("", "_reverse"), layer, strict=False):
            weights = [direction.w_ih, direction.w_hh, *(direction.biases if biased else ())]
            named = dict(zip(_NAMES, weights, strict=False)) | dict(direction.own)
            for name, weight in named.items():
                # Memory of its own.
                copy = weight.to(dtype).clone(memory_format=torch.contiguous_format)
                state[f"{name}_l{index}{suffix}"] = copy
    built.load_state_dict(state, assign=True)
    return built


def describe(layer: Any, takes: Collection[str] = ()) -> Stack:
    """The reverse of `build`, of torch.nn's layers, too. takes: the options that the other framework has,
    which come back where they are not the default. Raises TypeError for what is no layer, and ValueError for
    all other options.
    """
    if not isinstance(layer, torch.nn.RNNBase) or layer.mode not in CELLS_OF_MODE:
        raise TypeError(f"layer: expected an RNN, LSTM or GRU, got {type(layer).__name__}")
    for option, expected in (("proj_size", 0), ("learn_initial_state", False), *DEFAULTS.items()):
        if option not in takes and (value := getattr(layer, option, expected)) != expected:
            raise ValueError(f"{option}: expected {expected}, got {value}")
    options = asked({option: getattr(layer, option, DEFAULTS[option]) for option in takes})
    names = _NAMES if layer.bias else _NAMES[:2]
    own = layer._config().own_params if isinstance(layer, (RNN, LSTM, GRU)) else ()

    def direction(place: str) -> Direction:
        found = {name: getattr(layer, name + place).detach() for name in (*names, *own)}
        w_ih, w_hh, b_ih, b_hh = (found.get(name) for name in _NAMES)
        assert w_ih is not None and w_hh is not None
        return Direction(w_ih, w_hh, b_ih, b_hh, {name: found[name] for name in own})

    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    layers = [[direction(f"_l{index}{suffix}") for suffix in suffixes] for index in range(layer.num_layers)]
    return Stack(CELLS_OF_MODE[layer.mode], layers, options)
