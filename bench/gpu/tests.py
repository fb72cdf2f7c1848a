"""The tests of the CUDA drivers. Those of the CPU run on other machines."""

from __future__ import annotations

import importlib.util
import sys
import time

from bench.gpu.device import EXTENSION, emulated_extension
from bench.gpu.part import Section, run_logged, tail
from bench.gpu.pytest_outcomes import OUTCOMES, summarize

__all__ = ["run"]

SELECTED = ["tests/test_resident.py", "tests/test_packed_gpu.py", "tests/test_gpu.py"]
DRY = ["tests/test_gpu.py", "-k", "layers_in_every_dtype or words or aligned or wanted"]
WORKERS = 6  # more processes than that only wait for the GPU


def _parallel(cpus: int) -> list[str]:
    if cpus < 4 or importlib.util.find_spec("xdist") is None:
        print(f"tests: one process ({cpus} CPUs; pytest-xdist shares tests out where there are 4)")
        return []
    return ["-n", str(min(WORKERS, cpus // 2))]


def run(section: Section) -> int:
    environment = {"PYTHONFAULTHANDLER": "1"}
    parallel: list[str] = []
    if section.dry_run:
        extension = emulated_extension()
        if extension is None:
            print("tests: the extension whose GPU is emulated is not built (make emulated)", file=sys.stderr)
            return 1
        environment |= {EXTENSION: str(extension), "RNNFUSED_ISA": "scalar"}
    else:
        parallel = _parallel(section.of("device")["cpus"])
    outcomes = section.parts / "tests.jsonl"
    outcomes.unlink(missing_ok=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-p", "bench.gpu.pytest_outcomes", *parallel, *(DRY if section.dry_run else SELECTED)]
    status, output = run_logged(command, section.seconds, environment | {OUTCOMES: str(outcomes.resolve())})
    found = summarize(outcomes) | {"status": status, "seconds": round(time.monotonic() - started, 1)}
    if status is None:
        found["stopped"] = f"the time of the section was over; {len(found['running'])} tests were running"
    if status not in (0, None) and not found["failures"]:
        found["output"] = tail(output)
    section.save(found)
    print(found["counts"], [failure["test"] for failure in found["failures"][:20]])
    if not section.dry_run and not found["counts"]["passed"]:
        return 1  # all skipped is no success
    return 1 if status is None else status
