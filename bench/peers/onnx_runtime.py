"""ONNX Runtime's CPU provider, inputs and outputs bound once."""

from __future__ import annotations

import numpy as np
import onnxruntime

from bench.cases import Case, inputs
from bench.peers import Prepared
from bench.peers.onnx_model import STATES, onnx_model

__all__ = ["prepare"]


def prepare(case: Case, threads: int) -> Prepared:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx_model(case), options, providers=["CPUExecutionProvider"])
    names = STATES[case.cell]

    def allocate(array: np.ndarray) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    x = allocate(inputs(case))
    y = allocate(np.empty((case.steps, 1, case.batch, case.hidden), np.float32))
    # Streaming reads the states of one pair of buffers and writes those of the other, in turn.
    states = [[allocate(np.zeros((1, case.batch, case.hidden), np.float32)) for _ in names] for _ in range(2)]
    bindings = []
    for turn in range(2):
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", x)
        binding.bind_ortvalue_output("y", y)
        for index, name in enumerate(names):
            binding.bind_ortvalue_input(name, states[turn][index])
            binding.bind_ortvalue_output(f"{name}_n", states[1 - turn][index])
        bindings.append(binding)
    calls = 0
    first: np.ndarray | None = None

    def run() -> None:
        nonlocal calls, first
        session.run_with_iobinding(bindings[calls % 2])
        calls += case.mode == "streaming"
        if first is None:
            first = y.numpy().reshape(case.steps, case.batch, case.hidden).copy()

    def results() -> dict[str, np.ndarray]:
        assert first is not None
        return {"y": first}

    return Prepared(run, results)
