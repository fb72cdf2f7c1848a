"""torch.nn's layers, quantised by torch.ao: 8-bit weights, each row of a batch rounded in every call."""

from __future__ import annotations

import warnings

import torch

from bench.cases import Case
from bench.peers import Prepared
from bench.peers.torch_layers import measured, torch_layers

__all__ = ["prepare"]


def prepare(case: Case, threads: int) -> Prepared:
    torch.set_num_threads(threads)
    layers = torch.nn.Sequential(torch_layers(case, torch.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        quantized = torch.ao.quantization.quantize_dynamic(layers, {torch.nn.LSTM, torch.nn.GRU})
    return measured(quantized[0], case, torch.float32)
