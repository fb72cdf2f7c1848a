"""torch.nn and rnnfused on a GPU: the same layer and inputs, and a call that returns its results by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from bench.gpu.cases import PRECISIONS, GpuCase

__all__ = ["MAX_SETS", "Layer", "Sets", "layers", "precision_of_products", "sets", "sets_that_leave_cache"]

# Beyond that, inputs so small that they stay in the cache would only make graphs long.
MAX_SETS = 4


@dataclass(frozen=True)
class Sets:
    """Inputs that calls take in turn, and with each the gradient of the output. Rows are packed if ragged."""

    x: list[Tensor]
    dy: list[Tensor]
    batch_sizes: Tensor | None


def sets_that_leave_cache(set_bytes: float, cache_bytes: float) -> int:
    """So many that by the time one comes round again it has left the cache, but MAX_SETS at most."""
    return int(max(1, min(MAX_SETS, -(-2 * cache_bytes // set_bytes))))


def sets(row: GpuCase, device: str, cache_bytes: float) -> Sets:
    case, precision = row.case, PRECISIONS[row.precision]
    lengths = case.lengths()
    batch_sizes = None
    shape: tuple[int, ...] = (case.steps, case.batch)
    if case.mode == "ragged":
        batch_sizes = pack_padded_sequence(torch.zeros(case.steps, case.batch), lengths).batch_sizes
        shape = (sum(lengths),)
    bytes_of_set = sum(lengths) * case.hidden * precision.bytes * (1 + case.directions)
    count = sets_that_leave_cache(bytes_of_set, cache_bytes)

    def draw(units: int, seed: int) -> list[Tensor]:
        # The same values in every precision of a case, so far as it has them.
        random = torch.Generator(device).manual_seed(seed)
        made = (torch.randn(*shape, units, device=device, generator=random) for _ in range(count))
        return [t.to(getattr(torch, precision.dtype)) for t in made]

    x = [t.requires_grad_(case.trains) for t in draw(case.hidden, 1)]
    return Sets(x, draw(case.hidden * case.directions, 2) if case.trains else [], batch_sizes)


class Layer:
    """A peer. `call(i)` takes the i-th set and returns its results by name. `autocast`: a kind of device and
    the dtype in which a call goes forward.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        row: GpuCase,
        given: Sets,
        autocast: tuple[str, torch.dtype] | None = None,
    ) -> None:
        self.module, self._row, self._given = module.train(row.case.trains), row, given
        self._names, self._parameters = zip(*module.named_parameters(), strict=True)
        self._autocast = autocast
        self._cast: dict[int, Tensor] = {}

    def _dy(self, i: int, dtype: torch.dtype) -> Tensor:
        """In the output's dtype, which under autocast only the output tells."""
        if self._given.dy[i].dtype == dtype:
            return self._given.dy[i]
        if i not in self._cast:
            self._cast[i] = self._given.dy[i].to(dtype)
        return self._cast[i]

    def _output(self, x: Tensor) -> Tensor:
        with torch.autocast(*self._autocast) if self._autocast else contextlib.nullcontext():
            if self._given.batch_sizes is None:
                return self.module(x)[0]
            return self.module(PackedSequence(x, self._given.batch_sizes))[0].data

    def call(self, i: int) -> dict[str, Tensor]:
        x = self._given.x[i]
        if not self._row.case.trains:
            with torch.inference_mode():
                return {"y": self._output(x)}
        y = self._output(x)
        gradients = torch.autograd.grad(y, (x, *self._parameters), self._dy(i, y.dtype))
        return {"y": y.detach(), **dict(zip(("x", *self._names), gradients, strict=True))}

    def lap(self) -> dict[str, Tensor]:
        """One call with every set; returns the last one's results."""
        results: dict[str, Tensor] = {}
        for i in range(len(self._given.x)):
            results = self.call(i)
        return results


def layers(row: GpuCase, device: str, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """torch.nn's, in the row's dtype or another, with the same weights every time."""
    case, of_row = row.case, getattr(torch, PRECISIONS[row.precision].dtype)
    torch.manual_seed(3)
    kind: Callable[..., torch.nn.Module] = getattr(torch.nn, case.cell.upper())
    made = kind(case.hidden, case.hidden, case.layers, bidirectional=case.bidirectional, device=device)
    return made.to(of_row) if dtype is None else made.to(of_row).to(dtype)


def precision_of_products(row: GpuCase) -> None:
    """Sets torch's switches of TF32, for both peers and for the process."""
    tf32 = PRECISIONS[row.precision].tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
