"""What this machine can do at most: the measure that a time is held against."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.cases import Case

__all__ = ["Limits", "measure"]

L2_BYTES = 384 * 1024  # of a core's own: well inside 512 KiB, far outside the first level
L3_BYTES = 3 << 20


@dataclass(frozen=True)
class Limits:
    """fma: float32 operations per second of multiplications and additions on registers; dots and byte_dots:
    those of the instructions that multiply pairs of bfloat16 and fours of bytes, 0 where there is none.
    sgemm: those of large matrix products, by torch's library. l2, l3: bytes per second that all threads
    together read, each from memory of its own that fits that level. barrier: seconds in which the threads
    meet once.
    """

    threads: int
    fma: float
    sgemm: float
    l2: float
    l3: float
    barrier: float
    dots: float = 0.0
    byte_dots: float = 0.0

    def seconds(self, case: Case) -> float:
        """The least time for a case: the input projection at the rate of fma (in fewer bits: of dots), and
        step by step either the recurrent product at that rate or the reading of the recurrent weights,
        whichever is longer. Backward reads them once more, and computes three products for every one of
        forward's two kinds.
        """
        rates = {"float32": self.fma, "bfloat16": self.dots, "int8": self.byte_dots}
        rate = max(rates[case.dtype], self.fma)
        recurrent = case.recurrent_flops() / rate
        bandwidth = self.l2 if case.recurrent_bytes() <= L2_BYTES * 2 * self.threads else self.l3
        reading = case.steps * case.recurrent_bytes() / bandwidth
        forward = case.projection_flops() / rate + max(recurrent, reading)
        if not case.trains:
            return forward
        after = (2 * case.projection_flops() + case.recurrent_flops()) / rate
        return forward + max(recurrent, reading) + after

    def best(self, other: Limits) -> Limits:
        """The better of two measurements of a machine: a disturbance makes a limit look low, never high."""
        return Limits(
            threads=self.threads,
            fma=max(self.fma, other.fma),
            sgemm=max(self.sgemm, other.sgemm),
            l2=max(self.l2, other.l2),
            l3=max(self.l3, other.l3),
            barrier=min(self.barrier, other.barrier),
            dots=max(self.dots, other.dots),
            byte_dots=max(self.byte_dots, other.byte_dots),
        )

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def _gemm_rate(n: int) -> float:
    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    torch.mm(a, b, out=out)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = max(best, 2.0 * n**3 / (time.perf_counter() - start))
    return best


def _build(folder: Path) -> ctypes.CDLL:
    """Raises RuntimeError where there is no compiler."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise RuntimeError("bench: a C++ compiler is needed to measure the machine's limits (set CXX)")
    library = folder / "limits.so"
    source = Path(__file__).with_suffix(".cpp")
    flags = ["-O3", "-march=native", "-std=c++17", "-Wno-psabi", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *flags, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


def measure(threads: int) -> Limits:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        native = _build(Path(folder))
    rates = (native.multiply_add_rate, native.dot_rate, native.byte_dot_rate)
    for function in (*rates, native.read_rate, native.barrier_seconds):
        function.restype = ctypes.c_double
    native.read_rate.argtypes = [ctypes.c_int, ctypes.c_long]

    def reads(size: int) -> float:
        return max(native.read_rate(threads, size) for _ in range(5))

    return Limits(
        threads=threads,
        fma=max(native.multiply_add_rate(threads) for _ in range(5)),
        sgemm=max(_gemm_rate(n) for n in (512, 1024, 1536)),
        l2=reads(L2_BYTES),
        l3=reads(L3_BYTES),
        barrier=min(native.barrier_seconds(threads) for _ in range(5)) if threads > 1 else 0.0,
        dots=max(native.dot_rate(threads) for _ in range(5)),
        byte_dots=max(native.byte_dot_rate(threads) for _ in range(5)),
    )
