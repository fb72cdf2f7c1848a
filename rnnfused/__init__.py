"""Fused recurrent layers for PyTorch: torch.nn's RNN, LSTM and GRU from kernels of their own."""

from __future__ import annotations

from rnnfused import _batching as _batching
from rnnfused import _flops as _flops
from rnnfused import adapters as adapters
from rnnfused import attention as attention
from rnnfused import functional as functional
from rnnfused import interop as interop
from rnnfused import onnx as onnx
from rnnfused import seq2seq as seq2seq
from rnnfused._config import empty_cache as empty_cache
from rnnfused._config import library_path as library_path
from rnnfused._config import show_config as show_config
from rnnfused._convert import Conversion as Conversion
from rnnfused._convert import conversions as conversions
from rnnfused._convert import convert as convert
from rnnfused._convert import to_torch as to_torch
from rnnfused._load import build_info as _build_info
from rnnfused._packed import Frozen as Frozen
from rnnfused._packed import Stepper as Stepper
from rnnfused._patch import Patch as Patch
from rnnfused._patch import patch as patch
from rnnfused._quantized import Quantized as Quantized
from rnnfused._quantized import quantize_dynamic as quantize_dynamic
from rnnfused._sequences import detach as detach
from rnnfused.modules import GRU as GRU
from rnnfused.modules import LSTM as LSTM
from rnnfused.modules import RNN as RNN
from rnnfused.modules import GRUCell as GRUCell
from rnnfused.modules import LSTMCell as LSTMCell
from rnnfused.modules import RNNCell as RNNCell
from rnnfused.own_cells import AGRU as AGRU
from rnnfused.own_cells import AUGRU as AUGRU
from rnnfused.own_cells import SLSTM as SLSTM
from rnnfused.own_cells import IndRNN as IndRNN
from rnnfused.own_cells import LiGRU as LiGRU
from rnnfused.own_cells import MinGRU as MinGRU
from rnnfused.own_cells import MinLSTM as MinLSTM

__version__: str = _build_info.version
