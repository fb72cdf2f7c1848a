"""OpenVINO's CPU plugin in float32, tuned for latency, its tensors set once."""

from __future__ import annotations

import numpy as np
import openvino

from bench.cases import Case, inputs
from bench.peers import Prepared
from bench.peers.onnx_model import STATES, onnx_model

__all__ = ["prepare"]


def prepare(case: Case, threads: int) -> Prepared:
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(onnx_model(case)),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # bf16 is the default where the processor has it
        },
    )
    names = STATES[case.cell]
    x = openvino.Tensor(inputs(case))
    y = openvino.Tensor(openvino.Type.f32, openvino.Shape([case.steps, 1, case.batch, case.hidden]))
    # Streaming reads the states of one pair of tensors and writes those of the other, in turn.
    zeros = np.zeros((1, case.batch, case.hidden), np.float32)
    states = [[openvino.Tensor(zeros) for _ in names] for _ in range(2)]
    requests = []
    for turn in range(2):
        request = compiled.create_infer_request()
        request.set_tensor("x", x)
        request.set_tensor("y", y)
        for index, name in enumerate(names):
            request.set_tensor(name, states[turn][index])
            request.set_tensor(f"{name}_n", states[1 - turn][index])
        requests.append(request)
    calls = 0
    first: np.ndarray | None = None

    def run() -> None:
        nonlocal calls, first
        requests[calls % 2].infer()
        calls += case.mode == "streaming"
        if first is None:
            first = y.data.reshape(case.steps, case.batch, case.hidden).copy()

    def results() -> dict[str, np.ndarray]:
        assert first is not None
        return {"y": first}

    return Prepared(run, results)
