"""Rows as a Markdown table and as JSON, and their summary."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.cases import Case
from bench.harness import Row
from bench.limits import Limits
from bench.peers import KNOWN, peers_of, weighed_against

__all__ = [
    "at_limit",
    "commit",
    "geometric_mean",
    "head",
    "line",
    "load",
    "markdown",
    "per_step",
    "processor",
    "save",
    "summary",
]


# torch.nn's layers in a case's dtype, by one way or another.
_WAYS_OF_TORCH = ("torch", "autocast", "torch.ao")


def per_step(case: Case, seconds: float) -> str:
    """Microseconds a step, or of a call where that is timed whole, to three digits."""
    us = 1e6 * seconds / (1 if case.timed_whole else case.steps)
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:.0f}"


def markdown(rows: list[Row], limits: Limits) -> str:
    """The rows' table, and after it those of calls and of models' layers."""
    others = [row for row in rows if not row.case.timed_whole]
    tables = [_steps(others, limits)] if others else []
    for mode in dict.fromkeys(row.case.mode for row in rows if row.case.timed_whole):
        tables.append(_calls([row for row in rows if row.case.mode == mode], limits))
    return "\n\n".join(tables)


def _calls(rows: list[Row], limits: Limits) -> str:
    """One line a row: its threads or whose layer it is, us a call of every peer, the ratio to torch.nn; of
    models the share of the limit.
    """
    peers, of_models = _peers(rows), rows[0].case.mode == "models"
    columns = ["model", "call"] if of_models else ["call", "threads"]
    columns += [*(f"{peer} us" for peer in peers), "ratio"]
    lines = head(columns + ["of the limit"] * of_models)
    for row in rows:
        case = row.case
        cells = [case.model, case.called] if of_models else [case.called, str(case.threads)]
        cells += [per_step(case, row.medians[peer]) for peer in peers]
        cells.append(f"{row.ratio('torch'):.2f}")
        lines.append(line(cells + [_share(row, limits)] * of_models))
    return "\n".join(lines)


def _share(row: Row, limits: Limits) -> str:
    return f"{limits.seconds(row.case) / row.medians['rnnfused']:.0%}"


def _peers(rows: list[Row]) -> list[str]:
    return [peer for peer in peers_of(rows[0].case.dtype) if any(peer in row.medians for row in rows)]


def line(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def head(columns: list[str]) -> list[str]:
    """Its first two."""
    return [line(columns), "|" + "---|" * len(columns)]


def _steps(rows: list[Row], limits: Limits) -> str:
    """One line a row: us a step of every peer, the ratio to the best, what that ratio were at the limit, the
    share of the limit, the memory.
    """
    peers = _peers(rows)
    columns = ["mode", "cell", "T", "B", "H", *peers, "best peer", "ratio", "at the limit"]
    columns += ["of the limit", "memory"]
    lines = head(columns)
    for row in rows:
        c = row.case
        cells = [c.mode, c.cell, str(c.steps), str(c.batch), str(c.hidden)]
        cells += [per_step(c, row.medians[peer]) if peer in row.medians else "" for peer in peers]
        if row.best_peer()[0]:
            cells += [row.best_peer()[0], f"{row.ratio():.2f}", f"{at_limit(row, limits):.2f}"]
        else:
            cells += [""] * 3
        cells += [_share(row, limits), _memory(row)]
        lines.append(line(cells))
    return "\n".join(lines)


def at_limit(row: Row, limits: Limits) -> float:
    """What the ratio to the best peer were if rnnfused took no more than the limit."""
    return row.best_peer()[1] / limits.seconds(row.case)


def _memory(row: Row) -> str:
    """The peak of training above the parameters, as a share of torch.nn's, or in fewer bits of float32's."""
    other = weighed_against(row.case.dtype)
    if other not in row.peaks or "rnnfused" not in row.peaks:
        return ""
    return f"{row.peaks['rnnfused'] / row.peaks[other]:.0%}"


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(rows: list[Row], limits: Limits) -> str:
    """How many times faster than torch.nn, and than the best peer of each row: the geometric mean of each
    mode and its lowest row; and what the mean over the best peers were if every row ran at its limit. Calls
    have none: what bounds them is the way to the kernels. In fewer bits rnnfused in float32 comes first,
    sequences of one row are a mode of their own, and torch.nn is the faster of its ways to have them; rows
    that no peer has count where rnnfused is held against itself.
    """
    narrow = rows[0].case.dtype != "float32"
    columns = ["mode", "rows", *(["float32", "lowest"] if narrow else []), "torch.nn", "lowest"]
    lines = head([*columns, "best peer", "lowest", "its row", "at the limit"])

    def name(case: Case) -> str:
        return f"{case.mode}, B = 1" if narrow and case.batch == 1 else case.mode

    for mode in dict.fromkeys(name(row.case) for row in rows):
        of_mode = [row for row in rows if name(row.case) == mode]
        cells = [mode, str(len(of_mode))]
        with_peers = [row for row in of_mode if row.best_peer()[0]]
        torchs = [
            min(row.ratio(way) for way in _WAYS_OF_TORCH if way in row.medians)
            for row in with_peers
            if any(way in row.medians for way in _WAYS_OF_TORCH)
        ]
        own = [[row.ratio("float32") for row in of_mode]] if narrow else []
        for ratios in (*own, torchs, [row.ratio() for row in with_peers]):
            cells += [f"{geometric_mean(ratios):.2f}", f"{min(ratios):.2f}"] if ratios else ["", ""]
        worst = min(with_peers, key=Row.ratio).case.name if with_peers else ""
        at_best = [at_limit(row, limits) for row in with_peers if mode != "calls"]
        lines.append(line([*cells, worst, f"{geometric_mean(at_best):.2f}" if at_best else ""]))
    return "\n".join(lines)


def commit() -> str:
    """The one that is measured, `-dirty` where files differ from it."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "unknown"


def processor() -> str:
    for entry in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if entry.startswith("model name"):
            return entry.split(":", 1)[1].strip()
    return platform.processor()


def _versions() -> dict[str, str]:
    packages = {peer.package for peer in KNOWN.values()} - {"rnnfused"}
    return {name: version(name) for name in sorted(packages) if find_spec(name)}


def save(path: Path, rows: list[Row], limits: Limits, settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "commit": commit(),
        "processor": processor(),
        "versions": _versions(),
        "settings": settings,
        "limits": limits.as_dict(),
        "rows": [
            {
                "case": row.case.as_dict(),
                "seconds": row.medians,
                "quartiles": row.quartiles,
                "errors": row.errors,
                "peak_bytes": row.peaks,
                "ratio": row.ratio(),
                "share_of_limit": None
                if row.case.mode == "calls"
                else limits.seconds(row.case) / row.medians["rnnfused"],
            }
            for row in rows
        ],
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    tables = [summary(rows, limits), markdown(rows, limits)]
    path.with_suffix(".md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[list[Row], Limits]:
    """What `save` wrote."""
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        Row(
            Case(**row["case"]),
            row["seconds"],
            {peer: tuple(ends) for peer, ends in row["quartiles"].items()},
            row["errors"],
            row["peak_bytes"],
        )
        for row in record["rows"]
    ]
    return rows, Limits(**record["limits"])
