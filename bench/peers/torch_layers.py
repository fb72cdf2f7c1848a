"""What torch.nn and rnnfused share as peers: layers with torch's interface, timed the same way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from bench.cases import Case, inputs, weights
from bench.peers import Prepared

__all__ = ["measured", "streaming", "torch_layers"]


def torch_layers(case: Case, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell]
    layers = kind(case.hidden, case.hidden, case.layers, bidirectional=case.bidirectional)
    layers.load_state_dict({name: torch.from_numpy(value) for name, value in weights(case).items()})
    return layers.to(dtype)


def measured(layers: Any, case: Case, dtype: torch.dtype = torch.float32) -> Prepared:
    """A module, or what is called as one: forward in inference_mode, or forward and all gradients."""
    x = torch.from_numpy(inputs(case)).to(dtype)
    if case.mode == "streaming":
        return streaming(_carrying(layers), x)
    x.requires_grad_(case.trains)
    grad = torch.ones(case.steps, case.batch, case.hidden * case.directions, dtype=dtype)
    sequence: torch.Tensor | PackedSequence = x
    if case.mode == "ragged":
        sequence = pack_padded_sequence(x, case.lengths())
        grad = pack_padded_sequence(grad, case.lengths()).data
    leaves = {"x": x}
    if case.trains:
        leaves |= layers.named_parameters()
    output = x

    def run() -> None:
        nonlocal output
        y, _ = layers(sequence)
        output = y.data if isinstance(y, PackedSequence) else y
        if case.trains:
            for leaf in leaves.values():
                leaf.grad = None
            # The graph of a packed input's copy is kept; the layers' own is new at every call.
            output.backward(grad, retain_graph=case.mode == "ragged")

    def results() -> dict[str, np.ndarray]:
        found = {"y": output.detach()}
        if case.trains:
            found |= {name: leaf.grad for name, leaf in leaves.items()}
        return {name: tensor.numpy() for name, tensor in found.items()}

    return Prepared(run, results, contextlib.nullcontext if case.trains else torch.inference_mode)


def _carrying(layers: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    state = None

    def step(x: torch.Tensor) -> torch.Tensor:
        nonlocal state
        y, state = layers(x, state)
        return y

    return step


def streaming(step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Prepared:
    """One step a call: `step` carries the state from call to call."""
    first: torch.Tensor | None = None

    def run() -> None:
        nonlocal first
        y = step(x)
        first = y if first is None else first

    def results() -> dict[str, np.ndarray]:
        assert first is not None
        return {"y": first.numpy()}

    return Prepared(run, results, torch.inference_mode)
