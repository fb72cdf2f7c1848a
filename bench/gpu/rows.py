"""A process that measures rows: `python -m bench.gpu.rows DEVICE CACHE_BYTES`, driven by lines of JSON.

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
from bench.gpu.cases import PRECISIONS, GpuCase
from bench.gpu.device import take_emulated_extension
from bench.gpu.others import OTHERS, others_of
from bench.gpu.part import tail
from bench.gpu.peers import Layer, Sets, layers, precision_of_products, sets
from bench.gpu.timing import (
    Spread,
    can_capture,
    capture,
    elapsed,
    host_seconds,
    repeats_for,
    spread,
    synchronize,
)

__all__ = ["bound", "errors", "measure"]

# Results may be so many times further from float64 than torch.nn's in the same precision, or so many
# roundings of what enters a product, where torch happens to be nearly exact. No more than SANE of torch's own
# error counts: rounding makes less, in every precision.
TORCH_ERRORS = 4.0
SANE = 0.02
# A replay may sum in another order than the call, where a library's kernels do; one that is wrong is far off.
REPLAY_ERROR = 1e-3
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


class Failures(dict[str, str]):
    """Of peers, in words; a peer that is in it is not measured."""

    def guard(self, name: str, call: Callable[[], Any]) -> Any:
        """What the call returns, or None where it raises."""
        try:
            return call()
        except Exception as error:  # whatever another package raises
            self[name] = f"{type(error).__name__}: {tail(str(error), 3)}"
            return None


def _check(
    row: GpuCase, device: str, given: Sets, peers: dict[str, Layer], failures: Failures, left_out: Failures
) -> dict[str, float]:
    """The largest error of each peer; those that are beyond their bounds fail, or are left out."""
    exact = _exact(row, device, given)
    of_peers: dict[str, dict[str, float]] = {}
    for peer, layer in peers.items():
        others = left_out if peer in OTHERS else failures
        results = others.guard(peer, lambda layer=layer: layer.call(0))
        if results is None:
            continue
        # Parameters that another package names in its own way are not compared.
        known = {n: v for n, v in exact.items() if peer not in OTHERS or n in results or n in ("x", "y")}
        of = of_peers[peer] = errors(results, known)
        for name, error in of.items():
            most = bound(row.precision, of_peers.get("torch", of)[name])
            if not error <= most:
                others[peer] = f"{name} is wrong: relative error {error:.1e}, at most {most:.1e}"
    return {peer: max(of.values()) for peer, of in of_peers.items()}


def _rounds(
    device: str, runs: dict[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds of a run of each, round by round, the peers in turn."""
    repeats = {}
    for name, run in runs.items():
        elapsed(device, run, 1)
        repeats[name] = repeats_for(elapsed(device, run, 1), seconds)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(elapsed(device, run, repeats[name]))
    return found


def _graph(row: GpuCase, peer: Layer) -> torch.cuda.CUDAGraph:
    """Of a lap; raises RuntimeError unless its replay gives what the lap gives."""
    graph, results = capture(peer.lap)
    with torch.inference_mode():
        for result in results.values():
            result.fill_(torch.nan)
    graph.replay()
    want = {name: value.double() for name, value in peer.lap().items()}
    for name, error in errors(results, want).items():
        if not error <= max(REPLAY_ERROR, FLOOR_ROUNDINGS * PRECISIONS[row.precision].epsilon):
            raise RuntimeError(f"{name} differs between a replay and a call by {error:.1e}")
    return graph


def measure(row: GpuCase, device: str, cache_bytes: float, rounds: int, seconds: float) -> dict[str, Any]:
    """Errors, then times in seconds a call: "eager" and "graph", of each peer median and quartiles. A peer
    that fails is not measured, and the others are; of those in OTHERS the row does without.
    """
    precision_of_products(row)
    given = sets(row, device, cache_bytes)
    failures, left_out, not_captured = Failures(), Failures(), Failures()
    peers = {"torch": Layer(layers(row, device), row, given)}

    def ours() -> Layer:
        import rnnfused

        return Layer(rnnfused.convert(layers(row, device)), row, given)

    if (made := failures.guard("rnnfused", ours)) is not None:
        peers["rnnfused"] = made
    for name, other in others_of(row).items():
        if (layer := left_out.guard(name, lambda other=other: other.make(row, device, given))) is not None:
            peers[name] = layer
    found: dict[str, Any] = row.as_dict() | {"name": row.name, "sets": len(given.x), "rounds": rounds}
    found["errors"] = _check(row, device, given, peers, failures, left_out)
    peers = {name: peer for name, peer in peers.items() if name not in failures | left_out}
    calls = len(given.x)

    def timed(runs: dict[str, Callable[[], object]]) -> dict[str, Spread]:
        times = _rounds(device, runs, rounds, seconds)
        return {name: spread([value / calls for value in values]) for name, values in times.items()}

    found["eager"] = timed({name: peer.lap for name, peer in peers.items()})
    found["host"] = {name: host_seconds(device, peer.lap, 2) / calls for name, peer in peers.items()}
    replays: dict[str, Callable[[], object]] = {}
    for name, peer in peers.items():
        if not can_capture(device):
            not_captured[name] = "the CPU has no CUDA graphs"
        elif (graph := not_captured.guard(name, lambda peer=peer: _graph(row, peer))) is not None:
            replays[name] = graph.replay
        else:
            synchronize(device)  # after a fault of the device this ends the process
    found["graph"], found["not_captured"], found["left_out"] = timed(replays), not_captured, left_out
    if failures:
        found["failed"] = "; ".join(f"{peer}: {words}" for peer, words in failures.items())
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
