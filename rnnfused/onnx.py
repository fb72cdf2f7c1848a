"""rnnfused's layers as ONNX's standard operators: an RNN, GRU or LSTM for each layer.

    torch.onnx.export(model, (x,), "model.onnx", dynamo=True,
                      custom_translation_table=rnnfused.onnx.translation_table())

torch's older exporter (dynamo=False) makes the same operators of a layer and needs no table. The packages
onnx and onnxscript are needed to export, never to import this module.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch

from rnnfused._gates import from_torch
from rnnfused._layer import LayerConfig, Layout

__all__ = ["register_symbolic", "translation_table"]

Value = Any  # in the graph that is built: onnx_ir's or TorchScript's

# ONNX's numbers for types of tensors.
_FLOAT, _INT32, _BOOL, _FLOAT16, _BFLOAT16 = 1, 6, 9, 10, 16


@dataclass(frozen=True)
class _Operator:
    """ONNX's operator for a cell. activation: of the gates, where the operator's own is not the cell's."""

    name: str
    activation: str | None = None


_OPERATORS = {
    "rnn_tanh": _Operator("RNN"),
    "rnn_relu": _Operator("RNN", activation="Relu"),
    "gru": _Operator("GRU"),
    "lstm": _Operator("LSTM"),
}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What torch.onnx.export(..., dynamo=True) takes as its `custom_translation_table`.

    Raises ImportError where onnx or onnxscript is missing. A layer for which ONNX has no operator, with an
    option that none of them has, a projection (proj_size) or on packed input, is a NotImplementedError once
    it is exported.
    """
    for name in ("onnx", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"ONNX export needs the packages onnx and onnxscript (pip install onnx onnxscript): {error}"
            ) from error

    def recurrent(
        input: Value,
        hx: Sequence[Value],
        params: Sequence[Value],
        batch_sizes: Value | None,
        lengths: Value | None,
        resets: Value | None,
        layer: str,
        save: bool,
    ) -> list[Value]:
        layout = Layout(batch_sizes, lengths, resets)
        return _translated(_ScriptGraph(), input, hx, params, layout, layer, save)

    return {torch.ops.rnnfused.recurrent.default: recurrent}


@functools.cache
def register_symbolic() -> None:
    """Makes the operator known to torch.onnx.export(..., dynamo=False), torch's older exporter.

    Tracing a layer does so. Call it before the export of a traced module that was loaded from a file.
    """
    from torch.onnx._internal.torchscript_exporter import registration, symbolic_helper

    @symbolic_helper.parse_args("v", "v", "v", "v", "v", "v", "s", "b")
    def recurrent(
        graph: Any,
        input: Value,
        hx: Value,
        params: Value,
        batch_sizes: Value,
        lengths: Value,
        resets: Value,
        layer: str,
        save: bool,
    ) -> Value:
        states, weights = (symbolic_helper._unpack_list(values) for values in (hx, params))
        layout = Layout(*(None if symbolic_helper._is_none(v) else v for v in (batch_sizes, lengths, resets)))
        results = _translated(_TracedGraph(graph), input, states, weights, layout, layer, save)
        return graph.op("prim::ListConstruct", *results)

    # What is used of the operators below is the same in all versions since 7; this exporter begins at 9.
    registration.custom_onnx_symbolic("rnnfused::recurrent", 9)(recurrent)


class _Graph(Protocol):
    """What a translation asks of an exporter."""

    def shape(self, value: Value) -> Sequence[Any]:
        """Sizes, of which those of parameters are integers."""

    def element_type(self, value: Value) -> int:
        """ONNX's number for the type of an argument."""

    def constant(self, values: Sequence[int]) -> Value:
        """A vector of int64."""

    def sizes(self, values: Sequence[int]) -> Value:
        """The same for Reshape, where 0 leaves a size as it is. The last one is not 0."""

    def nodes(
        self, operator: str, inputs: Sequence[Value | None], outputs: int, **attributes: Any
    ) -> list[Value]:
        """The outputs of a new node. Attributes are numbers, texts or lists of either."""


class _ScriptGraph:
    """Of the exporter that is built on torch.export, which records what onnxscript calls."""

    def __init__(self) -> None:
        from onnxscript import opset18

        self._opset = opset18

    def shape(self, value: Value) -> Sequence[Any]:
        return value.shape

    def element_type(self, value: Value) -> int:
        return value.dtype.value

    def constant(self, values: Sequence[int]) -> Value:
        return self._opset.Constant(value_ints=values)

    def sizes(self, values: Sequence[int]) -> Value:
        return self.constant(values)

    def nodes(
        self, operator: str, inputs: Sequence[Value | None], outputs: int, **attributes: Any
    ) -> list[Value]:
        results = getattr(self._opset, operator)(*inputs, **attributes)
        return list(results) if isinstance(results, Sequence) else [results]


class _TracedGraph:
    """Of the exporter that is built on torch.jit.trace."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def shape(self, value: Value) -> Sequence[Any]:
        from torch.onnx._internal.torchscript_exporter import symbolic_helper

        return symbolic_helper._get_tensor_sizes(value)

    def element_type(self, value: Value) -> int:
        from torch.onnx._internal.torchscript_exporter import _type_utils

        kind: Any = _type_utils.JitScalarType.from_value(value).onnx_type()
        return int(kind)

    def constant(self, values: Sequence[int]) -> Value:
        return self._graph.op("Constant", value_t=torch.tensor(values))

    def sizes(self, values: Sequence[int]) -> Value:
        # This exporter's inference of shapes takes no 0 without a -1, which fails on an empty batch.
        return self.constant([*values[:-1], -1] if 0 in values else values)

    def nodes(
        self, operator: str, inputs: Sequence[Value | None], outputs: int, **attributes: Any
    ) -> list[Value]:
        given = [self._nothing() if value is None else value for value in inputs]
        typed = {f"{name}_{_type_letter(value)}": value for name, value in attributes.items()}
        results = self._graph.op(operator, *given, outputs=outputs, **typed)
        return [results] if outputs == 1 else list(results)

    def _nothing(self) -> Value:
        value = self._graph.op("prim::Constant")
        value.setType(torch._C.OptionalType.ofTensor())
        return value


def _type_letter(value: Any) -> str:
    return {str: "s", int: "i", float: "f"}[type(value[0] if isinstance(value, list) else value)]


# What of a LayerConfig is translated, or makes no difference to inference.
_TRANSLATED = (
    *("num_layers", "bidirectional", "batch_first", "bias", "step"),
    *("peephole", "coupled_gates", "reset_before", "gate_clip"),
)
_INDIFFERENT = ("recompute", "recurrent_dropout", "grad_clip")
# What users call the fields that are named otherwise.
_CALLED = {
    "cells": "return_cells",
    "int8": "weights of 8 bits",
    "drawn": "recurrent_dropout in training: export the model in evaluation (model.eval())",
}
_PEEPHOLES = ("i", "o", "f")  # ONNX's order


def _translated(
    graph: _Graph,
    input: Value,
    hx: Sequence[Value],
    params: Sequence[Value],
    layout: Layout,
    layer: str,
    save: bool,
) -> list[Value]:
    """The results of torch.ops.rnnfused.recurrent, as values of the graph, each of them another one."""
    config = LayerConfig.parse(layer)
    _check(config, save)
    if layout.batch_sizes is not None or (layout.lengths is not None and len(graph.shape(input)) == 2):
        raise NotImplementedError(
            "ONNX has no packed sequences: export the model on padded input (with lengths, where they differ)"
        )
    if layout.resets is not None:
        raise NotImplementedError("ONNX's operators have no resets inside a sequence")
    given = graph.element_type(hx[0] if hx else input)
    # In 16 bits the kernels keep gates and c in float32, and ONNX Runtime has no such operators on the CPU.
    inside = _FLOAT if given in (_FLOAT16, _BFLOAT16) else given
    layers = _Layers(graph, config, input, params[0], params[1])
    x, *values = (
        v if graph.element_type(v) == inside else layers.node("Cast", v, to=inside)
        for v in (input, *hx, *params)
    )
    lengths = None if layout.lengths is None else layers.node("Cast", layout.lengths, to=_INT32)
    results = layers.run(x, values[: len(hx)], values[len(hx) :], lengths)
    return results if inside == given else [layers.node("Cast", r, to=given) for r in results]


def _check(config: LayerConfig, save: bool) -> None:
    if config.projected:
        raise NotImplementedError(
            "ONNX's LSTM has no projection (proj_size). Written out step by step, for one number of steps, "
            "torch.export.export(rnnfused.to_torch(model), args).run_decompositions() can be exported"
        )
    if save:
        raise NotImplementedError("ONNX's operators keep no tape: export the model for inference")
    if config.cell not in _OPERATORS:
        raise NotImplementedError(f"ONNX has no operator for the layer '{config.text}'")
    plain = LayerConfig(config.cell)
    for option in fields(LayerConfig):
        known = option.name in (*_TRANSLATED, *_INDIFFERENT) or not option.init
        if not known and getattr(config, option.name) != getattr(plain, option.name):
            called = _CALLED.get(option.name, option.name)
            raise NotImplementedError(f"ONNX's {_OPERATORS[config.cell].name} has no {called}")


class _Layers:
    """Layers over one another. Inside, a sequence is [T, B, I] and a state [L D, B, H].

    Shapes are changed by Reshape and parts taken by Gather, the same nodes in every version of ONNX.
    """

    def __init__(self, graph: _Graph, config: LayerConfig, input: Value, w_ih: Value, w_hh: Value) -> None:
        self._graph, self._config = graph, config
        self._operator = _OPERATORS[config.cell]
        self._features, self._hidden = int(graph.shape(w_ih)[1]), int(graph.shape(w_hh)[1])
        self._batched = len(graph.shape(input)) == (2 if config.step else 3)

    def node(self, operator: str, *inputs: Value | None, **attributes: Any) -> Value:
        return self._graph.nodes(operator, inputs, 1, **attributes)[0]

    def run(
        self, x: Value, hx: Sequence[Value], params: Sequence[Value], lengths: Value | None
    ) -> list[Value]:
        config, directions = self._config, self._config.directions
        x, hx = self._sequence(x), [self._state(s) for s in hx]
        each, features, finals = config.params_each * directions, self._features, []
        for index in range(config.num_layers):
            states = hx
            if config.num_layers > 1:
                states = [self._taken(s, range(index * directions, (index + 1) * directions)) for s in hx]
            own = params[index * each : (index + 1) * each]
            y, *final = self._layer(x, features, states, own, lengths)
            finals.append(final)
            if index + 1 < config.num_layers:
                x, features = self._joined(y, [0, 2, 1, 3], 0, 0), directions * self._hidden
        states = [self._concatenated(parts) for parts in zip(*finals, strict=True)]
        if lengths is not None and hx:
            # ONNX Runtime has zeros after a sequence of no steps, which we hand the initial states through.
            ran = self._reshaped(self.node("Cast", lengths, to=_BOOL), -1, 1)
            states = [self.node("Where", ran, *each) for each in zip(states, hx, strict=True)]
        return self._outputs(y) + [self._final(state) for state in states]

    def _layer(
        self,
        x: Value,
        features: int,
        hx: Sequence[Value],
        params: Sequence[Value],
        lengths: Value | None,
    ) -> list[Value]:
        """One layer in all its directions, on x [T, B, features]: Y [T, D, B, H], final states [D, B, H]."""
        config, operator, hidden = self._config, self._operator, self._hidden
        each, states = config.params_each, len(config.spec.states)
        w_ih, w_hh, *others = (params[slot::each] for slot in range(each))
        gates = [config.spec.gates[place] for place in from_torch("onnx", config.cell)]
        inputs = [x, *(self._rows(w, config.gates, gates, n) for w, n in ((w_ih, features), (w_hh, hidden)))]
        biases = [b for pair in zip(*others[:2], strict=True) for b in pair] if config.bias else []
        inputs.append(self._rows(biases, config.gates, gates) if biases else None)
        inputs += [lengths, *hx]
        if config.peephole:
            inputs += [None] * (states - len(hx))
            kept = [gate for gate in config.gates if gate != "g"]
            inputs.append(self._rows(others[-1], kept, _PEEPHOLES))
        while inputs[-1] is None:
            inputs.pop()
        return self._graph.nodes(operator.name, inputs, 1 + states, hidden_size=hidden, **self._attributes())

    def _attributes(self) -> dict[str, Any]:
        config, operator = self._config, self._operator
        attributes: dict[str, Any] = {}
        if config.bidirectional:
            attributes["direction"] = "bidirectional"
        if operator.activation:
            attributes["activations"] = [operator.activation] * config.directions
        if operator.name == "GRU":
            attributes["linear_before_reset"] = int(not config.reset_before)
        if config.coupled_gates:
            attributes["input_forget"] = 1
        if config.gate_clip is not None:
            attributes["clip"] = config.gate_clip
        return attributes

    def _rows(
        self, tensors: Sequence[Value], ours: Sequence[str], theirs: Sequence[str], *columns: int
    ) -> Value:
        """Of all directions tensors with a block of H rows for each of our gates, [G H, columns], [G H] or
        [G, H], as one [D, rows of a direction, columns] with a block for each of ONNX's.
        """
        directions = self._config.directions
        value = self._concatenated(tensors)
        # Where a gate is coupled, ONNX wants rows for it and reads none: any will do.
        order = [ours.index(gate) if gate in ours else 0 for gate in theirs]
        if len(ours) > 1:
            count = len(tensors) * len(ours)
            blocks = [first + place for first in range(0, count, len(ours)) for place in order]
            value = self._taken(self._reshaped(value, count, self._hidden, *columns), blocks)
        rows = len(tensors) * len(theirs) * self._hidden // directions
        return self._reshaped(value, directions, rows, *columns)

    def _sequence(self, x: Value) -> Value:
        if self._config.step:
            return self._reshaped(x, 1, -1, self._features)
        if not self._batched:
            return self._reshaped(x, 0, 1, self._features)
        return self.node("Transpose", x, perm=[1, 0, 2]) if self._config.batch_first else x

    def _state(self, state: Value) -> Value:
        if self._batched and not self._config.step:
            return state
        return self._reshaped(state, self._parts, -1, self._hidden)

    def _outputs(self, y: Value) -> list[Value]:
        if self._config.step:
            return []
        if not self._batched:
            return [self._joined(y, [0, 2, 1, 3], 0)]
        return [self._joined(y, [2, 0, 1, 3] if self._config.batch_first else [0, 2, 1, 3], 0, 0)]

    def _final(self, state: Value) -> Value:
        if self._config.step:
            return self._reshaped(state, *([-1] if self._batched else []), self._hidden)
        return state if self._batched else self._reshaped(state, self._parts, self._hidden)

    @property
    def _parts(self) -> int:
        return self._config.num_layers * self._config.directions

    def _joined(self, y: Value, order: Sequence[int], *leading: int) -> Value:
        """Y [T, D, B, H] with its features [D H] last; 0 leaves a size as it is."""
        return self._reshaped(
            self.node("Transpose", y, perm=list(order)), *leading, self._config.directions * self._hidden
        )

    def _reshaped(self, value: Value, *sizes: int) -> Value:
        return self.node("Reshape", value, self._graph.sizes(list(sizes)))

    def _concatenated(self, parts: Sequence[Value]) -> Value:
        return self.node("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def _taken(self, value: Value, indices: Iterable[int]) -> Value:
        return self.node("Gather", value, self._graph.constant(list(indices)), axis=0)
