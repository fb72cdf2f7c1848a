"""ONNX's recurrent nodes as layers: they compute what steps in NumPy do, written from the operators'
specification, what ONNX's own test cases say, and what ONNX Runtime does.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frameworks import (
    CELLS,
    GATES,
    INPUT,
    Array,
    B,
    H,
    Step,
    T,
    assert_close,
    assert_float32_close,
    draw,
    make,
    output,
    over_layers,
    relu,
    sigmoid,
)
from results import assert_same_bits

import rnnfused
from rnnfused import interop


def onnx_step(cell: str, w: Array, r: Array, b: Array) -> Step:
    """The equations of ONNX's operators in one direction, W, R and B without their first size."""
    w_b, r_b = np.split(b, 2)

    def lstm(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, o, f, g = np.split(x @ w.T + h @ r.T + w_b + r_b, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    def gru(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        x_z, x_r, x_h = np.split(x @ w.T + w_b, 3, axis=1)
        h_z, h_r, h_h = np.split(h @ r.T + r_b, 3, axis=1)
        z, reset = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        return (1 - z) * np.tanh(x_h + reset * h_h) + z * h, c

    def rnn(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        return (np.tanh if cell == "rnn_tanh" else relu)(x @ w.T + h @ r.T + w_b + r_b), c

    return {"lstm": lstm, "gru": gru}.get(cell, rnn)


def onnx_weights(cell: str, directions: int, dtype: Any = np.float64) -> list[Array]:
    rows = GATES[cell] * H
    shapes = [(directions, rows, INPUT), (directions, rows, H), (directions, 2 * rows)]
    return [draw(shape).astype(dtype) for shape in shapes]


def onnx_model(
    cell: str,
    weights: Sequence[Array],
    inputs: Mapping[str, Array] | None = None,
    peepholes: Array | None = None,
    **changed: Any,
) -> Any:
    """A model of one node. inputs: further ones by the operator's own names. changed: attributes."""
    onnx = pytest.importorskip("onnx")
    inputs = inputs or {}
    directions = len(weights[0])
    constants = dict(zip("WRB", weights, strict=False))
    if peepholes is not None:
        constants["P"] = peepholes
    attributes: dict[str, Any] = {"hidden_size": H}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    if cell == "rnn_relu":
        attributes["activations"] = ["Relu"] * directions
    given = {"X": draw((T, B, INPUT)).astype(weights[0].dtype), **inputs}
    names = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    known = {*given, *constants}
    outputs = ["Y", "Y_h", "Y_c"][: 3 if cell == "lstm" else 2]
    node = onnx.helper.make_node(
        "RNN" if cell.startswith("rnn") else cell.upper(),
        [name if name in known else "" for name in names[: 8 if cell == "lstm" else 6]],
        outputs,
        name="layer",
        **{name: value for name, value in {**attributes, **changed}.items() if value is not None},
    )
    kinds = onnx.helper.np_dtype_to_tensor_dtype

    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_tensor_value_info(n, kinds(a.dtype), a.shape) for n, a in given.items()],
        [onnx.helper.make_tensor_value_info(n, kinds(weights[0].dtype), None) for n in outputs],
        [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)


def merged(y: Array) -> Array:
    """ONNX's Y [T, D, B, H] as [T, B, D H]."""
    return np.concatenate(list(y.swapaxes(0, 1)), axis=-1)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_onnx_nodes(cell: str, directions: int) -> None:
    weights = onnx_weights(cell, directions)
    (found,) = interop.from_onnx(onnx_model(cell, weights))
    assert (found.name, found.x, found.lengths, found.hx, found.outputs[0]) == ("layer", "X", "", (), "Y")
    assert not found.layer.batch_first
    x = draw((B, T, INPUT))
    steps = [[onnx_step(cell, *(weight[k] for weight in weights)) for k in range(directions)]]
    assert_close(output(found.layer, x.swapaxes(0, 1)).swapaxes(0, 1), over_layers(steps, x))


def test_a_node_of_one_state_takes_it_bare() -> None:
    (found,) = interop.from_onnx(onnx_model("gru", onnx_weights("gru", 1)))
    x, h = torch.randn(T, B, INPUT).double(), torch.randn(1, B, found.layer.hidden_size).double()
    torch.testing.assert_close(found(x, h), found(x, (h,)), rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_onnx_runtime_itself(cell: str, directions: int, bias: bool, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    weights = onnx_weights(cell, directions, np.float32)[: 3 if bias else 2]
    inputs = {"sequence_lens": np.array([T - 2, T], np.int32)}
    for name in ("initial_h", "initial_c")[: 2 if cell == "lstm" else 1]:
        inputs[name] = draw((directions, B, H)).astype(np.float32)
    model = onnx_model(cell, weights, inputs)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (found,) = interop.from_onnx(tmp_path / "model.onnx")
    assert found.layer.bias is bias
    inputs["X"] = draw((T, B, INPUT)).astype(np.float32)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = dict(zip(found.outputs, session.run(None, inputs), strict=True))
    x, lengths, *hx = (torch.from_numpy(inputs[name]) for name in (found.x, found.lengths, *found.hx))
    with torch.no_grad():
        y, state = found.layer(x, tuple(hx) if cell == "lstm" else hx[0], lengths=lengths)
    assert_float32_close(y.numpy(), merged(want["Y"]))
    for got, name in zip(state if cell == "lstm" else [state], ("Y_h", "Y_c"), strict=False):
        assert_float32_close(got.numpy(), want[name])


# Of a cell: attributes, whether there are peepholes, and what of our layer they come to.
OPTIONS: list[tuple[str, dict[str, Any], bool, dict[str, Any]]] = [
    ("rnn_tanh", {"clip": 0.5}, False, {"gate_clip": 0.5}),
    ("gru", {"linear_before_reset": 0}, False, {"reset_after": False}),
    ("gru", {"linear_before_reset": 0, "clip": 0.5}, False, {"reset_after": False, "gate_clip": 0.5}),
    ("gru", {"clip": 0.5}, False, {"gate_clip": 0.5}),
    ("lstm", {}, True, {"peephole": True}),
    ("lstm", {"clip": 0.5}, False, {"gate_clip": 0.5}),
    ("lstm", {"input_forget": 1}, False, {"coupled_gates": True}),
    ("lstm", {"input_forget": 1}, True, {"coupled_gates": True, "peephole": True}),
    ("lstm", {"clip": 0.5}, True, {"gate_clip": 0.5, "peephole": True}),
]


def onnx_inputs(cell: str, directions: int) -> dict[str, Array]:
    """All inputs that are no weights, of sequences of unequal length."""
    states = ("initial_h", "initial_c")[: 2 if cell == "lstm" else 1]
    inputs = {name: draw((directions, B, H)).astype(np.float32) for name in states}
    return {
        "X": draw((T, B, INPUT)).astype(np.float32),
        "sequence_lens": np.array([T - 2, T], np.int32),
    } | inputs


def called(found: interop.OnnxLayer, inputs: Mapping[str, Array]) -> list[Array]:
    """The node's outputs."""
    x, *hx = (torch.from_numpy(inputs[name]) for name in (found.x, *found.hx))
    lengths = torch.from_numpy(inputs[found.lengths]) if found.lengths else None
    with torch.no_grad():
        return [result.numpy() for result in found(x, hx, lengths)]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("cell, attributes, peephole, options", [*OPTIONS, ("lstm", {}, False, {})])
def test_onnx_runtime_and_options(
    cell: str, attributes: dict[str, Any], peephole: bool, options: dict[str, Any], direction: str
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    directions = 2 if direction == "bidirectional" else 1
    inputs, weights = onnx_inputs(cell, directions), onnx_weights(cell, directions, np.float32)
    peepholes = draw((directions, 3 * H)).astype(np.float32) if peephole else None
    model = onnx_model(cell, weights, inputs, peepholes, **attributes, direction=direction)
    (found,) = interop.from_onnx(model)
    assert {name: getattr(found.layer, name) for name in options} == options
    assert found.reverse is (direction == "reverse")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for got, want in zip(called(found, inputs), session.run(None, inputs), strict=True):
        assert_float32_close(got, want)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("cell", CELLS)
def test_onnx_batchwise(cell: str, direction: str) -> None:
    """layout=1, which ONNX Runtime has not: all that has a batch has it first."""
    directions = 2 if direction == "bidirectional" else 1
    inputs, weights = onnx_inputs(cell, directions), onnx_weights(cell, directions, np.float32)
    by_layout = [
        interop.from_onnx(onnx_model(cell, weights, inputs, layout=layout, direction=direction))[0]
        for layout in (0, 1)
    ]
    assert [found.layer.batch_first for found in by_layout] == [False, True]
    turned = {n: a if n == "sequence_lens" else a.swapaxes(0, 1) for n, a in inputs.items()}
    y, *states = called(by_layout[0], inputs)
    turned_y, *turned_states = called(by_layout[1], turned)
    np.testing.assert_array_equal(turned_y, y.transpose(2, 0, 1, 3))
    for got, want in zip(turned_states, states, strict=True):
        np.testing.assert_array_equal(got, want.swapaxes(0, 1))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # cases of other operators overflow on purpose
def test_onnx_node_test_cases() -> None:
    """ONNX's own, all that there are of the three operators: 18 in onnx 1.23."""
    onnx = pytest.importorskip("onnx")
    node = pytest.importorskip("onnx.backend.test.case.node")
    cases = {
        case.name: case
        for case in node.collect_testcases(None)
        if case.model.graph.node[0].op_type in ("RNN", "GRU", "LSTM")
    }
    assert len(cases) >= 12
    for name, case in cases.items():
        (arrays, expected), model = case.data_sets[0], case.model
        inputs = dict(zip((value.name for value in model.graph.input), arrays, strict=True))
        for weight in [weight for weight in ("W", "R", "B", "P") if weight in inputs]:
            model.graph.initializer.append(onnx.numpy_helper.from_array(inputs[weight], weight))
        (found,) = interop.from_onnx(model)
        results = [got for got, output in zip(called(found, inputs), found.outputs, strict=False) if output]
        assert len(results) == len(expected), name
        for got, want in zip(results, expected, strict=True):
            assert_float32_close(got, want)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # torch's exporters use what is deprecated
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(
    "cell, options", [*((cell, {}) for cell in CELLS), *((case[0], case[3]) for case in OPTIONS)]
)
def test_what_we_export_comes_back(cell: str, options: dict[str, Any], dynamo: bool, tmp_path: Path) -> None:
    """Bit for bit, layer by layer, with its options."""
    pytest.importorskip("onnxscript")
    layer = make(cell, INPUT, H, num_layers=2, bidirectional=True, **options).eval()
    file = str(tmp_path / "model.onnx")
    table: dict[str, Any] = {"custom_translation_table": rnnfused.onnx.translation_table()} if dynamo else {}
    torch.onnx.export(layer, (torch.randn(T, B, INPUT),), file, dynamo=dynamo, verbose=False, **table)
    found = [one.layer for one in interop.from_onnx(file)]
    assert_same_bits([p for one in found for p in one.parameters()], list(layer.parameters()))
    for one in found:
        assert {name: getattr(one, name) for name in options} == options


def test_constants_and_other_nodes() -> None:
    onnx = pytest.importorskip("onnx")
    weights = onnx_weights("gru", 1)
    model = onnx_model("gru", weights)
    del model.graph.initializer[:]
    nodes = [
        onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
        for name, array in zip("WRB", weights, strict=True)
    ]
    for node in (*nodes, onnx.helper.make_node("Relu", ["Y"], ["Z"])):
        model.graph.node.append(node)
    (found,) = interop.from_onnx(model, dtype=torch.float32)
    assert found.layer.weight_hh_l0.dtype == torch.float32
    (same,) = interop.from_onnx(onnx_model("gru", weights))
    assert torch.equal(found.layer.weight_hh_l0, same.layer.weight_hh_l0.float())


def test_identities() -> None:
    """As torch's older exporter writes of equal weights."""
    onnx = pytest.importorskip("onnx")
    weights = onnx_weights("gru", 1)
    model = onnx_model("gru", weights)
    (same,) = interop.from_onnx(model)
    model.graph.initializer[0].name = "first"
    for k, (source, copy) in enumerate((("first", "second"), ("second", "W"))):
        model.graph.node.insert(k, onnx.helper.make_node("Identity", [source], [copy]))
    (found,) = interop.from_onnx(model)
    assert_same_bits(found.layer.state_dict().values(), same.layer.state_dict().values())


def test_nodes_of_functions() -> None:
    """A model's own, one inside of the other; the weights come from outside."""
    onnx = pytest.importorskip("onnx")
    model = onnx_model("gru", onnx_weights("gru", 1))
    (same,) = interop.from_onnx(model)
    node, opsets = model.graph.node[0], [onnx.helper.make_opsetid(name, 14) for name in ("", "own")]
    names = list(filter(None, node.input))
    bodies = {"Inner": node, "Outer": onnx.helper.make_node("Inner", names, ["Y", "Y_h"], domain="own")}
    for name, body in bodies.items():
        function = onnx.helper.make_function("own", name, names, ["Y", "Y_h"], [body], opsets)
        model.functions.append(function)
    model.opset_import.append(opsets[1])
    model.graph.node[0].CopyFrom(onnx.helper.make_node("Outer", names, ["Y", "Y_h"], domain="own"))
    (found,) = interop.from_onnx(model)
    assert (found.x, found.outputs) == ("X", ("Y", "Y_h"))
    assert_same_bits(found.layer.state_dict().values(), same.layer.state_dict().values())


def test_what_a_model_may_be(tmp_path: Path) -> None:
    model, file = onnx_model("gru", onnx_weights("gru", 1)), tmp_path / "model.onnx"
    written = model.SerializeToString()
    file.write_bytes(written)
    for given in (model, written, bytearray(written), io.BytesIO(written), file, str(file)):
        assert len(interop.from_onnx(given)) == 1
    with pytest.raises(TypeError, match=r"model: expected an onnx.ModelProto, a path, .*, got GraphProto"):
        interop.from_onnx(model.graph)


def test_a_sequence_of_no_steps() -> None:
    """Hands the initial state through."""
    inputs = onnx_inputs("gru", 1) | {"sequence_lens": np.array([0, T], np.int32)}
    (found,) = interop.from_onnx(onnx_model("gru", onnx_weights("gru", 1, np.float32), inputs))
    _, final = called(found, inputs)
    np.testing.assert_array_equal(final[:, 0], inputs["initial_h"][:, 0])


def without(model: Any, *initializers: str) -> Any:
    for value in [value for value in model.graph.initializer if value.name in initializers]:
        model.graph.initializer.remove(value)
    return model


@pytest.mark.parametrize(
    "cell, changed, words",
    [
        (
            "lstm",
            {"direction": "sideways"},
            "direction of LSTM 'layer': expected forward or reverse or bidirectional, got sideways",
        ),
        ("lstm", {"clip": -3.0}, "gate_clip: expected a number above 0, got -3.0"),
        ("lstm", {"input_forget": 2}, "input_forget of .*: expected 0 or 1, got 2"),
        ("lstm", {"layout": 2}, "layout of .*: expected 0 or 1, got 2"),
        ("lstm", {"hidden_size": 5}, "hidden_size of .*: expected 4 as in R, got 5"),
        ("gru", {"linear_before_reset": 2}, "linear_before_reset of GRU 'layer': expected 0 or 1, got 2"),
        (
            "gru",
            {"activations": ["HardSigmoid", "Tanh"]},
            "activations of .*: .*'Sigmoid', 'Tanh'.*, got .*'HardSig",
        ),
        ("rnn_tanh", {"activations": ["Elu"]}, "activations of RNN .* or .*, got .*Elu"),
    ],
)
def test_what_of_onnx_is_an_error(cell: str, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        interop.from_onnx(onnx_model(cell, onnx_weights(cell, 1), **changed))


def test_what_inputs_of_onnx_are_errors() -> None:
    weights, state = onnx_weights("lstm", 1), draw((1, B, H))
    with pytest.raises(ValueError, match=r"P of LSTM 'layer': expected shape \(1, 12\), got \(1, 16\)"):
        interop.from_onnx(onnx_model("lstm", weights, peepholes=draw((1, 4 * H))))
    with pytest.raises(ValueError, match="P of LSTM 'layer': expected an initializer or a Constant, got 'P'"):
        interop.from_onnx(onnx_model("lstm", weights, {"P": draw((1, 3 * H))}))
    with pytest.raises(
        ValueError, match=r"initial_h and initial_c of .*: expected both or none, got 'initial_c'"
    ):
        interop.from_onnx(onnx_model("lstm", weights, {"initial_c": state}))
    with pytest.raises(ValueError, match="R of LSTM 'layer': expected an initializer or a Constant, got 'R'"):
        interop.from_onnx(without(onnx_model("lstm", weights), "R"))
    with pytest.raises(ValueError, match=r"B of LSTM 'layer': expected shape \(1, 32\), got \(1, 31\)"):
        interop.from_onnx(onnx_model("lstm", [*weights[:2], weights[2][:, 1:]]))


def test_a_missing_onnx_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="from_onnx needs the package onnx"):
        interop.from_onnx("model.onnx")
