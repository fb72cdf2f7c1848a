"""Times peers side by side: one process each, rounds interleaved, one process at work at a time."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import exact
from bench.cases import Case
from bench.peers import KNOWN, OURS

__all__ = ["ROOT", "Row", "Worker", "measure_case", "measure_peak"]

ROOT = Path(__file__).resolve().parent.parent

# Of any output or gradient, relative to its largest value: float32 sums of up to some thousand terms, and
# roundings of bfloat16 and of 8 bits that a sequence adds up (torch.nn's own reach 0.3 after 512 steps).
TOLERANCES = {"float32": 2e-4, "bfloat16": 0.5, "int8": 0.2}

# glibc then gives every large block back at once, and resident memory is what is in use.
_TIGHT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


class Worker:
    """A peer's process. `name` is what its results are called; `tree` the folder whose rnnfused it imports,
    if not this one. Raises RuntimeError with the name if it dies.
    """

    def __init__(
        self,
        peer: str,
        threads: int,
        name: str | None = None,
        tree: Path | None = None,
        tight_memory: bool = False,
    ) -> None:
        self.peer, self.name = peer, name or peer
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if tight_memory:
            environment |= _TIGHT_MALLOC
        if tree is not None:
            environment["PYTHONPATH"] = str(ROOT)  # of this package; the working folder comes before it
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", peer, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tree,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"peer {self.name}: its process ended (exit status {self._process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@dataclass
class Row:
    """A case's times, in seconds a call: each peer's median of its rounds' medians, and their quartiles."""

    case: Case
    medians: dict[str, float] = field(default_factory=dict)
    quartiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)  # bytes of memory above the parameters

    def best_peer(self) -> tuple[str, float]:
        """Its name and time; no name and no number where there is none."""
        peers = ((p, s) for p, s in self.medians.items() if p not in OURS)
        return min(peers, key=lambda item: item[1], default=("", float("nan")))

    def ratio(self, peer: str | None = None) -> float:
        """How many times faster than the peer, or than the best of them, rnnfused is."""
        return (self.medians[peer] if peer else self.best_peer()[1]) / self.medians["rnnfused"]


def measure_case(case: Case, workers: list[Worker], rounds: int, seconds: float) -> Row:
    """Raises RuntimeError if a peer's outputs or gradients are wrong: no time counts before."""
    row = Row(case)
    taking_part = [worker for worker in workers if KNOWN[worker.peer].takes(case)]
    with tempfile.TemporaryDirectory() as folder:
        exact.write(case, Path(folder))
        for worker in taking_part:
            error = worker.ask(prepare=case.as_dict(), exact=folder)["error"]
            row.errors[worker.name] = error
            if not error <= TOLERANCES[case.dtype]:
                raise RuntimeError(f"peer {worker.name}: {case.name} is wrong, relative error {error:.1e}")
    found: dict[str, list[float]] = {worker.name: [] for worker in taking_part}
    for _ in range(rounds):
        for worker in taking_part:
            found[worker.name].append(statistics.median(worker.ask(time=seconds)["seconds"]))
    for name, values in found.items():
        row.medians[name] = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        row.quartiles[name] = (low, high)
    return row


def measure_peak(case: Case, workers: list[Worker]) -> dict[str, int]:
    """The memory of one call, of those workers whose system tells."""
    peaks = {worker.name: worker.ask(peak=case.as_dict())["peak"] for worker in workers}
    return {name: peak for name, peak in peaks.items() if peak is not None}
