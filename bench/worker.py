"""One peer in a process of its own, driven by lines of JSON: `python -m bench.worker PEER THREADS`.

{"prepare": CASE, "exact": FOLDER} answers with the peer's largest error against the arrays of the folder;
{"time": SECONDS} calls the prepared case for at least that long and answers with the seconds of each call;
{"peak": CASE} answers with the bytes that one call takes at most, or null where the system does not tell. EOF
ends it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Case
from bench.peers import Prepared, prepare


def error(prepared: Prepared, exact: Path) -> float:
    """The largest error of any result, relative to that result's largest value."""
    with prepared.context():
        prepared.run()
        results = prepared.results()
    errors = []
    for file in exact.glob("*.npy"):
        want = np.load(file)
        difference = np.abs(results[file.stem].reshape(want.shape) - want).max()
        errors.append(float(difference / max(1e-30, np.abs(want).max())))
    return max(errors)


def times(prepared: Prepared, seconds: float) -> list[float]:
    time.sleep(0.05)  # the peer before has threads that spin for a while
    found: list[float] = []
    with prepared.context():
        prepared.run()
        end = time.perf_counter() + seconds
        while not found or time.perf_counter() < end:
            start = time.perf_counter()
            prepared.run()
            found.append(time.perf_counter() - start)
    return found


def in_its_turn(
    prepare_way: Callable[[Any, str], Prepared], row: Any, way: str, threads: int, parent: Connection
) -> None:
    """What bench.turns runs for one way of doing something: sends its results, and then, as often as it is
    given a number of seconds, the milliseconds of a call.
    """
    import torch

    torch.set_num_threads(threads)
    prepared = prepare_way(row, way)
    prepared.run()
    parent.send(prepared.results())
    while seconds := parent.recv():
        parent.send(1e3 * statistics.median(times(prepared, seconds)))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(field)


def peak(peer: str, case: Case, threads: int) -> int | None:
    """Bytes of resident memory at the peak of one call above what there was before it: the least of three,
    for what else the process does counts, too.

    The call has a thread of its own, so that what rnnfused keeps for a thread's next call counts. Another
    thread makes the same call before: code that is loaded only then is not the case's. What that call has
    left is given back as the case is prepared.
    """
    found = []

    def call() -> None:
        prepared = prepare(peer, case, threads)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status("VmRSS")
        with prepared.context():
            prepared.run()
        found.append(_status("VmHWM") - before)

    for _ in range(4):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    return min(found[1:], default=None)


def answer(request: dict[str, Any], peer: str, threads: int, state: dict[str, Prepared]) -> dict[str, Any]:
    if "prepare" in request:
        state.clear()
        state["case"] = prepare(peer, Case(**request["prepare"]), threads)
        return {"error": error(state["case"], Path(request["exact"]))}
    if "peak" in request:
        return {"peak": peak(peer, Case(**request["peak"]), threads)}
    return {"seconds": times(state["case"], request["time"])}


def main() -> None:
    peer, threads = sys.argv[1], int(sys.argv[2])
    state: dict[str, Prepared] = {}
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), peer, threads, state)), flush=True)


if __name__ == "__main__":
    main()
