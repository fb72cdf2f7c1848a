"""rnnfused, as a user gets it: torch's layers, converted, and for inference packed once, as peers do it."""

from __future__ import annotations

import torch

import rnnfused
from bench.cases import Case, inputs
from bench.peers import Prepared
from bench.peers.torch_layers import measured, streaming, torch_layers

__all__ = ["prepare", "prepare_as", "settle"]


def settle(threads: int) -> None:
    """The process as a case finds it, whatever case came before."""
    torch.set_num_threads(threads)
    if hasattr(rnnfused, "empty_cache"):  # an older version that is compared keeps nothing
        rnnfused.empty_cache()


def prepare(case: Case, threads: int) -> Prepared:
    if case.dtype == "int8":
        return prepare_as(case, threads, torch.float32, "int8")
    return prepare_as(case, threads, getattr(torch, case.dtype))


def prepare_as(case: Case, threads: int, dtype: torch.dtype, weights: str | None = None) -> Prepared:
    settle(threads)
    layers = rnnfused.convert(torch_layers(case, dtype))
    options = {} if weights is None else {"weights": weights}  # which older versions do not have
    if case.mode == "streaming" and hasattr(rnnfused, "Stepper"):  # nor this
        return streaming(rnnfused.Stepper(layers, case.batch, **options), torch.from_numpy(inputs(case))[0])
    if case.mode == "inference" and hasattr(rnnfused, "Frozen"):
        return measured(rnnfused.Frozen(layers, **options), case, dtype)
    return measured(layers, case, dtype)
