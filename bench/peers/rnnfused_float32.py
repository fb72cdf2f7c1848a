"""rnnfused on the same numbers in float32, where a case is of fewer bits."""

from __future__ import annotations

import torch

from bench.cases import Case
from bench.peers import Prepared
from bench.peers.rnnfused_nn import prepare_as

__all__ = ["prepare"]


def prepare(case: Case, threads: int) -> Prepared:
    return prepare_as(case, threads, torch.float32)
