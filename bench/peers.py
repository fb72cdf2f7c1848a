"""The implementations that are measured: a peer turns a case into a function to time and outputs to check."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from bench.cases import Case, inputs

__all__ = ["PEERS", "Prepared", "prepare"]

PEERS = ("torch", "rnnfused")


@dataclass
class Prepared:
    run: Callable[[], None]
    results: Callable[[], list[np.ndarray]]  # outputs, and in training every gradient


def _layers(peer: str, case: Case, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell]
    layers = kind(case.hidden, case.hidden, case.layers, bidirectional=case.bidirectional)
    layers = layers.to(dtype)
    if peer == "rnnfused":
        import rnnfused

        layers = rnnfused.convert(layers)
    return layers


def prepare(peer: str, case: Case, dtype: torch.dtype = torch.float32) -> Prepared:
    """The case on one of PEERS, in inference_mode or forward and backward."""
    layers = _layers(peer, case, dtype)
    x = torch.from_numpy(inputs(case)).to(dtype)
    if case.mode == "streaming":
        return _streaming(layers, x)
    x.requires_grad_(case.trains)
    grad = torch.ones(case.steps, case.batch, case.hidden * (2 if case.bidirectional else 1), dtype=dtype)
    sequence: torch.Tensor | PackedSequence = x
    if case.mode == "ragged":
        sequence = pack_padded_sequence(x, case.lengths())
        grad = pack_padded_sequence(grad, case.lengths()).data
    mode: Callable[[], contextlib.AbstractContextManager[object]]
    mode = contextlib.nullcontext if case.trains else torch.inference_mode
    parameters = list(layers.parameters())
    output = x

    def run() -> None:
        nonlocal output
        with mode():
            y, _ = layers(sequence)
        output = y.data if isinstance(y, PackedSequence) else y
        if case.trains:
            for p in (x, *parameters):
                p.grad = None
            # The graph of a packed input's copy is kept; the layers' own is new at every call.
            output.backward(grad, retain_graph=case.mode == "ragged")

    def results() -> list[np.ndarray]:
        tensors = [output.detach()]
        if case.trains:
            tensors += [p.grad for p in (x, *parameters)]
        return [t.numpy() for t in tensors]

    return Prepared(run, results)


def _streaming(layers: torch.nn.Module, x: torch.Tensor) -> Prepared:
    """One step a call, the state carried from call to call."""
    state = None
    calls = 0
    first = x

    def run() -> None:
        nonlocal state, calls, first
        with torch.inference_mode():
            y, state = layers(x, state)
        calls += 1
        if calls == 1:
            first = y

    return Prepared(run, lambda: [first.numpy()])
