"""A process that measures rows: `python -m bench.gpu_rows DEVICE CACHE_BYTES`, driven by lines of JSON.

{"row": ROW, "rounds": N, "seconds": S} is answered with a line of what was found. A fault of the device ends
the process, and whoever drives it goes on with another.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case
from bench.gpu_cases import PRECISIONS, GpuCase
from bench.gpu_device import take_emulated_extension
from bench.gpu_part import tail
from bench.gpu_peers import Layer, Sets, layers, precision_of_products, sets
from bench.gpu_timing import capture, elapsed, host_seconds, repeats_for, spread, synchronize

__all__ = ["bound", "errors", "measure"]

# Results may be so many times further from float64 than torch.nn's in the same precision, or so many
# roundings of what enters a product, where torch happens to be nearly exact. No more than SANE of torch's own
# error counts: rounding makes less, in every precision.
TORCH_ERRORS = 4.0
SANE = 0.02
FLOOR_ROUNDINGS = 4.0


def relative(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||; NaN where one is NaN."""
    difference = torch.linalg.vector_norm(found.double() - exact)
    return float(difference / torch.linalg.vector_norm(exact).clamp_min(1e-30))


def errors(results: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative(results[name], want) for name, want in exact.items()}


def bound(precision: str, torchs: float) -> float:
    """What a result's relative error may be, where torch's is that: rnnfused's, and torch's own too."""
    return max(TORCH_ERRORS * min(torchs, SANE), FLOOR_ROUNDINGS * PRECISIONS[precision].epsilon)


def _exact(row: GpuCase, device: str, given: Sets) -> dict[str, Tensor]:
    """Of the first set. The weights are those of the row's dtype, in float64."""
    x = given.x[0].detach().double().requires_grad_(row.case.trains)
    wide = replace(given, x=[x], dy=[t.double() for t in given.dy[:1]])
    return Layer(layers(row, device, torch.float64), row, wide).call(0)


def _check(row: GpuCase, device: str, given: Sets, peers: dict[str, Layer]) -> dict[str, Any]:
    """The largest errors, and in "wrong" what is beyond its bound."""
    exact = _exact(row, device, given)
    of_peers = {name: errors(peer.call(0), exact) for name, peer in peers.items()}
    wrong = []
    for name in exact:
        for peer, of in of_peers.items():
            most = bound(row.precision, of_peers["torch"][name])
            if not of[name] <= most:
                wrong.append(f"{peer}'s {name}: relative error {of[name]:.1e}, at most {most:.1e}")
    return {"errors": {peer: max(of.values()) for peer, of in of_peers.items()}, "wrong": wrong}


def _rounds(
    device: str, runs: dict[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, list]:
    """Seconds of a run of each, round by round, the peers in turn."""
    repeats = {}
    for name, run in runs.items():
        elapsed(device, run, 1)
        repeats[name] = repeats_for(elapsed(device, run, 1), seconds)
    found: dict[str, list] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(elapsed(device, run, repeats[name]))
    return found


def _graphs(device: str, peers: dict[str, Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """A CUDA graph of a lap of each peer, and why there is none."""
    made, failed = {}, {}
    for name, peer in peers.items():
        if device != "cuda":
            failed[name] = "the CPU has no CUDA graphs"
            continue
        try:
            made[name] = capture(peer.lap)
        except RuntimeError as error:
            failed[name] = tail(str(error), 2)
            torch.cuda.synchronize()  # a fault of the device ends the process here
    return made, failed


def measure(row: GpuCase, device: str, cache_bytes: float, rounds: int, seconds: float) -> dict[str, Any]:
    """Errors, then times in seconds a call: "eager" and "graph", of each peer median and quartiles."""
    precision_of_products(row)
    given = sets(row, device, cache_bytes)
    modules: dict[str, torch.nn.Module] = {"torch": layers(row, device)}
    found: dict[str, Any] = row.as_dict() | {"name": row.name, "sets": len(given.x), "rounds": rounds}
    try:
        import rnnfused

        modules["rnnfused"] = rnnfused.convert(layers(row, device))
    except ImportError as error:
        found["failed"] = f"rnnfused cannot be imported: {error}"
    peers = {name: Layer(module, row, given) for name, module in modules.items()}
    found |= _check(row, device, given, peers)
    if found["wrong"]:
        return found | {"failed": "; ".join(found["wrong"][:4])}
    calls = len(given.x)

    def per_call(values: list[float]) -> dict[str, float]:
        return spread([value / calls for value in values])

    times = _rounds(device, {name: peer.lap for name, peer in peers.items()}, rounds, seconds)
    found["eager"] = {name: per_call(values) for name, values in times.items()}
    found["host"] = {name: host_seconds(device, peer.lap, 2) / calls for name, peer in peers.items()}
    graphs, found["not_captured"] = _graphs(device, peers)
    runs = {name: graph.replay for name, graph in graphs.items()}
    times = _rounds(device, runs, rounds, seconds)
    found["graph"] = {name: per_call(values) for name, values in times.items()}
    return found


def _raise_clocks() -> None:
    """An idle device runs slower than one at work: the first row must not be measured on the way up."""
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        torch.mm(a, a)
        torch.cuda.synchronize()


def main() -> int:
    device, cache_bytes = sys.argv[1], float(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to the log
    os.dup2(2, 1)
    take_emulated_extension()
    if device == "cuda":
        _raise_clocks()
    for line in sys.stdin:
        asked = json.loads(line)
        row = GpuCase(Case(**asked["row"]["case"]), asked["row"]["precision"])
        try:
            found = measure(row, device, cache_bytes, asked["rounds"], asked["seconds"])
        except Exception as error:
            found = row.as_dict() | {
                "name": row.name,
                "failed": f"{type(error).__name__}: {tail(str(error), 4)}",
            }
        print(json.dumps(found), file=answers, flush=True)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        synchronize(device)  # after a fault of the device no later row would be right: this raises
    return 0


if __name__ == "__main__":
    sys.exit(main())
