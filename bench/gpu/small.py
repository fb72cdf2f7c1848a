"""`python -m bench.gpu.small DEVICE [SECONDS [shared]]`: every kernel at small sizes, for a sanitizer to
watch; with "shared" only layers that have kernels with shared memory.

Each cell and dtype, forward and backward, padded and ragged, in one and both directions, with a projection,
with recomputed gates, and with options of the cells. Sizes are those at which kernels take units one by one,
and several at once. The last line says how many cases were run; where the time is over, the rest is left out,
and counted.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from bench.gpu.device import take_emulated_extension

__all__ = ["Small", "run_case", "small_cases"]

DTYPES = ("float32", "bfloat16", "float16", "float64")
WIDE = 64  # units
CLUSTER = 136  # units that more than one block shares
VARIANTS = (("LSTM", 0), ("GRU", 0), ("RNN", 0), ("LSTM", 3))  # and units of the projection
# Between them every kernel of layers with options, and every branch that sums over a row.
OPTIONS: dict[str, dict[str, Any]] = {
    "LSTM": {
        "layer_norm": True,
        "cell_norm": "carried",
        "peephole": True,
        "zoneout": 0.3,
        "recurrent_dropout": 0.4,
    },
    "GRU": {"reset_after": False, "recurrent_dropout": 0.4, "zoneout": 0.3},
}


@dataclass(frozen=True)
class Small:
    kind: str
    projection: int
    dtype: str
    ragged: bool
    bidirectional: bool
    recompute: bool
    hidden: int
    varied: bool = False  # with OPTIONS

    @property
    def shares(self) -> bool:
        """Whether kernels with shared memory may run: those of options, which sum over a row, and those that
        keep the weights on the chip, if so many units are worth it.
        """
        return self.varied or self.hidden >= WIDE

    @property
    def batches(self) -> list[int]:
        """At each step."""
        if self.hidden >= WIDE:
            return [9, 9, 7, 2] if self.ragged else [9, 9, 9]
        return [3, 2, 2, 1] if self.ragged else [3, 3, 3]

    @property
    def name(self) -> str:
        words = [self.kind, self.dtype, f"H{self.hidden}", "ragged" if self.ragged else "padded"]
        words += ["both ways"] * self.bidirectional + ["projected"] * (self.projection > 0)
        return " ".join(words + ["recomputed"] * self.recompute + ["with options"] * self.varied)


def small_cases() -> list[Small]:
    """Those that differ most come first."""
    found = []
    for hidden, recompute, ragged in itertools.product((8, 5), (False, True), (True, False)):
        both = ragged != (hidden == 5)
        for dtype, (kind, projection) in itertools.product(DTYPES, VARIANTS):
            size = (4 if hidden == 8 else projection) if projection else 0
            found.append(Small(kind, size, dtype, ragged, both, recompute, hidden))
        for dtype, kind in itertools.product(DTYPES, OPTIONS):
            found.append(Small(kind, 0, dtype, ragged, both, recompute, hidden, varied=True))
        if hidden == 8 and not recompute:
            wide = itertools.product(("bfloat16", "float32"), ("LSTM", "GRU", "RNN"))
            found += [Small(kind, 0, dtype, ragged, both, False, WIDE) for dtype, kind in wide]
            found += [Small("LSTM", 0, "bfloat16", ragged, both, False, CLUSTER)]
    return found


def run_case(case: Small, device: str) -> None:
    """Raises RuntimeError if an output or a gradient is not finite."""
    import rnnfused

    options: dict[str, Any] = {
        "bidirectional": case.bidirectional,
        "recompute": case.recompute,
        "device": device,
    }
    if case.projection:
        options["proj_size"] = case.projection
    if case.varied:
        options |= OPTIONS[case.kind]
    layer = getattr(rnnfused, case.kind)(6, case.hidden, dtype=getattr(torch, case.dtype), **options)
    lengths = torch.tensor(case.batches)
    rows = int(lengths.sum())
    x = torch.randn(rows, 6, device=device).to(getattr(torch, case.dtype)).requires_grad_()
    with torch.no_grad():
        layer(PackedSequence(x, lengths))  # inference has kernels' branches of its own
    y, states = layer(PackedSequence(x, lengths) if case.ragged else x.view(3, -1, 6))
    y = y.data if case.ragged else y
    states = states if isinstance(states, tuple) else (states,)
    loss = y.float().sin().sum() + sum(s.float().cos().sum() for s in states)
    leaves = {"x": x, **dict(layer.named_parameters())}
    results = {"y": y, **dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))}
    for name, result in results.items():
        if not torch.isfinite(result).all():
            raise RuntimeError(f"{case.name}: {name} is not finite")


def main() -> int:
    device, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
    take_emulated_extension()
    torch.manual_seed(0)
    shared = len(sys.argv) > 3 and sys.argv[3] == "shared"
    cases = [case for case in small_cases() if case.shares or not shared]
    end, done = time.monotonic() + seconds, 0
    for case in cases:
        if time.monotonic() > end:
            break
        run_case(case, device)
        done += 1
        print(f"case {done}: {case.name}", flush=True)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"cases: {done} of {len(cases)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
