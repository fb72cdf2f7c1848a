"""compute-sanitizer's tools over bench.gpu.small: accesses, races, barriers, reads of what nobody wrote."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.gpu.device import EXTENSION, emulated_extension
from bench.gpu.part import Section, run_logged, tail

__all__ = ["OF_SHARED_MEMORY", "TOOLS", "command", "parse", "program", "run", "verdict"]

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
OF_SHARED_MEMORY = ("racecheck", "synccheck")  # these watch nothing else
FOUND = 9  # the exit status where a tool found errors
_OURS = "rnnfused"  # of the kernels' names; the others are torch's and cuBLAS's
_SUMMARY = re.compile(r"= (?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)")
_CASES = re.compile(r"^cases: (\d+) of (\d+)", re.MULTILINE)
_STARTED = re.compile(r"^case (\d+): ", re.MULTILINE)


def command(
    tool: str, program: list[str], sanitizer: str = "compute-sanitizer", filters: bool = True
) -> list[str]:
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "500"]
    if not filters:
        return [sanitizer, *options, *program]
    if tool == "memcheck":
        # torch and cuBLAS ask the driver for what it may not have; our own launches check what they return.
        options += ["--report-api-errors", "no"]
    if tool != "initcheck":
        # initcheck must see what torch's kernels write, or their results would count as unwritten.
        options += ["--kernel-regex", f"kns={_OURS}"]
    return [sanitizer, *options, *program]


def program(tool: str, seconds: float) -> list[str]:
    only = ["shared"] if tool in OF_SHARED_MEMORY else []
    return [sys.executable, "-m", "bench.gpu.small", "cuda", f"{seconds:.0f}", *only]


def _names_our_kernel(report: str) -> bool:
    """Not only on the host's side: cuBLAS's kernels have our driver among their callers."""
    device_side = [line for line in report.splitlines() if "Host Frame" not in line and ".so" not in line]
    return any(line.startswith("===") and f"{_OURS}::" in line for line in device_side)


def parse(output: str) -> dict[str, Any]:
    """Errors that the tool counted, how many reports name a kernel of ours, and the cases that were run."""
    summaries = [int(n) for n in _SUMMARY.findall(output)]
    reports = re.split(r"\n========= \n|\n=========\s*\n", output)
    ours = [report for report in reports if _names_our_kernel(report)]
    done = _CASES.search(output)
    started = _STARTED.findall(output)
    return {
        "errors": sum(summaries) if summaries else None,
        "reports_of_our_kernels": len(ours),
        "first_report": tail(ours[0], 30) if ours else None,
        "cases": int(done[1]) if done else len(started),
        "cases_in_all": int(done[2]) if done else None,
    }


def find_sanitizer() -> str | None:
    places = [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def verdict(tool: str, found: dict[str, Any], output: str, seconds: float) -> str | None:
    """What is wrong, in words."""
    errors, ours, status = found["errors"], found["reports_of_our_kernels"], found["status"]
    if status is None:
        return f"stopped after {seconds:.0f} s, {found['cases']} cases done"
    if errors is None:
        return f"no summary, exit status {status}: {tail(output, 4)}"
    if tool == "initcheck" and errors and not ours:
        # It watches torch's and cuBLAS's kernels too, which may read padding.
        return None if found["cases_in_all"] else f"exit status {status}: {tail(output, 4)}"
    if errors or status == FOUND:
        return f"{errors} errors, {ours} reports name our kernels"
    return f"exit status {status}: {tail(output, 4)}" if status != 0 else None


def _watch(tool: str, sanitizer: str, seconds: float, log: Path) -> dict[str, Any]:
    end = time.monotonic() + seconds
    # Each tensor then is an allocation of its own, and what lies beyond its end is nobody's.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for filters in (True, False):
        left = end - time.monotonic()
        line = command(tool, program(tool, 0.6 * left), sanitizer, filters)
        status, output = run_logged(line, left, environment)
        log.write_text(output, encoding="utf-8")
        found = parse(output) | {"status": status, "filters": filters}
        if status is None or found["errors"] is not None or found["cases"] or not filters:
            break
        print(f"{tool}: nothing was run; once more, without the options that choose kernels", flush=True)
    if (failed := verdict(tool, found, output, seconds)) is not None:
        found["failed"] = failed
    return found


def _dry_run(section: Section) -> int:
    commands = {tool: shlex.join(command(tool, program(tool, 0.6 * section.seconds))) for tool in TOOLS}
    print(*(f"would run: {line}" for line in commands.values()), sep="\n")
    extension = emulated_extension()
    if extension is None:
        print("sanitizers: the extension whose GPU is emulated is not built", file=sys.stderr)
        return 1
    small = [sys.executable, "-m", "bench.gpu.small", "cpu", "30"]
    status, output = run_logged(small, section.seconds, {EXTENSION: str(extension)})
    section.save({"commands": commands, "emulated": parse(output) | {"status": status}})
    return 0 if status == 0 else 1


def run(section: Section) -> int:
    if section.dry_run:
        return _dry_run(section)
    sanitizer = find_sanitizer()
    if sanitizer is None:
        section.save({"failed": "compute-sanitizer was not found"})
        print("sanitizers: compute-sanitizer was not found", file=sys.stderr)
        return 1
    # At the same time: a tool's work is the host's for the most part.
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        watched = {
            tool: pool.submit(_watch, tool, sanitizer, section.seconds, section.parts / f"{tool}.log")
            for tool in TOOLS
        }
        found = {tool: result.result() for tool, result in watched.items()}
    section.save(found)
    for tool, result in found.items():
        words = result.get("failed", "nothing wrong")
        print(f"{tool}: {words}; {result['errors']} errors, {result['cases']} cases")
    return 1 if any("failed" in result for result in found.values()) else 0
