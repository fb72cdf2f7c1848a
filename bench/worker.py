"""One peer in a process of its own, driven by lines of JSON: `python -m bench.worker PEER THREADS`.

{"prepare": CASE} answers with the peer's error against float64; {"time": SECONDS} calls the prepared case for
at least that long and answers with the seconds of each call. EOF ends it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch

from bench.cases import Case
from bench.peers import Prepared, prepare

# Of any output or gradient, relative to its largest value: float32 sums of up to some thousand terms.
TOLERANCE = 2e-4


def check(peer: str, case: Case, prepared: Prepared) -> float:
    """The largest relative error against torch.nn in float64."""
    prepared.run()
    exact = prepare("torch", case, torch.float64)
    exact.run()
    errors = [
        float(np.abs(got - want).max() / max(1e-30, np.abs(want).max()))
        for got, want in zip(prepared.results(), exact.results(), strict=True)
    ]
    return max(errors)


def times(prepared: Prepared, seconds: float) -> list[float]:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        prepared.run()
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    peer, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    prepared = None
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        if "prepare" in request:
            case = Case(**request["prepare"])
            prepared = prepare(peer, case)
            error = check(peer, case, prepared)
            answer: dict[str, Any] = {"error": error, "correct": error <= TOLERANCE}
        else:
            assert prepared is not None
            answer = {"seconds": times(prepared, request["time"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
