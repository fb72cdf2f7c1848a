"""Flax's cells (flax.linen), as trees of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnfused.cells import CELLS
from rnnfused.interop._weights import (
    Direction,
    Layer,
    Stack,
    array,
    build,
    check_name,
    check_shape,
    describe,
    tensor,
)

__all__ = ["from_flax", "to_flax"]

# The Dense modules of each cell that have a bias in flax.linen. One of ours that has no place there is added
# to the other of its gate.
_BIASED = {
    "lstm": ("hi", "hf", "hg", "ho"),
    "gru": ("ir", "iz", "in", "hn"),
    "rnn_tanh": ("i",),
    "rnn_relu": ("i",),
}


def from_flax(params: Any, cell: str, dtype: torch.dtype | None = None) -> Layer:
    """The RNN, LSTM or GRU with the weights of a cell of flax.linen, batch_first as flax.linen.RNN is.

    params: of an LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, {"ii": {"kernel": ...}, ...}; of an RNN
    or Bidirectional of it, with or without the "params" above; or a sequence of those, each on top of the one
    before it. Leaves are whatever NumPy reads as arrays. cell: "lstm", "gru", "rnn_tanh" or "rnn_relu";
    parameters do not tell activations, and those are taken to be Flax's defaults; nor do they tell an RNN's
    reverse=True: the layer runs forward, so flip its input in time, and with keep_order=True its output.
    dtype: the weights' own if None.

    Raises ValueError for another cell, parameters of other names (those of flax.nnx have other ones) and
    shapes that do not fit.

    Flax's layout: a Dense for each gate, kernel [I, H] or [H, H] and bias [H]; i, f, g, o and r, z, n; the
    GRU's reset gate is applied after the recurrent product (flax.linen.LSTMCell, GRUCell, SimpleCell).
    """
    check_name("cell", cell, tuple(_BIASED))
    trees = [params] if isinstance(params, Mapping) else list(params)
    if not trees:
        raise ValueError("params: expected at least one layer, got none")
    return build(Stack(cell, [_directions(tree, cell) for tree in trees]), dtype, batch_first=True)


def to_flax(layer: Layer) -> list[dict[str, Any]]:
    """The parameters of each layer, first layer first, in NumPy arrays: of one direction its cell's, of two a
    Bidirectional's, {"forward_rnn": {"cell": ...}, "backward_rnn": {"cell": ...}}.

    Flax has one bias for most gates, the sum of our two, and zeros for a layer without. Raises TypeError for
    what is no RNN, LSTM or GRU, and ValueError for proj_size, learn_initial_state, the cells' options and
    bfloat16.
    """
    cell, layers, _ = describe(layer)
    trees = [[_tree(direction, cell) for direction in directions] for directions in layers]
    return [
        one[0] if len(one) == 1 else {"forward_rnn": {"cell": one[0]}, "backward_rnn": {"cell": one[1]}}
        for one in trees
    ]


def _names(cell: str) -> tuple[list[str], list[str]]:
    """The Dense modules of the input and those of h, a gate each, in torch's order."""
    gates: Sequence[str] = CELLS[cell].gates if len(CELLS[cell].gates) > 1 else ("",)
    return [f"i{gate}" for gate in gates], [f"h{gate}" for gate in gates]


def _directions(tree: Mapping[str, Any], cell: str) -> list[Direction]:
    if set(tree) == {"params"}:
        tree = tree["params"]
    if set(tree) == {"forward_rnn", "backward_rnn"}:
        return [_direction(tree[name], cell) for name in ("forward_rnn", "backward_rnn")]
    return [_direction(tree, cell)]


def _direction(tree: Mapping[str, Any], cell: str) -> Direction:
    if set(tree) == {"cell"}:
        tree = tree["cell"]
    inputs, recurrent = _names(cell)
    if set(tree) != {*inputs, *recurrent}:
        expected = ", ".join(inputs + recurrent)
        raise ValueError(f"params: expected {expected} of a cell '{cell}', got {', '.join(map(str, tree))}")
    hidden = len(_leaf(tree, recurrent[0], "kernel"))
    w_ih, b_ih = _joined(tree, inputs, len(_leaf(tree, inputs[0], "kernel")), hidden)
    w_hh, b_hh = _joined(tree, recurrent, hidden, hidden)
    return Direction(w_ih, w_hh, b_ih, b_hh)


def _joined(
    tree: Mapping[str, Any], names: Sequence[str], rows: int, hidden: int
) -> tuple[Tensor, Tensor | None]:
    """Kernels [rows, H] as a weight [G H, rows], biases [H] as one [G H]; None where there are none."""
    kernels = {name: _leaf(tree, name, "kernel") for name in names}
    biases = {name: _leaf(tree, name, "bias") for name in names if "bias" in tree[name]}
    for name, kernel in kernels.items():
        check_shape(f"kernel of {name}", kernel, rows, hidden)
    for name, bias in biases.items():
        check_shape(f"bias of {name}", bias, hidden)
    weight = torch.cat([kernel.t() for kernel in kernels.values()])
    if not biases:
        return weight, None
    return weight, torch.cat([biases.get(name, weight.new_zeros(hidden)) for name in names])


def _leaf(tree: Mapping[str, Any], name: str, leaf: str) -> Tensor:
    if leaf not in tree[name]:
        raise ValueError(f"{name}: expected a {leaf}, got {', '.join(map(str, tree[name]))}")
    return tensor(f"{leaf} of {name}", tree[name][leaf])


def _tree(direction: Direction, cell: str) -> dict[str, Any]:
    names, biased = _names(cell), _BIASED[cell]
    weights = (direction.w_ih, direction.w_hh, *direction.biases)
    tree: dict[str, Any] = {}
    for of_input, of_h, *gate in zip(
        *names, *(weight.chunk(len(names[0])) for weight in weights), strict=True
    ):
        w_ih, w_hh, b_ih, b_hh = gate
        tree[of_input], tree[of_h] = {"kernel": array(w_ih.t())}, {"kernel": array(w_hh.t())}
        if of_input in biased and of_h in biased:
            tree[of_input]["bias"], tree[of_h]["bias"] = array(b_ih), array(b_hh)
        else:
            tree[of_input if of_input in biased else of_h]["bias"] = array(b_ih + b_hh)
    return tree
