"""Answers as a table in Markdown, and the question whether rnnfused covers what torch.nn does."""

from __future__ import annotations

from dataclasses import dataclass

from bench.features.layers import COLUMNS
from bench.features.probes import Probe
from bench.features.runner import Answers

__all__ = ["Line", "covers", "errors", "lines", "markdown", "parse"]

COMMAND = "python -m bench.features"
TITLE = "torch.nn and rnnfused, feature by feature"
ONLY = "only "
REFUSED = "refused, by design"


@dataclass(frozen=True)
class Line:
    """One row of the table, as it is printed."""

    theme: str
    feature: str
    what: str
    torch: str
    fused: str


def lines(probes: list[Probe], answers: Answers) -> list[Line]:
    return [
        Line(found.theme, found.feature, found.what, *(_cell(found, column, answers) for column in COLUMNS))
        for found in probes
    ]


def _cell(found: Probe, column: str, answers: Answers) -> str:
    """yes, no, or the variants for which it is yes."""
    got = {variant: answers[column, found.name, variant].status for variant in found.variants}
    if len(set(got.values())) == 1:
        status = next(iter(got.values()))
        return f"{status}: {found.reason}" if status == REFUSED else status
    able = [variant for variant, status in got.items() if status == "yes"]
    return ONLY + ", ".join(able) if able else "no"


def errors(found: Probe, column: str, answers: Answers) -> dict[str, list[str]]:
    """The variants that each exception, by its first line, stopped."""
    by_error: dict[str, list[str]] = {}
    for variant in found.variants:
        if error := answers[column, found.name, variant].error:
            by_error.setdefault(error, []).append(variant)
    return by_error


def covers(line: Line) -> bool:
    """Whether rnnfused does all that torch.nn does, or refuses it by design."""
    if line.fused == "yes" or line.fused.startswith(REFUSED + ": "):
        return True
    if line.torch.startswith(ONLY) and line.fused.startswith(ONLY):
        return _variants(line.torch) <= _variants(line.fused)
    return line.torch != "yes" and not line.torch.startswith(ONLY)


def _variants(cell: str) -> set[str]:
    return set(cell.removeprefix(ONLY).split(", "))


def markdown(table: list[Line], torch_version: str, vectors: str) -> str:
    """vectors: the processor's, which decide what torch.nn runs in 16 bits."""
    rows = [("theme", "feature", "what the probe does", *COLUMNS)]
    rows += [(line.theme, line.feature, line.what, line.torch, line.fused) for line in table]
    formatted = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    formatted.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(
        [
            f"# {TITLE}",
            "",
            f"torch {torch_version} on a CPU with {vectors}. Each row is a probe, run once with torch.nn's",
            "classes and once with rnnfused's: it uses the layer as a program would and checks results",
            "against torch.nn in eager mode. `no`: it raised, gave other numbers, crashed or did not end.",
            "`only ...`: the layers for which it works. The probes are in bench/features/.",
            "",
            "```sh",
            f"{COMMAND}    # printed this; --verbose says why a row is no",
            "```",
            "",
            *formatted,
            "",
        ]
    )


def parse(text: str) -> list[Line]:
    """The rows of what `markdown` wrote."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [row.replace("\\|", "\0").strip("| ").split(" | ") for row in rows[1:]]
    return [Line(*(cell.replace("\0", "|") for cell in row)) for row in cells]
