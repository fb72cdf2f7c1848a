"""Weights from and to other frameworks' layers: Keras, Flax, ONNX, haste. None of them is imported before it
is needed, and only `from_onnx` needs one.
"""

from __future__ import annotations

from rnnfused.interop._flax import from_flax, to_flax
from rnnfused.interop._haste import from_haste, to_haste
from rnnfused.interop._keras import from_keras, to_keras
from rnnfused.interop._onnx import OnnxLayer, from_onnx

__all__ = [
    "OnnxLayer",
    "from_flax",
    "from_haste",
    "from_keras",
    "from_onnx",
    "to_flax",
    "to_haste",
    "to_keras",
]
