"""Layers whose recurrence is one launch (docs/gpu.md) beside the same layers run step by step: on a GPU, or
on the CPU where that plays one.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from results import tensors
from test_gpu import KINDS, logged
from tolerances import FLOOR_ULPS, TORCH_ERRORS
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfused
from bench.gpu.timing import capture

CASES = min(60, int(os.environ.get("RNNFUSED_WALK_CASES", "60")))
# As the kernels multiply them: float32 as TF32, whose numbers have as many bits as float16's, or whole.
EPS = {torch.float32: 2.0**-10, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
WHOLE = 2.0**-23
# Around a tile, a block and a cluster of blocks.
SIZES = (1, 3, 8, 31, 32, 33, 63, 64, 65, 100, 128, 129)


@pytest.fixture(autouse=True)
def allow_tf32(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets whether recurrent layers of float32 may be multiplied as TF32; at first they may. Other products
    are not.
    """

    def allow(whether: bool) -> None:
        torch.backends.cudnn.allow_tf32 = whether
        if whether:
            monkeypatch.setenv("RNNFUSED_EMULATION_TF32", "1")
        else:
            monkeypatch.delenv("RNNFUSED_EMULATION_TF32", raising=False)

    before = torch.backends.cudnn.allow_tf32
    allow(True)
    yield allow
    torch.backends.cudnn.allow_tf32 = before


def shifted(t: Tensor) -> Tensor:
    """The same, one element beyond where it was aligned."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


class Case:
    """A layer and its input, drawn; results(driver) are its outputs and gradients by that driver."""

    def __init__(self, pick: random.Random, gpu: str) -> None:
        self.kind, self.dtype = pick.choice(KINDS), pick.choice(list(EPS))
        self.tf32 = pick.random() < 0.5  # where it is float32
        hidden, features = pick.choice(SIZES), pick.choice((1, 5, 8))
        steps, batch = pick.choice((1, 2, 3, 6)), pick.choice((1, 2, 7, 8, 9, 17))
        options: dict[str, Any] = {
            "num_layers": pick.choice((1, 1, 2)),
            "bidirectional": pick.random() < 0.5,
            "bias": pick.random() < 0.8,
            "batch_first": pick.random() < 0.3,
            "recompute": pick.random() < 0.3,
        }
        if self.kind == "RNN":
            options["nonlinearity"] = pick.choice(("tanh", "relu"))
        torch.manual_seed(pick.randrange(1 << 30))
        self.module = getattr(rnnfused, self.kind)(features, hidden, device=gpu, dtype=self.dtype, **options)
        if pick.random() < 0.2:
            for parameter in self.module.parameters():
                parameter.data = shifted(parameter.data)
        self.form = pick.choice(("padded", "packed", "lengths", "resets", "both"))
        self.lengths = sorted((pick.randint(1, steps) for _ in range(batch)), reverse=True)
        self.lengths[0] = steps
        self.resets = torch.rand(steps, batch, device=gpu) < 0.3
        x = torch.randn(steps, batch, features, device=gpu, dtype=self.dtype)
        self.x = x.transpose(0, 1).contiguous() if options["batch_first"] else x
        directions = 2 if options["bidirectional"] else 1
        state = (options["num_layers"] * directions, batch, hidden)
        given = pick.random() < 0.6
        count = 2 if self.kind == "LSTM" else 1
        self.states = (
            [torch.randn(state, device=gpu, dtype=self.dtype) for _ in range(count)] if given else []
        )
        self.seed = pick.randrange(1 << 30)
        self.text = f"{self.kind} {self.dtype} T{steps} B{batch} I{features} H{hidden} {options} {self.form}"

    @property
    def eps(self) -> float:
        return EPS[self.dtype] if self.dtype != torch.float32 or self.tf32 else WHOLE

    def rounds_alone(self, gpu: str) -> bool:
        return self.dtype == torch.float32 and self.tf32 and gpu == "cuda"

    def results(self, dtype: torch.dtype) -> list[Tensor]:
        module = copy.deepcopy(self.module).to(dtype)
        leaves = [t.detach().to(dtype).requires_grad_() for t in (self.x, *self.states)]
        states = None if not self.states else tuple(leaves[1:]) if len(self.states) == 2 else leaves[1]
        how: dict[str, Any] = {}
        x: Any = leaves[0]
        if self.form == "packed":
            x = pack_padded_sequence(x, self.lengths, batch_first=module.batch_first)
        if self.form in ("lengths", "both"):
            how["lengths"] = torch.tensor(self.lengths[::-1], device=x.device)
        if self.form in ("resets", "both"):
            how["resets"] = self.resets.transpose(0, 1) if module.batch_first else self.resets
        y, final = module(x, states, **how)
        outputs = [y.data if self.form == "packed" else y, *tensors(final)]
        torch.manual_seed(self.seed)
        weights = [torch.randn(o.shape, device=o.device, dtype=torch.float64).to(dtype) for o in outputs]
        gradients = torch.autograd.grad(outputs, [*leaves, *module.parameters()], weights)
        return [t.detach().double() for t in (*outputs, *gradients)]


@pytest.mark.parametrize("index", range(CASES))
def test_as_step_by_step(
    index: int, gpu: str, allow_tf32: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(random.Random(index), gpu)
    allow_tf32(case.tf32)
    resident = case.results(case.dtype)
    again = case.results(case.dtype)
    monkeypatch.setenv("RNNFUSED_CUDA_DRIVER", "stepwise")
    stepwise, exact = case.results(case.dtype), case.results(torch.float64)
    # A GPU's products of the stepwise driver are not rounded to TF32: they do not tell what rounding costs
    # where large terms cancel.
    largest = max(float(t.abs().max()) for t in exact if t.numel()) if case.rounds_alone(gpu) else None
    # A relu may be open in one precision and closed in another.
    has_kink = case.kind == "RNN" and case.module.nonlinearity == "relu"
    for got, same, other, want in zip(resident, again, stepwise, exact, strict=True):
        assert torch.equal(got, same), case.text
        if has_kink or got.numel() == 0:
            assert torch.isfinite(got).all()
            continue
        error, allowed = (got - want).abs().max(), (other - want).abs().max()
        floor = FLOOR_ULPS * case.eps * (largest or want.abs().max())
        assert error <= max(TORCH_ERRORS * allowed, floor), case.text


# What a call took: its driver, and the blocks to a cluster.
def taken(lines: list[str]) -> list[tuple[str, int]]:
    return [
        (line.split("driver=")[1].split()[0], int(line.split("cluster=")[1].split()[0])) for line in lines
    ]


def test_which_driver_is_said(gpu: str) -> None:
    layers = f"""
torch.backends.cudnn.allow_tf32 = True
def run(kind, hidden, dtype, **options):
    module = getattr(rnnfused, kind)(4, hidden, device={gpu!r}, dtype=dtype, **options)
    module(torch.zeros(2, 3, 4, device={gpu!r}, dtype=dtype))[0].sum().backward()
run("LSTM", 64, torch.bfloat16)
run("GRU", 130, torch.float16)
run("LSTM", 800, torch.bfloat16)
run("LSTM", 64, torch.float64)
run("LSTM", 64, torch.bfloat16, proj_size=8)
run("GRU", 64, torch.bfloat16, zoneout=0.1)
run("RNN", 40, torch.float32)
torch.backends.cudnn.allow_tf32 = False
import os
os.environ.pop("RNNFUSED_EMULATION_TF32")
run("RNN", 40, torch.float32)
run("LSTM", 200, torch.float32)
run("LSTM", 300, torch.float32)
os.environ["RNNFUSED_CUDA_DRIVER"] = "stepwise"
run("LSTM", 64, torch.bfloat16)"""
    drivers = taken([line for line in logged(layers) if "driver=" in line])
    expected = (
        [("resident", 1), ("resident", 5)]
        + [("stepwise", 1)] * 4
        + [("resident", 1)] * 2
        + [("resident", 7)]
        + [("stepwise", 1)] * 2
    )
    assert drivers == [driver for driver in expected for _ in ("forward", "backward")]


def test_a_driver_that_is_none(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNFUSED_CUDA_DRIVER", "fast")
    with pytest.raises(RuntimeError, match="RNNFUSED_CUDA_DRIVER: expected resident or stepwise, got 'fast'"):
        rnnfused.RNN(2, 3, device=gpu)(torch.zeros(2, 1, 2, device=gpu))


def test_a_batch_does_not_change_its_sequences(gpu: str) -> None:
    """Each sequence has the bits that it has alone, whatever the plan makes of the batch."""
    module = rnnfused.LSTM(8, 132, device=gpu, dtype=torch.bfloat16, bidirectional=True)
    x = torch.randn(4, 20, 8, device=gpu, dtype=torch.bfloat16)
    whole = module(x)[0]
    if gpu == "cpu":  # whose products are summed in one order, whatever their size
        for b in (0, 7, 8, 19):
            assert torch.equal(module(x[:, b : b + 1].contiguous())[0], whole[:, b : b + 1])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_graph(kind: str) -> None:
    """Captured with packed sequences, whose offsets come from the host, and replayed on other numbers."""
    module = getattr(rnnfused, kind)(16, 200, device="cuda", dtype=torch.bfloat16, bidirectional=True)
    x = torch.randn(30, 12, 16, device="cuda", dtype=torch.bfloat16)
    lengths = sorted((3 + 2 * b for b in range(12)), reverse=True)
    packed = pack_padded_sequence(x, lengths)

    def run(data: Tensor) -> list[Tensor]:
        y, final = module(packed._replace(data=data))
        (gradient,) = torch.autograd.grad(y.data.float().square().sum(), data)
        return [y.data, *tensors(final), gradient]

    data = packed.data.clone().requires_grad_()
    graph, results = capture(lambda: run(data))
    with torch.no_grad():
        data.copy_(torch.randn_like(data))
    graph.replay()
    for got, want in zip(results, run(data), strict=True):
        assert torch.equal(got, want)
