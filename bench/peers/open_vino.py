"""OpenVINO's CPU plugin in the case's dtype, tuned for latency, its tensors set once."""

from __future__ import annotations

import numpy as np
import openvino

from bench.cases import Case, inputs
from bench.peers import Prepared
from bench.peers.onnx_model import STATES, in_turns, onnx_model

__all__ = ["prepare"]


def prepare(case: Case, threads: int) -> Prepared:
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(onnx_model(case)),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # bf16 is the default where the processor has it
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[case.dtype],
        },
    )
    names = STATES[case.cell]
    x = openvino.Tensor(inputs(case))
    y = openvino.Tensor(openvino.Type.f32, openvino.Shape([case.steps, 1, case.batch, case.hidden]))
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
    return in_turns(case, lambda turn: requests[turn].infer(), lambda: y.data)
