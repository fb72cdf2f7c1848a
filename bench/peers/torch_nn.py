"""torch.nn.LSTM, GRU and RNN, eager: torch.compile leaves them eager, and so does TorchScript."""

from __future__ import annotations

import torch

from bench.cases import Case
from bench.peers import Prepared
from bench.peers.torch_layers import measured, torch_layers

__all__ = ["prepare"]


def prepare(case: Case, threads: int) -> Prepared:
    torch.set_num_threads(threads)
    return measured(torch_layers(case), case)
