"""ONNX Runtime's DynamicQuantizeLSTM: 8-bit weights, a scale for each channel."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from bench.cases import Case
from bench.peers import Prepared, onnx_runtime
from bench.peers.onnx_model import onnx_model

__all__ = ["prepare"]


def prepare(case: Case, threads: int) -> Prepared:
    with tempfile.TemporaryDirectory() as folder:
        wide, narrow = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        wide.write_bytes(onnx_model(case))
        quantize_dynamic(wide, narrow, per_channel=True, weight_type=QuantType.QInt8)
        operators = {node.op_type for node in onnx.load(narrow).graph.node}
        if "DynamicQuantizeLSTM" not in operators:
            raise RuntimeError(f"onnxruntime: expected a quantised layer, got {sorted(operators)}")
        return onnx_runtime.prepare_model(narrow.read_bytes(), case, threads)
