"""Rows as a Markdown table and as JSON, and their summary."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from pathlib import Path
from typing import Any

from bench.harness import Row
from bench.limits import Limits

__all__ = ["markdown", "save", "summary"]


def _unit(row: Row) -> float:
    return 1e6 / row.case.steps


def markdown(rows: list[Row], limits: Limits) -> str:
    """One line a row: us a step of rnnfused and of the best peer, the ratio, the share of the limit."""
    lines = [
        "| mode | cell | T | B | H | rnnfused us/step | best peer | us/step | ratio | of the limit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        c, ours = row.case, row.medians["rnnfused"]
        peer, best = row.best_peer()
        lines.append(
            f"| {c.mode} | {c.cell} | {c.steps} | {c.batch} | {c.hidden} | {ours * _unit(row):.1f} "
            f"| {peer} | {best * _unit(row):.1f} | {row.ratio():.2f} | {limits.seconds(c) / ours:.0%} |"
        )
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    """For each mode the geometric mean of the ratios and the worst row."""
    lines = ["| mode | rows | geometric mean | worst | its row |", "|---|---|---|---|---|"]
    for mode in dict.fromkeys(row.case.mode for row in rows):
        of_mode = [row for row in rows if row.case.mode == mode]
        mean = math.exp(sum(math.log(row.ratio()) for row in of_mode) / len(of_mode))
        worst = min(of_mode, key=Row.ratio)
        lines.append(f"| {mode} | {len(of_mode)} | {mean:.2f} | {worst.ratio():.2f} | {worst.case.name} |")
    return "\n".join(lines)


def _commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def save(path: Path, rows: list[Row], limits: Limits, settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "commit": _commit(),
        "processor": _processor(),
        "settings": settings,
        "limits": limits.as_dict(),
        "rows": [
            {
                "case": row.case.as_dict(),
                "seconds": row.medians,
                "quartiles": row.quartiles,
                "errors": row.errors,
                "ratio": row.ratio(),
                "share_of_limit": limits.seconds(row.case) / row.medians["rnnfused"],
            }
            for row in rows
        ],
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
