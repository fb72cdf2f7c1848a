"""torch.nn's layers in float32, called under autocast to the case's dtype."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from bench.cases import Case
from bench.peers import Prepared
from bench.peers.torch_layers import measured, torch_layers

__all__ = ["prepare"]


def prepare(case: Case, threads: int) -> Prepared:
    torch.set_num_threads(threads)
    prepared = measured(torch_layers(case, torch.float32), case, torch.float32)

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with prepared.context(), torch.autocast("cpu", getattr(torch, case.dtype)):
            yield

    return replace(prepared, context=context)
