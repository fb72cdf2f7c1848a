"""The tests of the CUDA drivers, then the other test files that a build for a GPU may break."""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any

from bench.gpu.device import EXTENSION, emulated_extension
from bench.gpu.part import Section, run_logged, tail
from bench.gpu.pytest_outcomes import OUTCOMES, summarize

__all__ = ["run"]

FIRST = ["tests/test_gpu.py"]
# On the CPU, but with this machine's Python, torch and compiler.
THEN = [f"tests/test_{name}.py" for name in ("load", "functional", "modules", "autograd", "native_checks")]
THEN += [f"tests/test_{name}.py" for name in ("convert", "recompute", "threads", "sequence", "numerics")]
DRY = ["tests/test_gpu.py", "-k", "layers_in_every_dtype or words or aligned or wanted"]
WORKERS = 6  # more processes than that only wait for the GPU


def _parallel(cpus: int) -> list[str]:
    if cpus < 4 or importlib.util.find_spec("xdist") is None:
        print(f"tests: one process ({cpus} CPUs; pytest-xdist shares tests out where there are 4)")
        return []
    return ["-n", str(min(WORKERS, cpus // 2))]


def run(section: Section) -> int:
    end = time.monotonic() + section.seconds
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
    found: dict[str, Any] = {}
    worst = 0
    for name, selection in (
        {"gpu": DRY}.items() if section.dry_run else {"gpu": FIRST, "others": THEN}.items()
    ):
        outcomes = section.parts / f"tests-{name}.jsonl"
        outcomes.unlink(missing_ok=True)
        started = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
        command += ["-p", "bench.gpu.pytest_outcomes", *parallel, *selection]
        status, output = run_logged(
            command, end - time.monotonic(), environment | {OUTCOMES: str(outcomes.resolve())}
        )
        result = summarize(outcomes) | {"status": status, "seconds": round(time.monotonic() - started, 1)}
        if status is None:
            result["stopped"] = (
                f"the time of the section was over; {len(result['running'])} tests were running"
            )
        if status not in (0, None) and not result["failures"]:
            result["output"] = tail(output)
        if name == "gpu" and not section.dry_run and not result["counts"]["passed"]:
            status = status or 1  # all skipped is no success
        found[name] = result
        section.save(found)
        worst = worst or (1 if status is None else status)
        print(name, result["counts"], [failure["test"] for failure in result["failures"][:20]])
    return worst
