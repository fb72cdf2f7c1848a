"""Weights from and to other frameworks' layers: Keras, Flax, ONNX, haste, NeMo, torchaudio, Dreamer. None of
them is imported before it is needed, and only `from_onnx` needs one.
"""

from __future__ import annotations

from rnnfused.interop._dreamer import from_dreamer, to_dreamer
from rnnfused.interop._flax import from_flax, to_flax
from rnnfused.interop._haste import from_haste, to_haste
from rnnfused.interop._keras import from_keras, to_keras
from rnnfused.interop._nemo import from_nemo, to_nemo
from rnnfused.interop._onnx import OnnxLayer, from_onnx
from rnnfused.interop._torchaudio import from_torchaudio, to_torchaudio

__all__ = [
    "OnnxLayer",
    "from_dreamer",
    "from_flax",
    "from_haste",
    "from_keras",
    "from_nemo",
    "from_onnx",
    "from_torchaudio",
    "to_dreamer",
    "to_flax",
    "to_haste",
    "to_keras",
    "to_nemo",
    "to_torchaudio",
]
