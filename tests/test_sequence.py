"""The native layer against the NumPy reference: every output and gradient, by name, for every cell."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from one_layer import layer
from tolerances import FLOAT64, FLOOR_ULPS, eps

from rnnfused import reference
from rnnfused._load import _C
from rnnfused.cells import CELLS

VARIANTS = [(cell, False) for cell in CELLS] + [("lstm", True)]
# T, B, I, H: one, below, at and above the vector and tile sizes of every ISA; odd; many rows of few units.
SIZES = [
    (1, 1, 1, 1),
    (2, 1, 5, 16),
    (9, 1, 3, 17),
    (3, 2, 17, 15),
    (4, 3, 4, 33),
    (5, 6, 8, 8),
    (2, 7, 2, 64),
    (3, 13, 1, 31),
    (20, 4, 6, 40),
    (2, 40, 3, 5),
]


class Problem:
    """Random weights, input, states and outer gradients of one layer."""

    def __init__(self, cell: str, projected: bool, size: tuple[int, int, int, int], **options: Any) -> None:
        t, b, i, h = size
        self.cell, self.dtype = cell, options["dtype"]
        self.directions = 2 if options["bidirectional"] else 1
        random = np.random.default_rng(hash((t, b, i, h)) % 2**32)
        p = max(1, h // 2) if projected else h
        gates = len(CELLS[cell].gates)

        def draw(*shape: int) -> np.ndarray:
            return random.uniform(-1, 1, shape).astype(self.dtype)

        def scaled(*shape: int) -> np.ndarray:
            return (draw(*shape) / np.sqrt(shape[-1])).astype(self.dtype)

        lengths = sorted(random.integers(1, t + 1, b).tolist(), reverse=True)
        self.batch_sizes = None
        if options["ragged"]:
            self.batch_sizes = [sum(n > step for n in lengths) for step in range(lengths[0])]
        rows = (t, b) if self.batch_sizes is None else (sum(self.batch_sizes),)
        self.x, self.dy = draw(*rows, i), draw(*rows, self.directions * p)
        self.states = [draw(self.directions, b, p)]
        if "c" in CELLS[cell].states:
            self.states.append(draw(self.directions, b, h))
        self.dstates = [draw(*s.shape) for s in self.states]
        self.weights = [
            reference.Weights(
                scaled(gates * h, i),
                scaled(gates * h, p),
                draw(gates * h) if options["bias"] else None,
                draw(gates * h) if options["bias"] else None,
                scaled(p, h) if projected else None,
            )
            for _ in range(self.directions)
        ]

    def native(self, device: str = "cpu", dtype: torch.dtype | None = None) -> dict[str, np.ndarray]:
        """What the kernels make of it, on a device and in torch's dtype (the problem's own)."""

        def tensor(a: np.ndarray) -> torch.Tensor:
            return torch.tensor(a, device=device, dtype=dtype)

        def leaf(a: np.ndarray | None) -> torch.Tensor | None:
            return None if a is None else tensor(a).requires_grad_()

        x = leaf(self.x)
        states = tuple(leaf(s) for s in self.states)
        weights = [leaf(w) for of_direction in self.weights for w in of_direction]
        sizes = None if self.batch_sizes is None else torch.tensor(self.batch_sizes)
        y, final = layer(self.cell, x, states, weights, sizes)
        torch.autograd.backward((y, *final), [tensor(g) for g in (self.dy, *self.dstates)])
        with torch.no_grad():
            untaped = layer(self.cell, x, states, weights, sizes)[0]
        assert torch.equal(untaped, y), "inference gives other bits than training"
        found = {"y": y.detach(), "dx": x.grad}
        for name, state, last in zip(("h", "c"), states, final, strict=False):
            found[f"{name}_n"], found[f"d{name}_0"] = last.detach(), state.grad
        for index, weight in enumerate(weights):
            if weight is not None:
                found[f"d{reference.Weights._fields[index % 5]}[{index // 5}]"] = weight.grad
        return {name: t.cpu().to(torch.float64).numpy() for name, t in found.items()}

    def rounded(self, dtype: torch.dtype) -> Problem:
        """The same with every number rounded to a dtype: what its results are exact for."""

        def nearest(a: np.ndarray | None) -> np.ndarray | None:
            return None if a is None else torch.tensor(a).to(dtype).to(torch.float64).numpy()

        other = copy.copy(self)
        other.x, other.dy = nearest(self.x), nearest(self.dy)
        other.states, other.dstates = [[nearest(s) for s in given] for given in (self.states, self.dstates)]
        other.weights = [reference.Weights(*map(nearest, w)) for w in self.weights]
        return other

    def exact(self) -> dict[str, np.ndarray]:
        """The reference in float64."""

        def wide(a: np.ndarray | None) -> np.ndarray | None:
            return None if a is None else a.astype(np.float64)

        found: dict[str, Any] = {"dx": 0.0}
        ys, finals, initials = [], [], []
        p = self.states[0].shape[-1]
        for d, weights in enumerate(self.weights):
            forward = reference.forward(
                self.cell,
                wide(self.x),
                tuple(wide(s[d]) for s in self.states),
                reference.Weights(*map(wide, weights)),
                batch_sizes=self.batch_sizes,
                reverse=d == 1,
            )
            gradients = reference.backward(
                self.cell,
                forward.tape,
                wide(self.dy[..., d * p : (d + 1) * p]),
                tuple(wide(s[d]) for s in self.dstates),
            )
            ys.append(forward.y)
            finals.append(forward.states)
            initials.append(gradients.states)
            found["dx"] = found["dx"] + gradients.x
            for name in reference.Weights._fields:
                if getattr(weights, name) is not None:
                    found[f"d{name}[{d}]"] = getattr(gradients, name)
        found["y"] = np.concatenate(ys, -1)
        for index, name in enumerate(CELLS[self.cell].states):
            found[f"{name}_n"] = np.stack([f[index] for f in finals])
            found[f"d{name}_0"] = np.stack([g[index] for g in initials])
        return found


def check_errors(got: dict[str, np.ndarray], want: dict[str, np.ndarray], bound: float, case: Any) -> None:
    """Compares by name; errors are relative to the largest value, or to 1."""
    assert got.keys() == want.keys()
    for name in want:
        error = np.abs(got[name] - want[name]).max() / (np.abs(want[name]).max() + 1)
        assert error <= bound, f"{name} of {case}: {error:.2e} > {bound:.2e}"


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("cell, projected", VARIANTS, ids=lambda v: {True: "proj", False: ""}.get(v, v))
def test_every_output_and_gradient(
    cell: str, projected: bool, dtype: type, ragged: bool, bidirectional: bool, bias: bool, threads: int
) -> None:
    options = {"dtype": dtype, "ragged": ragged, "bidirectional": bidirectional, "bias": bias}
    for size in SIZES:
        if projected and size[3] == 1:
            continue  # a projection is smaller than what it projects
        problem = Problem(cell, projected, size, **options)
        got, want = problem.native(), problem.exact()
        terms = max(8, size[0] * size[1] + size[3])
        bound = FLOAT64 if dtype is np.float64 else FLOOR_ULPS * np.sqrt(terms) * eps(dtype)
        check_errors(got, want, bound, size)


@pytest.mark.long
@pytest.mark.skipif("RNNFUSED_ISA" in os.environ, reason="this is such a run")
@pytest.mark.parametrize("isa", _C.available_isas())
def test_every_isa(isa: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"RNNFUSED_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]


def test_unknown_isa_is_refused() -> None:
    code = "import torch, rnnfused; rnnfused.GRU(2, 3)(torch.zeros(1, 1, 2))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RNNFUSED_ISA": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "RNNFUSED_ISA: expected one of" in run.stderr and "'mmx'" in run.stderr
