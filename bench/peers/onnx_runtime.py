"""ONNX Runtime's CPU provider, inputs and outputs bound once."""

from __future__ import annotations

import numpy as np
import onnxruntime

from bench.cases import Case, inputs
from bench.peers import Prepared
from bench.peers.onnx_model import STATES, in_turns, onnx_model

__all__ = ["prepare", "prepare_model"]


def prepare(case: Case, threads: int) -> Prepared:
    return prepare_model(onnx_model(case), case, threads)


def prepare_model(model: bytes, case: Case, threads: int) -> Prepared:
    """A model of the case's, its inputs and outputs named as `onnx_model` names them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = STATES[case.cell]

    def allocate(array: np.ndarray) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    x = allocate(inputs(case))
    y = allocate(np.empty((case.steps, 1, case.batch, case.hidden), np.float32))
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
    return in_turns(case, lambda turn: session.run_with_iobinding(bindings[turn]), y.numpy)
