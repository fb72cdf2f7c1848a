"""What torch.nn and rnnfused share as peers: layers with torch's interface, timed the same way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from bench.cases import Case, inputs, states, weights
from bench.peers import Prepared

__all__ = ["measured", "streaming", "torch_layers"]


def torch_layers(case: Case, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """Of the case's dtype, unless another one is asked for."""
    found = {name: torch.from_numpy(value) for name, value in weights(case).items()}
    layers: torch.nn.Module
    if case.of_cells:
        layers = getattr(torch.nn, f"{case.cell.upper()}Cell")(case.features, case.hidden)
        found = {name.removesuffix("_l0"): value for name, value in found.items()}
    else:
        kind = getattr(torch.nn, case.cell.upper())
        layers = kind(case.features, case.hidden, case.layers, bidirectional=case.bidirectional)
    layers.load_state_dict(found)
    return layers.to(dtype or getattr(torch, case.dtype))


def measured(layers: Any, case: Case, dtype: torch.dtype | None = None) -> Prepared:
    """A module, or what is called as one: forward in inference_mode, or forward and all gradients."""
    dtype = dtype or getattr(torch, case.dtype)
    x = torch.from_numpy(inputs(case)).to(dtype)
    if case.mode == "streaming":
        return streaming(_carrying(layers), x)
    if case.of_cells:
        return _calls_of_a_cell(layers, case, dtype)
    x.requires_grad_(case.trains)
    grad = torch.ones(case.steps, case.batch, case.hidden * case.directions, dtype=dtype)
    sequence: torch.Tensor | PackedSequence = x
    if case.mode == "ragged":
        sequence = pack_padded_sequence(x, case.lengths())
        grad = pack_padded_sequence(grad, case.lengths()).data

    def forward() -> torch.Tensor:
        y, _ = layers(sequence)
        return y.data if isinstance(y, PackedSequence) else y

    if not case.trains:
        # Calls are those of code that was not written for a benchmark.
        return _forward(forward, torch.no_grad if case.timed_whole else torch.inference_mode)
    # The graph of a packed input's copy is kept; the layers' own is new at every call.
    return _forward_and_backward(forward, grad, layers, {"x": x}, retain_graph=case.mode == "ragged")


def _calls_of_a_cell(cell: torch.nn.Module, case: Case, dtype: torch.dtype) -> Prepared:
    x = torch.from_numpy(inputs(case)[0]).to(dtype)
    initial = {name: torch.from_numpy(state).to(dtype) for name, state in states(case).items()}
    grad = torch.ones(case.batch, case.hidden, dtype=dtype)
    leaves = {"x": x, **initial}
    for leaf in leaves.values():
        leaf.requires_grad_(case.trains)
    pair = case.cell == "lstm"
    hx = tuple(initial.values()) if pair else initial["h"]

    def forward() -> torch.Tensor:
        y, state = x, hx
        for _ in range(case.steps):
            state = cell(y, state)
            y = state[0] if pair else state
        return y

    if not case.trains:
        return _forward(forward, torch.no_grad)
    return _forward_and_backward(forward, grad, cell, leaves)


def _forward(
    forward: Callable[[], torch.Tensor], context: Callable[[], contextlib.AbstractContextManager[object]]
) -> Prepared:
    output = torch.empty(0)

    def run() -> None:
        nonlocal output
        output = forward()

    return Prepared(run, lambda: {"y": _array(output)}, context)


def _forward_and_backward(
    forward: Callable[[], torch.Tensor],
    grad: torch.Tensor,
    module: torch.nn.Module,
    leaves: dict[str, torch.Tensor],
    retain_graph: bool = False,
) -> Prepared:
    """Gradients of the leaves and of the module's parameters, from `grad`, that of the output."""
    leaves = leaves | dict(module.named_parameters())
    output = torch.empty(0)
    grads = {grad.dtype: grad}  # under autocast the output's type is known only when it is there

    def run() -> None:
        nonlocal output
        output = forward()
        for leaf in leaves.values():
            leaf.grad = None
        if output.dtype not in grads:
            grads[output.dtype] = grad.to(output.dtype)
        output.backward(grads[output.dtype], retain_graph=retain_graph)

    def results() -> dict[str, np.ndarray]:
        found = {"y": output.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}
        return {name: _array(tensor) for name, tensor in found.items()}

    return Prepared(run, results)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16


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
