"""rnnfused against torch.nn on the GPU, row by row for as long as there is time."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from typing import Any

from bench.gpu.budget import Budget
from bench.gpu.cases import GpuCase, dry_cases, gpu_cases, key_cases
from bench.gpu.device import EXTENSION, emulated_extension
from bench.gpu.floor import floor
from bench.gpu.part import ROOT, Section

__all__ = ["Process", "judged", "run"]

ROW_SECONDS = 40.0  # more than the longest row takes: what takes longer hangs
FIRST_SECONDS = 60.0  # a process's first row brings the libraries' start with it
ROUND_SECONDS = 0.02
DEATHS = 5  # of processes, after which the device is given up


class Process:
    """One that measures rows, bench.gpu.rows. Raises RuntimeError where it dies or does not answer."""

    def __init__(self, device: str, cache_bytes: float, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "bench.gpu.rows", device, str(cache_bytes)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._asked = False

    def ask(self, wait: float, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        limit = min(wait, ROW_SECONDS if self._asked else FIRST_SECONDS)
        self._asked = True
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"its process had ended (exit status {self._process.wait()})") from None
        if not select.select([self._process.stdout], [], [], max(0.1, limit))[0]:
            raise RuntimeError(f"no answer in {limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"its process ended (exit status {self._process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def judged(found: dict[str, Any], row: GpuCase, limits: dict[str, Any]) -> dict[str, Any]:
    """With ratios torch / ours, microseconds a step, and the share of the floor that ours reaches."""
    least = floor(row, limits)
    found = found | {"floor": least}
    for way in ("eager", "graph"):
        medians = {peer: of["median"] for peer, of in found.get(way, {}).items()}
        if not medians:
            continue
        verdict: dict[str, Any] = {"us_per_step": {p: 1e6 * s / row.case.steps for p, s in medians.items()}}
        if {"torch", "rnnfused"} <= medians.keys():
            verdict["ratio"] = medians["torch"] / medians["rnnfused"]
            verdict["ratios"] = {p: s / medians["rnnfused"] for p, s in medians.items() if p != "rnnfused"}
        if "rnnfused" in medians and least["seconds"]:
            verdict["share_of_floor"] = least["seconds"] / medians["rnnfused"]
            verdict["share_with_exchange"] = max(least["terms"].values()) / medians["rnnfused"]
        found[f"{way}_result"] = verdict
    return found


def _line(found: dict[str, Any]) -> str:
    words = [found["name"]]
    for way in ("eager", "graph"):
        result = found.get(f"{way}_result")
        if result:
            times = ", ".join(f"{peer} {us:.2f}" for peer, us in result["us_per_step"].items())
            words.append(
                f"{way} us/step {times}" + (f" ratio {result['ratio']:.2f}" if "ratio" in result else "")
            )
    return "; ".join([*words, *([f"FAILED {found['failed']}"] if "failed" in found else [])])


def run(section: Section) -> int:
    of_device, limits = section.of("device"), section.of("limits").get("limits", {})
    if not limits:
        print("bench: the limits were not measured, so there are no floors")
    environment = dict(os.environ)
    if section.dry_run:
        extension = emulated_extension()
        if extension is None:
            print("bench: the extension whose GPU is emulated is not built (make emulated)", file=sys.stderr)
            return 1
        environment[EXTENSION] = str(extension)
    rows = dry_cases() if section.dry_run else gpu_cases() if section.rows == "all" else key_cases()
    budget = Budget(section.seconds, len(rows))
    device = "cpu" if section.dry_run else "cuda"
    measured: list[dict[str, Any]] = []
    process: Process | None = None
    deaths = 0

    def save() -> None:
        reached = {row["name"] for row in measured}
        section.save({"rows": measured, "not_reached": [row.name for row in rows if row.name not in reached]})

    save()
    for row in rows:
        if not budget.allows_another() or deaths == DEATHS:
            break
        budget.row_starts()
        process = process or Process(device, of_device["l2_bytes"], environment)
        rounds = 1 if section.dry_run else budget.rounds()
        try:
            seconds = 0.0 if section.dry_run else ROUND_SECONDS
            found = process.ask(budget.left(), row=row.as_dict(), rounds=rounds, seconds=seconds)
        except RuntimeError as error:
            found = row.as_dict() | {"name": row.name, "failed": str(error)}
            process.close()
            process, deaths = None, deaths + 1
        measured.append(judged(found, row, limits))
        budget.row_ended()
        save()
        # The times of a dry run say nothing.
        words = f"{row.name}: {found.get('failed', 'ok')}" if section.dry_run else _line(measured[-1])
        print(words, flush=True)
    if process:
        process.close()
    if len(measured) < len(rows):
        print(f"not reached: {len(rows) - len(measured)} of {len(rows)} rows")
    return 1 if deaths or any("failed" in row for row in measured) or not measured else 0
