"""One run that the processes of a group share: each reads its columns of every window."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from _shared import ExampleError
from _shared.interrupt import Interrupt
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from .checkpoint import Checkpoint, from_content
from .corpus import Corpus
from .model import RNNFUSED
from .options import Recipe
from .training import History, Run

_FORMAT = "rnnfused char_lm_distributed 1"
_PROGRESS = "progress.json"
_WRITTEN_LAST = ".metadata"  # by torch.distributed.checkpoint, when every process has written its part
_BATCH = 1  # the dimension of a carried state [layers, batch, hidden] that processes share


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """The group of the processes that torchrun started, or of this one alone; one that exists is taken."""
    if dist.is_initialized():
        yield
        return
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this is the process that speaks for all."""
    return dist.get_rank() == 0


class GroupInterrupt(Interrupt):
    """Also SIGTERM, by which torchrun passes a stop on, more than once. A signal to any process stops all of
    them, between the same two steps.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def requested(self) -> bool:
        caught = torch.tensor(int(self._caught))
        dist.all_reduce(caught, dist.ReduceOp.MAX)
        return bool(caught)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._caught = True


class GroupRun(Run):
    """A run of rnnfused whose batch is shared out. sharding: "ddp" keeps the whole model in every process and
    averages gradients; "fsdp" keeps a share of every parameter, and gathers a layer while it is used.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus, sharding: str) -> None:
        """Raises ExampleError when the batch cannot be shared out evenly."""
        if recipe.batch % dist.get_world_size():
            raise ExampleError(
                f"--batch: expected a multiple of the {dist.get_world_size()} processes, got {recipe.batch}"
            )
        self.shows_progress = is_first()
        self._sharding = sharding
        self._mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        super().__init__(RNNFUSED, recipe, corpus, "cpu")

    def save(self, folder: Path) -> None:
        """Write what the next step depends on, each process its part; every process calls this."""
        dcp.save(self._distributed_state(), checkpoint_id=folder)

    def load(self, folder: Path, history: dict[str, list[float]]) -> None:
        """Go on from what `save` wrote, with any number of processes and either sharding."""
        state = self._distributed_state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            self.model,
            self._optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        states = tuple(part.to_local() for part in state["carried"].values())
        self._state = states if len(states) > 1 else states[0]
        self.history = History(**history)

    def _wrap(self, model: nn.Module) -> nn.Module:
        if self._sharding == "ddp":
            return DistributedDataParallel(model)
        fully_shard(model.recurrent, mesh=self._mesh)
        return fully_shard(model, mesh=self._mesh)

    def _share(self, stream: Tensor) -> Tensor:
        return stream.chunk(dist.get_world_size(), dim=1)[dist.get_rank()].contiguous()

    def _mean(self, loss: Tensor) -> float:
        total = loss.detach().clone()
        dist.all_reduce(total)
        return total.item() / dist.get_world_size()

    def _distributed_state(self) -> dict[str, Any]:
        weights, moments = get_state_dict(self.model, self._optimizer)
        state = self._state
        if state is None:  # before the first step: of the right size, and what that step starts from
            share = self.recipe.batch // dist.get_world_size()
            zeros = torch.zeros(self.recipe.layers, share, self.recipe.hidden)
            state = (zeros, zeros.clone()) if self.recipe.cell == "lstm" else zeros
        parts = (state,) if isinstance(state, Tensor) else state
        carried = {
            name: DTensor.from_local(part, self._mesh, [Shard(_BATCH)])
            for name, part in zip("hc", parts, strict=False)
        }
        return {"model": weights, "optimizer": moments, "carried": carried}


def save_checkpoint(output: Path, checkpoint: Checkpoint, run: GroupRun) -> None:
    """Write a folder for the present step, then remove those before it: whenever this is cut short, a whole
    one is there. Every process calls this.
    """
    folder = output / f"checkpoint-{len(run.history.losses)}"
    older = _whole_checkpoints(output)
    if folder in older:
        return  # a stop right after the end of an epoch
    if is_first():
        checkpoint.runs[RNNFUSED] = {"history": asdict(run.history)}
        folder.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, **vars(checkpoint), "recipe": asdict(checkpoint.recipe)}
        (folder / _PROGRESS).write_text(json.dumps(content), encoding="utf-8")
    run.save(folder)
    if is_first():
        for path in older:
            shutil.rmtree(path)


def newest_checkpoint(output: Path) -> tuple[Path, Checkpoint] | None:
    """The last whole checkpoint of a folder, and what it says of the run, or None.

    Raises:
        ExampleError: when it is not a checkpoint of this demo.
    """
    found = _whole_checkpoints(output)
    if not found:
        return None
    folder = found[-1]
    try:
        content = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            raise ValueError("another format")
        return folder, from_content(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExampleError(f"not a checkpoint of this demo: {folder}") from error


def _whole_checkpoints(output: Path) -> list[Path]:
    """In the order of their steps."""
    found = [path.parent for path in output.glob(f"checkpoint-*/{_WRITTEN_LAST}")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
