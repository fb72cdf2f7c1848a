"""16-bit floating point on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.features.check import flat, same
from bench.features.layers import CELLS, KINDS, Layers, autocast_dtypes
from bench.features.probes import probe

DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}


def _pair(layers: Layers, kind: str) -> tuple[Any, Any, Tensor]:
    if kind in CELLS:
        return *layers.pair(kind, 3, 4), torch.randn(2, 3)
    return *layers.pair(kind, 3, 4, **DEEP), torch.randn(2, 5, 3)


def _step(module: Any, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and the gradients of input and weights of their mean square."""
    leaves = [x.detach().clone().requires_grad_(), *module.parameters()]
    results = flat(module(leaves[0]))
    loss = torch.stack([result.float().square().mean() for result in results]).sum()
    return [result.detach() for result in results], list(torch.autograd.grad(loss, leaves))


def _close(got: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    """Within eight roundings, to that dtype, of the largest value of each: weights, input, states and results
    are rounded once a step or less, and errors of steps add up.
    """
    for value, want in zip(got, exact, strict=True):
        bound = 8 * torch.finfo(dtype).eps * want.abs().max().item()
        same(value.double(), want, rtol=0, atol=bound)


def _autocast(layers: Layers, kind: str, dtype: torch.dtype) -> None:
    layer, twin, x = _pair(layers, kind)
    with torch.autocast("cpu", dtype):
        got, gradients = _step(layer, x)
        with torch.no_grad():
            plain = flat(layer(x))
    # torch.nn's LSTM takes no float16: what it does with bfloat16 is the rule.
    dtypes = [dtype if d == torch.bfloat16 else d for d in autocast_dtypes(twin, x)]
    for results in (got, plain):
        assert [result.dtype for result in results] == dtypes, (
            f"{[r.dtype for r in results]}, torch.nn {dtypes}"
        )
    assert all(g.dtype == torch.float32 for g in gradients), "gradients of float32 weights are float32"
    exact = _step(twin.double(), x.double())
    _close(got, exact[0], dtype)
    _close(plain, exact[0], dtype)
    _close(gradients, exact[1], dtype)


@probe("autocast, bfloat16", "dtypes of the results, numbers and gradients", each=KINDS + CELLS)
def autocast_bfloat16(layers: Layers, kind: str) -> None:
    _autocast(layers, kind, torch.bfloat16)


@probe("autocast, float16", "dtypes of the results, numbers and gradients", each=KINDS + CELLS)
def autocast_float16(layers: Layers, kind: str) -> None:
    _autocast(layers, kind, torch.float16)


def _module(layers: Layers, kind: str, dtype: torch.dtype, train: bool) -> None:
    layer, twin, x = _pair(layers, kind)
    layer, x = layer.to(dtype), x.to(dtype)
    twin.load_state_dict(layer.state_dict())
    exact = _step(twin.double(), x.double())
    if not train:
        with torch.no_grad():
            got = flat(layer(x))
        assert all(result.dtype == dtype for result in got), [result.dtype for result in got]
        _close(got, exact[0], dtype)
        return
    got, gradients = _step(layer, x)
    assert all(tensor.dtype == dtype for tensor in got + gradients)
    _close(got, exact[0], dtype)
    _close(gradients, exact[1], dtype)


@probe("bfloat16 module, inference", "against float64", each=KINDS + CELLS)
def bfloat16(layers: Layers, kind: str) -> None:
    _module(layers, kind, torch.bfloat16, train=False)


@probe("bfloat16 module, training", "results and gradients against float64", each=KINDS + CELLS)
def bfloat16_training(layers: Layers, kind: str) -> None:
    _module(layers, kind, torch.bfloat16, train=True)


@probe("float16 module, inference", "against float64", each=KINDS + CELLS)
def float16(layers: Layers, kind: str) -> None:
    _module(layers, kind, torch.float16, train=False)


@probe("float16 module, training", "results and gradients against float64", each=KINDS + CELLS)
def float16_training(layers: Layers, kind: str) -> None:
    _module(layers, kind, torch.float16, train=True)


@probe("GradScaler", "float16 autocast, scaled loss, one SGD step", each=KINDS)
def scaler(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    before = [p.detach().double().clone() for p in layer.parameters()]
    optimizer, scaler = (
        torch.optim.SGD(layer.parameters(), 1.0),
        torch.amp.GradScaler("cpu", init_scale=256.0),
    )
    with torch.autocast("cpu", torch.float16):
        loss = torch.stack([result.float().square().mean() for result in flat(layer(x))]).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    steps = [b - p.detach().double() for b, p in zip(before, layer.parameters(), strict=True)]
    _close(steps, _step(twin.double(), x.double())[1][1:], torch.float16)
