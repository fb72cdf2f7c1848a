"""ONNX's operators RNN, GRU and LSTM, read from a model. The other way is `rnnfused.onnx`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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

# P's rows, for the gates i, o, f, in the order of weight_peephole: i, f, o; with coupled gates i, o.
_PEEPHOLES = {False: (0, 2, 1), True: (0, 1)}


class OnnxLayer(NamedTuple):
    """One node of a model, and the layer that computes it.

    name: the node's (its first output's where it has none). x, lengths, hx: the values of the graph that the
    layer is called with, layer(x, hx, lengths=lengths); "" and () for what the node is not given. hx: one
    name, of an LSTM two, h and c. outputs: the node's, of which the first is [T, D, B, H], where the layer's
    is [T, B, D H]. With layout=1 the layer is batch_first, and the node's states are [B, D, H]. reverse:
    whether the node runs backwards alone, which no layer of ours does: it is given its input in reverse.

    Called itself, it takes and gives everything as the node does. After a sequence of length 0, of which
    ONNX's specification says nothing, the final states are the initial ones, where ONNX Runtime's are 0.
    """

    name: str
    layer: Layer
    x: str
    lengths: str
    hx: tuple[str, ...]
    outputs: tuple[str, ...]
    reverse: bool = False

    def __call__(
        self, x: Tensor, hx: Tensor | Sequence[Tensor] = (), lengths: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The operator's outputs Y, Y_h and, of an LSTM, Y_c, of inputs that are laid out as the node's."""
        hx = (hx,) if isinstance(hx, Tensor) else hx
        batch_first = self.layer.batch_first
        if batch_first:
            hx = [state.transpose(0, 1) for state in hx]
        if self.reverse:
            x = _reversed(x, lengths, batch_first)
        y, final = self.layer(x, (hx[0] if len(hx) == 1 else tuple(hx)) if hx else None, lengths=lengths)
        if self.reverse:
            y = _reversed(y, lengths, batch_first)
        y = y.unflatten(-1, (-1, self.layer.hidden_size))  # [T, B, D, H]
        states = final if isinstance(final, tuple) else (final,)
        if batch_first:
            return y, *(state.transpose(0, 1) for state in states)
        return y.transpose(1, 2), *states


def from_onnx(model: Any, dtype: torch.dtype | None = None) -> list[OnnxLayer]:
    """The RNN, GRU and LSTM nodes of a model's graph as layers, in the graph's order.

    model: an onnx.ModelProto, the path of a file, a file that is open for bytes, or its bytes. A node's
    weights must be initializers or Constants. dtype: the weights' own if None. Nodes inside of a model's own
    functions count as those of the graph; nodes inside of Loop, If and Scan are not looked at.

    Attributes and inputs become options: clip gate_clip, input_forget=1 coupled_gates, linear_before_reset=0
    reset_after=False, layout=1 batch_first, P peephole. Raises ImportError where the package onnx is missing,
    TypeError for another model, and ValueError for what our layers do not have: other activations, a part of
    the initial states.

    ONNX's layout: W [D, G H, I], R [D, G H, H], B [D, 2 G H], P [D, 3 H]; gates i, o, f, c and z, r, h; of P
    i, o, f (ONNX's Operators.md). With input_forget=1 the rows of f are there and count for nothing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"from_onnx needs the package onnx (pip install onnx): {error}") from error
    if isinstance(model, (str, os.PathLike)):
        model = onnx.load(os.fspath(model))
    elif hasattr(model, "read"):
        model = onnx.load(model)
    elif isinstance(model, (bytes, bytearray, memoryview)):
        model = onnx.load_from_string(bytes(model))
    elif not isinstance(model, onnx.ModelProto):
        raise TypeError(
            f"model: expected an onnx.ModelProto, a path, a file or bytes, got {type(model).__name__}"
        )
    if any(_is_recurrent(node) for function in model.functions for node in function.node):
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    graph = model.graph
    constants = {value.name: value for value in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
        # torch's older exporter writes equal weights once.
        elif node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    return [_read(node, constants, dtype) for node in graph.node if _is_recurrent(node)]


def _is_recurrent(node: Any) -> bool:
    return node.op_type in _CELLS and node.domain in ("", "ai.onnx")


def _read(node: Any, constants: Mapping[str, Any], dtype: torch.dtype | None) -> OnnxLayer:
    from onnx import helper

    name = node.name or next(filter(None, node.output), "")
    where = f"{node.op_type} {name!r}"
    x, w, r, b, lengths, h, c, peepholes = [*node.input, *[""] * 8][:8]
    hx = tuple(state for state in (h, c) if state)
    if node.op_type == "LSTM" and len(hx) == 1:
        raise ValueError(f"initial_h and initial_c of {where}: expected both or none, got {hx[0]!r}")
    attributes = {found.name: helper.get_attribute_value(found) for found in node.attribute}
    cell, directions = _cell(where, node.op_type, attributes)
    options = _options(node.op_type, attributes)
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
    coupled = options.get("coupled_gates", False)
    if coupled:
        kept = [place for place, gate in enumerate(CELLS[cell].gates) if gate != "f"]
        parts = [part.taken(kept) for part in parts]
    if peepholes:
        options["peephole"] = True
        p = _weight(f"P of {where}", peepholes, constants)
        check_shape(f"P of {where}", p, directions, 3 * hidden)
        rows_of_p = p.unflatten(1, (3, hidden))[:, list(_PEEPHOLES[coupled])]
        parts = [
            part._replace(own={"weight_peephole": of_one})
            for part, of_one in zip(parts, rows_of_p, strict=True)
        ]
    layer = build(Stack(cell, [parts], options), dtype, batch_first=attributes.get("layout", 0) == 1)
    reverse = attributes.get("direction") == b"reverse"
    return OnnxLayer(name, layer, x, lengths, hx, tuple(node.output), reverse)


def _options(operator: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What the layer's constructor is told of a node's attributes."""
    options: dict[str, Any] = {"gate_clip": attributes.get("clip")}
    if operator == "GRU":
        options["reset_after"] = attributes.get("linear_before_reset", 0) != 0
    if operator == "LSTM":
        options["coupled_gates"] = attributes.get("input_forget", 0) != 0
    return options


def _reversed(x: Tensor, lengths: Tensor | None, batch_first: bool) -> Tensor:
    """Each sequence with its steps in reverse, those beyond its length where they are."""
    time = 1 if batch_first else 0
    if lengths is None:
        return x.flip(time)
    steps, ends = torch.arange(x.size(time), device=x.device), lengths.to(x.device)
    places = (steps, ends.unsqueeze(1)) if batch_first else (steps.unsqueeze(1), ends)
    step, end = torch.broadcast_tensors(*places)
    return x.take_along_dim(torch.where(step < end, end - 1 - step, step).unsqueeze(-1), time)


def _cell(where: str, operator: str, attributes: Mapping[str, Any]) -> tuple[str, int]:
    """The cell and the number of directions that a node's attributes say."""

    def check(name: str, got: Any, *allowed: Any) -> None:
        if got not in allowed:
            raise ValueError(f"{name} of {where}: expected {' or '.join(map(str, allowed))}, got {got}")

    direction = attributes.get("direction", b"forward").decode()
    check("direction", direction, "forward", "reverse", "bidirectional")
    directions = 2 if direction == "bidirectional" else 1
    for name in ("layout", "input_forget", "linear_before_reset"):
        check(name, attributes.get(name, 0), 0, 1)
    cells = {kinds * directions: cell for kinds, cell in _CELLS[operator].items()}
    kinds = tuple(kind.decode() for kind in attributes.get("activations", ())) or next(iter(cells))
    check("activations", kinds, *cells)
    return cells[kinds], directions


def _weight(name: str, value: str, constants: Mapping[str, Any]) -> Tensor:
    from onnx import numpy_helper

    if value not in constants:
        raise ValueError(f"{name}: expected an initializer or a Constant, got {value!r}, which is computed")
    return tensor(name, numpy_helper.to_array(constants[value]))
