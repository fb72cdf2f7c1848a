"""Whether anything is wrong at all: every function of ptx.cuh, then every cell in every precision, forward
and backward, with a few units and a few hundred.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from bench.gpu.cases import smoke_cases
from bench.gpu.device import EXTENSION, emulated_extension
from bench.gpu.part import Section, run_logged, tail
from bench.gpu.programs import built

__all__ = ["of_layers", "of_wrappers", "run"]

WRAPPERS_SHARE = 0.5  # of the section's time, where they hang


def of_wrappers(output: str, status: int | None) -> dict[str, Any]:
    """What the program of tests/cpp/cuda_on_host/wrappers said, a line for each wrapper and form."""
    lines = [line for line in output.splitlines() if line.endswith(" ok") or " differs: " in line]
    skipped = [line for line in output.splitlines() if " skipped: " in line]
    found: dict[str, Any] = {"status": status, "ok": sum(line.endswith(" ok") for line in lines)}
    found["differ"] = [line for line in lines if " differs: " in line]
    found["skipped"] = skipped
    if status is None:
        found["failed"] = f"stopped, {len(lines)} lines after the start"
    elif found["differ"]:
        found["failed"] = f"{len(found['differ'])} differ"
    elif status != 0 or not found["ok"]:
        found["failed"] = f"exit status {status}: {tail(output, 3)}"
    return found


def of_layers(output: str, status: int | None) -> dict[str, Any]:
    """What bench.gpu.layers said, a line of JSON for each case; libraries may print others."""
    cases = [json.loads(line) for line in output.splitlines() if line.startswith('{"name": ')]
    reached = {case["name"] for case in cases}
    found: dict[str, Any] = {"status": status, "cases": cases}
    found["failures"] = [case for case in cases if "failed" in case]
    found["not_reached"] = [row.name for row in smoke_cases() if row.name not in reached]
    if found["failures"]:
        found["failed"] = f"{len(found['failures'])} of {len(cases)} wrong"
    elif status is None:
        found["failed"] = f"stopped, {len(cases)} cases done"
    elif status != 0 or found["not_reached"]:
        found["failed"] = f"exit status {status}: {tail(output, 3)}"
    return found


def _wrappers(section: Section, seconds: float) -> dict[str, Any]:
    try:
        program = built("wrappers", None if section.dry_run else section.of("device")["arch"])
    except RuntimeError as error:
        return {"failed": str(error)}
    status, output = run_logged([str(program)], seconds)
    return of_wrappers(output, status)


def run(section: Section) -> int:
    end = time.monotonic() + section.seconds
    environment: dict[str, str] = {}
    device = "cuda"
    if section.dry_run:
        extension = emulated_extension()
        if extension is None:
            print("smoke: the extension whose GPU is emulated is not built (make emulated)", file=sys.stderr)
            return 1
        # An emulator would take minutes for the resident kernels of so many units.
        environment = {
            EXTENSION: str(extension),
            "RNNFUSED_ISA": "scalar",
            "RNNFUSED_CUDA_DRIVER": "stepwise",
        }
        device = "cpu"
    found: dict[str, Any] = {"wrappers": _wrappers(section, WRAPPERS_SHARE * section.seconds)}
    section.save(found)
    command = [sys.executable, "-m", "bench.gpu.layers", device]
    status, output = run_logged(command, end - time.monotonic(), environment)
    found["layers"] = of_layers(output, status)
    section.save(found)
    for name, part in found.items():
        print(f"{name}: {part.get('failed', 'all right')}")
    return 1 if any("failed" in part for part in found.values()) else 0
