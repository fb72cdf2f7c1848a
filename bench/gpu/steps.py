"""What a step of each resident kernel takes on the device, beside what bench.gpu.model expects of it; and
what the host does in a training call.

The kernels' own times, as torch.profiler tells them, of two lengths of a sequence: the difference is the
steps', what remains the start (the weights' way into the registers, and the launch's end).
"""

from __future__ import annotations

import json
import re
import statistics
import time
from typing import Any

import torch

from bench.cases import Case
from bench.gpu.cases import PRECISIONS, GpuCase
from bench.gpu.device import take_emulated_extension
from bench.gpu.model import CLOCK, NUMBERS, estimate
from bench.gpu.part import Section, tail
from bench.gpu.peers import precision_of_products

__all__ = ["kernel_of", "rows", "run", "slopes"]

FEW, MANY = 64, 320  # steps
RUNS = 3
FEATURES = 8  # of the input: the products before and after the recurrence are not what is asked about
_KERNEL = re.compile(
    r"resident_(forward|backward)<.*?(ReluActivation|TanhActivation|Lstm|Gru)\b"
    r".*?(Half|BFloat16|float), (\d+), (\d+), (\d+), \(.*?Exchange\)(\d), (\d+), (\d+)"
    r", \(.*?Products\)(\d)"
)
_CELLS = {"ReluActivation": "rnn_relu", "TanhActivation": "rnn_tanh", "Lstm": "lstm", "Gru": "gru"}
_TYPES = {"Half": "f16", "BFloat16": "bf16", "float": "tf32"}


def kernel_of(name: str) -> str | None:
    """As tools/sass.json calls the resident kernel of that demangled name; None of another kernel."""
    found = _KERNEL.search(name)
    if found is None:
        return None
    way, cell, dtype, depth, tiles, eights, exchange, warps, held, split = found.groups()
    sizes = f"H{depth} M{tiles} N{eights} {('block', 'cluster')[int(exchange)]} W{warps} R{held}"
    return f"{way} {_CELLS[cell]} {'f32' if split == '1' else _TYPES[dtype]} {sizes}"


def rows() -> list[GpuCase]:
    """Those that say most first: every depth of each cell, one sequence's step and that of full clusters."""
    found = []
    most = {"bf16": 1024, "tf32": 512, "f32": 256}  # units that are resident
    for precision in most:
        for cell, sizes in {
            "lstm": (256, 512, 64, 768),
            "gru": (256, 512, 64, 768),
            "rnn": (512, 1024, 256),
        }.items():
            for hidden in sizes:
                if hidden > most[precision]:
                    continue
                found += [
                    GpuCase(Case("training", cell, MANY, batch, hidden), precision) for batch in (8, 64)
                ]
    return found


def slopes(few: list[float], many: list[float]) -> dict[str, float]:
    """Seconds of a step, and of what is there once, from times of FEW and of MANY steps."""
    step = (statistics.median(many) - statistics.median(few)) / (MANY - FEW)
    return {"step": step, "start": statistics.median(few) - FEW * step}


def _kernel_times(work: Any) -> dict[str, list[float]]:
    """Seconds of every resident kernel that the work launches, in the order of their starts."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        if (name := kernel_of(event.name)) is not None:
            found.setdefault(name, []).append(event.time_range.elapsed_us() * 1e-6)
    return found


def host_profile(device: str) -> list[dict[str, Any]]:
    """What a training call is made of, on the host and on the device: name, how often in a call, and
    microseconds of a call that it takes itself on either, those that take longest first.
    """
    import rnnfused

    layer = rnnfused.LSTM(256, 256, device=device, dtype=torch.bfloat16)
    x = torch.randn(128 if device == "cuda" else 2, 16, 256, device=device, dtype=torch.bfloat16)

    def call() -> None:
        y = layer(x)[0]
        torch.autograd.grad(y, list(layer.parameters()), y.detach())

    call()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(RUNS):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    found = [
        {
            "name": of.key[:120],
            "calls": of.count / RUNS,
            "host_us": of.self_cpu_time_total / RUNS,
            "device_us": of.self_device_time_total / RUNS,
        }
        for of in profiler.key_averages()
    ]
    return sorted(found, key=lambda of: -max(of["host_us"], of["device_us"]))[:40]


def measure(row: GpuCase, device: str) -> dict[str, Any]:
    import rnnfused

    precision_of_products(row)
    dtype = getattr(torch, PRECISIONS[row.precision].dtype)
    kind = getattr(rnnfused, row.case.cell.upper())
    ours = kind(FEATURES, row.case.hidden, device=device, dtype=dtype)
    inputs = [
        torch.randn(steps, row.case.batch, FEATURES, device=device, dtype=dtype) for steps in (FEW, MANY)
    ]

    def work(runs: int) -> None:
        for x in inputs:
            for _ in range(runs):
                y = ours(x)[0]
                torch.autograd.grad(y, list(ours.parameters()), y.detach())

    work(1)
    found: dict[str, Any] = row.as_dict() | {"name": row.name, "kernels": {}}
    if device != "cuda":
        return found  # the emulator's times say nothing
    known = json.loads(NUMBERS.read_text())["kernels"]
    for name, times in _kernel_times(lambda: work(RUNS)).items():
        of = found["kernels"][name] = slopes(times[:RUNS], times[RUNS:])
        if name in known:
            of["estimate"] = estimate(name, known[name]) / CLOCK
    return found


def run(section: Section) -> int:
    take_emulated_extension()
    device = "cpu" if section.dry_run else "cuda"
    end = time.monotonic() + section.seconds
    measured: list[dict[str, Any]] = []
    host = host_profile(device)
    small = [row for row in rows() if row.case.hidden <= 64]  # the emulator takes minutes for others
    for row in small[:2] if section.dry_run else rows():
        if time.monotonic() > end:
            break
        try:
            found = measure(row, device)
        except Exception as error:
            found = row.as_dict() | {
                "name": row.name,
                "failed": f"{type(error).__name__}: {tail(str(error), 3)}",
            }
        measured.append(found)
        section.save({"rows": measured, "rows_in_all": len(rows()), "host": host})
        for name, of in found.get("kernels", {}).items():
            words = f"{of['step'] * 1e6:.2f} us a step, {of['start'] * 1e6:.1f} us once"
            print(
                f"B{row.case.batch} {name}: {words}, by estimate {of.get('estimate', 0) * 1e6:.2f}",
                flush=True,
            )
        if "failed" in found:
            print(f"{row.name}: {found['failed']}", flush=True)
            break  # after a fault of the device nothing is right
    return 1 if any("failed" in row for row in measured) else 0
