"""Times peers side by side: one process each, rounds interleaved, one process at work at a time."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from bench.cases import Case

__all__ = ["Row", "Worker", "measure_case"]


class Worker:
    """A peer's process. Raises RuntimeError with the peer's name if it dies."""

    def __init__(self, peer: str, threads: int) -> None:
        self.peer = peer
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", peer, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"peer {self.peer}: its process ended (exit status {self._process.wait()})")
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

    def best_peer(self) -> tuple[str, float]:
        return min(((p, s) for p, s in self.medians.items() if p != "rnnfused"), key=lambda item: item[1])

    def ratio(self) -> float:
        """How many times faster than the best peer rnnfused is."""
        return self.best_peer()[1] / self.medians["rnnfused"]


def measure_case(case: Case, workers: list[Worker], rounds: int, seconds: float) -> Row:
    """Raises RuntimeError if a peer's outputs or gradients are wrong: no time counts before."""
    row = Row(case)
    for worker in workers:
        answer = worker.ask(prepare=case.as_dict())
        row.errors[worker.peer] = answer["error"]
        if not answer["correct"]:
            raise RuntimeError(
                f"peer {worker.peer}: {case.name} is wrong, relative error {answer['error']:.1e}"
            )
    found: dict[str, list[float]] = {worker.peer: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            found[worker.peer].append(statistics.median(worker.ask(time=seconds)["seconds"]))
    for peer, values in found.items():
        row.medians[peer] = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        row.quartiles[peer] = (low, high)
    return row
