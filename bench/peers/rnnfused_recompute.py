"""rnnfused's layers with recompute=True."""

from __future__ import annotations

import rnnfused
from bench.cases import Case
from bench.peers import Prepared, rnnfused_nn
from bench.peers.torch_layers import measured, torch_layers

__all__ = ["prepare"]


def prepare(case: Case, threads: int) -> Prepared:
    rnnfused_nn.settle(threads)
    layers = rnnfused.convert(torch_layers(case))
    layers.recompute = True
    return measured(layers, case)
