"""What this machine can do at most: the measure that a time is held against."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch

from bench.cases import Case

__all__ = ["Limits", "measure"]


@dataclass(frozen=True)
class Limits:
    """What was measured.

    sgemm: float32 operations per second. near, far: bytes per second at which a matrix-vector product reads a
    matrix that fits in the second-level caches, and one that does not.
    """

    sgemm: float
    near: float
    far: float

    NEAR_BYTES = 1 << 20

    def seconds(self, case: Case) -> float:
        """The least time for a case: its products at the rate of sgemm, or every step's reading of the
        recurrent weights (once forward, once backward), whichever is longer."""
        bandwidth = self.near if case.recurrent_bytes() <= self.NEAR_BYTES else self.far
        reads = case.steps * (2 if case.trains else 1)
        return max(case.flops() / self.sgemm, reads * case.recurrent_bytes() / bandwidth)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def _best(run: object, work: float, repeats: int) -> float:
    assert callable(run)
    run()
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = max(best, work / (time.perf_counter() - start))
    return best


def _gemm_rate(n: int) -> float:
    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    return _best(lambda: torch.mm(a, b, out=out), 2.0 * n**3, 10)


def _read_rate(rows: int, columns: int) -> float:
    a, x, out = torch.randn(rows, columns), torch.randn(columns), torch.empty(rows)
    calls = 20

    def run() -> None:
        for _ in range(calls):
            torch.mv(a, x, out=out)

    return _best(run, 4.0 * rows * columns * calls, 20)


def measure(threads: int) -> Limits:
    torch.set_num_threads(threads)
    return Limits(
        sgemm=max(_gemm_rate(n) for n in (512, 1024, 1536)),
        near=max(_read_rate(1024, 256), _read_rate(512, 256)),
        far=_read_rate(4096, 1024),
    )
