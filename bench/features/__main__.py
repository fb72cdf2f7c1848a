"""`python -m bench.features`: runs every probe in both columns, prints the table and writes docs/features.md.

Takes some minutes on two cores. Ends with status 1 if torch.nn does what rnnfused does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from bench.features.layers import COLUMNS
from bench.features.probes import THEMES, load
from bench.features.runner import ROOT, run
from bench.features.table import covers, errors, lines, markdown


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.features", description=__doc__)
    parser.add_argument("--themes", nargs="+", default=THEMES, choices=THEMES)
    parser.add_argument(
        "--match", nargs="+", default=[""], help="probes whose name or feature contains one of these"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--verbose", action="store_true", help="the first line of every exception")
    parser.add_argument(
        "--output", type=Path, help="default: docs/features.md of a full run, nothing of a part"
    )
    options = parser.parse_args()

    every = load(THEMES)
    probes = [
        found
        for found in every
        if found.theme in options.themes
        and any(part in found.name or part in found.feature for part in options.match)
    ]
    with tempfile.TemporaryDirectory() as cache:
        answers = run(probes, options.jobs, Path(cache))
    table = lines(probes, answers)
    text = markdown(table, version("torch"), torch.backends.cpu.get_cpu_capability())
    print(text)
    if options.verbose:
        for found in probes:
            for column in COLUMNS:
                for error, variants in errors(found, column, answers).items():
                    print(" ".join([column, found.name, *variants]) + f": {error}")
    output = options.output or (ROOT / "docs" / "features.md" if probes == every else None)
    if output:
        output.write_text(text, encoding="utf-8")
    behind = [line for line in table if not covers(line)]
    for line in behind:
        print(f"torch.nn only: {line.feature} (torch.nn {line.torch}, rnnfused {line.fused})")
    return 1 if behind else 0


if __name__ == "__main__":
    sys.exit(main())
