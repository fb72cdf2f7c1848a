"""Two processes on gloo, against one."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bench.features.check import GRADIENTS, same
from bench.features.layers import KINDS, Layers, Tagger
from bench.features.probes import probe

RANKS = 2
BATCH = 4
STEPS = 3


def _start(rank: int, run: Callable[..., None], column: str, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    try:
        torch.manual_seed(0)
        run(Layers(column), kind, rank, folder)
    finally:
        dist.destroy_process_group()


def _spawn(run: Callable[..., None], layers: Layers, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_start, (run, layers.column, kind, folder), nprocs=RANKS)


def _models(layers: Layers, kind: str) -> tuple[Tagger, Tagger, Tensor]:
    """The same in every process: its seed is the same."""
    model, twin = layers.taggers(kind, 3, 4, num_layers=2, bidirectional=True, batch_first=True)
    return model, twin, torch.randn(BATCH, 6, 3)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x)[0].sin().mean().backward()
    optimizer.step()


def _fit(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(STEPS):
        _step(model, optimizer, x)


def _share(x: Tensor, rank: int) -> Tensor:
    return x.chunk(RANKS)[rank]


def _whole(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in model.named_parameters()}


def _compare(model: nn.Module, twin: nn.Module) -> None:
    same(_whole(model), dict(twin.named_parameters()), **GRADIENTS)


def _ddp(layers: Layers, kind: str, rank: int, folder: str) -> None:
    model, twin, x = _models(layers, kind)
    _fit(DistributedDataParallel(model), _share(x, rank))
    _fit(twin, x)
    _compare(model, twin)


@probe("DistributedDataParallel", "two gloo processes, three steps, as one process", each=KINDS)
def ddp(layers: Layers, kind: str) -> None:
    _spawn(_ddp, layers, kind)


def _accumulate(layers: Layers, kind: str, rank: int, folder: str) -> None:
    model, twin, x = _models(layers, kind)
    parallel = DistributedDataParallel(model)
    for index, part in enumerate(_share(x, rank)):
        with parallel.no_sync() if index == 0 else nullcontext():
            parallel(part[None])[0].sin().mean().backward()
    for part in x:
        (twin(part[None])[0].sin().mean() / RANKS).backward()
    same([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()], **GRADIENTS)


@probe("DistributedDataParallel, gradient accumulation", "no_sync", each=KINDS)
def accumulate(layers: Layers, kind: str) -> None:
    _spawn(_accumulate, layers, kind)


def _compiled(layers: Layers, kind: str, rank: int, folder: str) -> None:
    model, twin, x = _models(layers, kind)
    _fit(torch.compile(DistributedDataParallel(model), backend="aot_eager"), _share(x, rank))
    _fit(twin, x)
    _compare(model, twin)


@probe("DistributedDataParallel under torch.compile", "three steps, as one process", each=KINDS)
def compiled_ddp(layers: Layers, kind: str) -> None:
    _spawn(_compiled, layers, kind)


def _shard(model: Tagger) -> Tagger:
    mesh = init_device_mesh("cpu", (RANKS,))
    fully_shard(model.rnn, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _fsdp(layers: Layers, kind: str, rank: int, folder: str) -> None:
    model, twin, x = _models(layers, kind)
    _fit(_shard(model), _share(x, rank))
    _fit(twin, x)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    _compare(model, twin)


@probe("FSDP2", "fully_shard on two gloo processes, three steps, as one process", each=KINDS)
def fsdp(layers: Layers, kind: str) -> None:
    _spawn(_fsdp, layers, kind)


def _checkpoint(layers: Layers, kind: str, rank: int, folder: str) -> None:
    model, twin, x = _models(layers, kind)
    _fit(_shard(model), _share(x, rank))
    path = str(Path(folder) / "checkpoint")
    dcp.save(get_model_state_dict(model), checkpoint_id=path)
    fresh, _, _ = _models(layers, kind)
    _shard(fresh)
    state = get_model_state_dict(fresh)
    dcp.load(state, checkpoint_id=path)
    set_model_state_dict(fresh, state)
    _fit(fresh, _share(x, rank))
    _fit(twin, x)
    _fit(twin, x)
    _compare(fresh, twin)
    # And into torch.nn's layer, whole.
    plain = copy.deepcopy(twin)
    whole = {name: torch.zeros_like(value) for name, value in plain.state_dict().items()}
    dcp.load(whole, checkpoint_id=path)
    plain.load_state_dict(whole)
    same(dict(plain.named_parameters()), _whole(model), **GRADIENTS)


@probe("torch.distributed.checkpoint", "a sharded model saved, loaded, trained on; loaded whole", each=KINDS)
def checkpoint(layers: Layers, kind: str) -> None:
    _spawn(_checkpoint, layers, kind)


@contextmanager
def _alone() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield folder


@probe(
    "torch.distributed.checkpoint, one process", "saved from the layer, loaded into torch.nn's", each=KINDS
)
def checkpoint_alone(layers: Layers, kind: str) -> None:
    layer, _ = layers.pair(kind, 3, 4)
    twin = getattr(nn, kind)(3, 4)
    with _alone() as folder:
        dcp.save({"model": layer.state_dict()}, checkpoint_id=folder, no_dist=True)
        state: dict[str, Any] = {"model": twin.state_dict()}
        dcp.load(state, checkpoint_id=folder, no_dist=True)
        twin.load_state_dict(state["model"])
    x = torch.randn(5, 2, 3)
    same(layer(x), twin(x))
