"""ONNX's operators RNN, GRU and LSTM, read from a model. The other way is `rnnfused.onnx`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnfused.cells import CELLS
from rnnfused.interop._weights import Direction, Layer, Stack, build, check_shape, tensor

__all__ = ["OnnxLayer", "from_onnx"]

# Of each operator: its activations in one direction, by the cell that has them.
_CELLS: dict[str, dict[tuple[str, ...], str]] = {
    "RNN": {("Tanh",): "rnn_tanh", ("Relu",): "rnn_relu"},
    "GRU": {("Sigmoid", "Tanh"): "gru"},
    "LSTM": {("Sigmoid", "Tanh", "Tanh"): "lstm"},
}

# Attributes that change what is computed: ONNX's default, and what our layers have.
_ATTRIBUTES = {
    "clip": (None, None),
    "input_forget": (0, 0),
    "layout": (0, 0),
    "linear_before_reset": (0, 1),
}


class OnnxLayer(NamedTuple):
    """One node of a model, and the layer that computes it.

    name: the node's (its first output's where it has none). x, lengths, hx: the values of the graph that the
    layer is called with, layer(x, hx, lengths=lengths); "" and () for what the node is not given. hx: one
    name, of an LSTM two, h and c. outputs: the node's, of which the first is [T, D, B, H], where the layer's
    is [T, B, D H].
    """

    name: str
    layer: Layer
    x: str
    lengths: str
    hx: tuple[str, ...]
    outputs: tuple[str, ...]


def from_onnx(model: Any, dtype: torch.dtype | None = None) -> list[OnnxLayer]:
    """The RNN, GRU and LSTM nodes of a model's graph as layers, in the graph's order.

    model: an onnx.ModelProto, or the path of a file. A node's weights must be initializers or Constants.
    dtype: the weights' own if None. Nodes inside of Loop, If and Scan are not looked at.

    Raises ImportError where the package onnx is missing, and ValueError for what our layers do not have: the
    direction "reverse" alone, peepholes (P), clip, input_forget, layout=1, a GRU with linear_before_reset=0,
    other activations, a part of the initial states.

    ONNX's layout: W [D, G H, I], R [D, G H, H], B [D, 2 G H]; gates i, o, f, c and z, r, h (ONNX's
    Operators.md).
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"from_onnx needs the package onnx (pip install onnx): {error}") from error
    if isinstance(model, (str, os.PathLike)):
        model = onnx.load(os.fspath(model))
    graph = model.graph
    constants = {value.name: value for value in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return [
        _read(node, constants, dtype)
        for node in graph.node
        if node.op_type in _CELLS and node.domain in ("", "ai.onnx")
    ]


def _read(node: Any, constants: Mapping[str, Any], dtype: torch.dtype | None) -> OnnxLayer:
    from onnx import helper

    name = node.name or next(filter(None, node.output), "")
    where = f"{node.op_type} {name!r}"
    x, w, r, b, lengths, h, c, peepholes = [*node.input, *[""] * 8][:8]
    hx = tuple(state for state in (h, c) if state)
    if peepholes:
        raise ValueError(f"P of {where}: expected no peepholes, got {peepholes!r}")
    if node.op_type == "LSTM" and len(hx) == 1:
        raise ValueError(f"initial_h and initial_c of {where}: expected both or none, got {hx[0]!r}")
    attributes = {found.name: helper.get_attribute_value(found) for found in node.attribute}
    cell, directions = _checked(where, node.op_type, attributes)
    weights = [_weight(f"{n} of {where}", value, constants) for n, value in (("W", w), ("R", r))]
    hidden, rows = weights[1].size(-1), len(CELLS[cell].gates) * weights[1].size(-1)
    check_shape(f"W of {where}", weights[0], directions, rows, weights[0].size(-1))
    check_shape(f"R of {where}", weights[1], directions, rows, hidden)
    if attributes.get("hidden_size", hidden) != hidden:
        raise ValueError(
            f"hidden_size of {where}: expected {hidden} as in R, got {attributes['hidden_size']}"
        )
    if b:
        biases = _weight(f"B of {where}", b, constants)
        check_shape(f"B of {where}", biases, directions, 2 * rows)
        weights += biases.chunk(2, dim=1)
    parts = [Direction(*of_one).to_torch("onnx", cell) for of_one in zip(*weights, strict=True)]
    layer = build(Stack(cell, [parts]), dtype, batch_first=False)
    return OnnxLayer(name, layer, x, lengths, hx, tuple(node.output))


def _checked(where: str, operator: str, attributes: Mapping[str, Any]) -> tuple[str, int]:
    """The cell and the number of directions that a node's attributes say."""

    def check(name: str, got: Any, *allowed: Any) -> None:
        if got not in allowed:
            raise ValueError(f"{name} of {where}: expected {' or '.join(map(str, allowed))}, got {got}")

    direction = attributes.get("direction", b"forward").decode()
    check("direction", direction, "forward", "bidirectional")
    directions = 2 if direction == "bidirectional" else 1
    for name, (default, expected) in _ATTRIBUTES.items():
        if name != "linear_before_reset" or operator == "GRU":
            check(name, attributes.get(name, default), expected)
    cells = {kinds * directions: cell for kinds, cell in _CELLS[operator].items()}
    kinds = tuple(kind.decode() for kind in attributes.get("activations", ())) or next(iter(cells))
    check("activations", kinds, *cells)
    return cells[kinds], directions


def _weight(name: str, value: str, constants: Mapping[str, Any]) -> Tensor:
    from onnx import numpy_helper

    if value not in constants:
        raise ValueError(f"{name}: expected an initializer or a Constant, got {value!r}, which is computed")
    return tensor(name, numpy_helper.to_array(constants[value]))
