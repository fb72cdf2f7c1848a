"""rnnfused, as a user gets it: torch's layers, converted."""

from __future__ import annotations

import torch

import rnnfused
from bench.cases import Case
from bench.peers import Prepared
from bench.peers.torch_layers import measured, torch_layers

__all__ = ["prepare", "settle"]


def settle(threads: int) -> None:
    """The process as a case finds it, whatever case came before."""
    torch.set_num_threads(threads)
    if hasattr(rnnfused, "empty_cache"):  # an older version that is compared keeps nothing
        rnnfused.empty_cache()


def prepare(case: Case, threads: int) -> Prepared:
    settle(threads)
    return measured(rnnfused.convert(torch_layers(case)), case)
