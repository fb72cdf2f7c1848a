"""Times of work on a device: by its events, or by the host's clock where the device is the CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = [
    "Spread",
    "can_capture",
    "capture",
    "elapsed",
    "host_seconds",
    "repeats_for",
    "spread",
    "synchronize",
]

Results = TypeVar("Results")
Spread = dict[str, float]  # median, low and high: the quartiles


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def elapsed(device: str, run: Callable[[], object], repeats: int) -> float:
    """Seconds of one of `repeats` calls in a row, on the device."""
    synchronize(device)
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(repeats):
        run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) * 1e-3 / repeats


def host_seconds(device: str, run: Callable[[], object], repeats: int) -> float:
    """Seconds in which the host has started a call, which goes on on the device."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    taken = (time.perf_counter() - start) / repeats
    synchronize(device)
    return taken


def repeats_for(once: float, seconds: float) -> int:
    """Calls that make up the seconds."""
    return max(1, min(1000, round(seconds / max(once, 1e-7))))


def spread(values: list[float]) -> Spread:
    one = [values[0]] * 3
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else one
    return {"median": median, "low": low, "high": high}


def can_capture(device: str) -> bool:
    return device == "cuda"


def capture(run: Callable[[], Results]) -> tuple[torch.cuda.CUDAGraph, Results]:
    """A CUDA graph of the call, and what the call returned: a replay writes it anew. It is run on another
    stream first, as capturing asks for.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results
