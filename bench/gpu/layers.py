"""`python -m bench.gpu.layers DEVICE`: every cell in every precision, forward and backward, against float64.

Each case is a line of JSON: its name, and of every result and gradient the error and what it may be. The
bound is that of the project's tests (tests/tolerances.py): so many times the error of torch.nn in the same
precision on the same device, or so many units of the last place of the largest value. What is exact is
computed by torch.nn in float64 on the CPU.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace

import torch
from torch import Tensor

from bench.gpu.cases import PRECISIONS, GpuCase, smoke_cases
from bench.gpu.device import take_emulated_extension
from bench.gpu.part import ROOT, tail
from bench.gpu.peers import Layer, Sets, layers, precision_of_products, sets

sys.path.append(str(ROOT / "tests"))

from tolerances import FLOAT64, FLOOR_ULPS, TORCH_ERRORS

__all__ = ["check", "wrong"]


def _exact(row: GpuCase, module: torch.nn.Module, given: Sets) -> dict[str, Tensor]:
    x = given.x[0].detach().to("cpu", torch.float64).requires_grad_()
    on_cpu = replace(given, x=[x], dy=[given.dy[0].to("cpu", torch.float64)])
    return Layer(copy.deepcopy(module).to("cpu", torch.float64), row, on_cpu).call(0)


def _bound(precision: str, truth: Tensor, torchs: float) -> float:
    largest = float(truth.abs().max())
    if precision == "f64":
        return FLOAT64 * (1 + largest)
    return max(TORCH_ERRORS * torchs, FLOOR_ULPS * PRECISIONS[precision].epsilon * largest)


def wrong(errors: dict[str, tuple[float, float]]) -> list[str]:
    """In words, what is beyond its bound; NaN is, too."""
    return [
        f"{name}: error {error:.1e}, at most {bound:.1e}"
        for name, (error, bound) in errors.items()
        if not error <= bound
    ]


def check(row: GpuCase, device: str) -> dict[str, tuple[float, float]]:
    """The largest error of every result and gradient of rnnfused's layer, and its bound."""
    import rnnfused

    precision_of_products(row)
    given = sets(row, device, 0.0)
    theirs = layers(row, device)
    want = _exact(row, theirs, given)
    torchs = Layer(theirs, row, given).call(0)
    ours = Layer(rnnfused.convert(copy.deepcopy(theirs)), row, given).call(0)
    found = {}
    for name, truth in want.items():
        error, their_error = (float((r[name].double().cpu() - truth).abs().max()) for r in (ours, torchs))
        found[name] = (error, _bound(row.precision, truth, their_error))
    return found


def main() -> int:
    device = sys.argv[1]
    take_emulated_extension()
    failures = 0
    for row in smoke_cases():
        found: dict[str, object] = {"name": row.name}
        try:
            errors = check(row, device)
            found["errors"] = errors
            words = "; ".join(wrong(errors))
        except Exception as error:
            words = f"{type(error).__name__}: {tail(str(error), 3)}"
        if words:
            found["failed"] = words
            failures += 1
        print(json.dumps(found), flush=True)
        if device == "cuda":
            torch.cuda.synchronize()  # after a fault of the device nothing is right: this raises
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
