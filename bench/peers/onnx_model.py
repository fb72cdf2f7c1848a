"""A case as an ONNX model: one LSTM, GRU or RNN operator, its weights as constants, states in and out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.cases import CELLS, Case, weights
from bench.peers import Prepared

__all__ = ["STATES", "in_turns", "onnx_model"]

STATES = {"rnn": ("h",), "gru": ("h",), "lstm": ("h", "c")}
# ONNX orders the gates otherwise than torch: i, o, f, g and z, r, n.
_ORDER = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


def onnx_model(case: Case) -> bytes:
    found = weights(case)

    def gates(name: str) -> np.ndarray:
        parts = np.split(found[f"{name}_l0"], CELLS[case.cell])
        return np.concatenate([parts[index] for index in _ORDER[case.cell]])

    constants = {
        "W": gates("weight_ih")[None],
        "R": gates("weight_hh")[None],
        "B": np.concatenate([gates("bias_ih"), gates("bias_hh")])[None],
    }
    names = STATES[case.cell]
    node = helper.make_node(
        case.cell.upper(),
        ["x", "W", "R", "B", "", *names],
        ["y", *(f"{name}_n" for name in names)],
        hidden_size=case.hidden,
        **({"linear_before_reset": 1} if case.cell == "gru" else {}),
    )
    sequence, state = [case.steps, case.batch, case.hidden], [1, case.batch, case.hidden]

    def value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node],
        case.name,
        [value("x", sequence), *(value(name, state) for name in names)],
        [value("y", [case.steps, 1, *state[1:]]), *(value(f"{name}_n", state) for name in names)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def in_turns(case: Case, call: Callable[[int], object], output: Callable[[], np.ndarray]) -> Prepared:
    """`call(turn)` runs the model from the states of one pair of buffers into those of the other: for turn 0
    and 1 alternately when streaming, for 0 always otherwise. `output()` is what the last call wrote.
    """
    calls = 0
    first: np.ndarray | None = None

    def run() -> None:
        nonlocal calls, first
        call(calls % 2)
        calls += case.mode == "streaming"
        if first is None:
            first = output().reshape(case.steps, case.batch, case.hidden).copy()

    def results() -> dict[str, np.ndarray]:
        assert first is not None
        return {"y": first}

    return Prepared(run, results)
