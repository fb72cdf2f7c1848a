"""`python -m bench.applications [NAME...]`: the examples with --quick, one after the other, as a table.

Each trains the same model with rnnfused and with torch.nn, from the same weights on the same batches, which
take turns. quality: on held-out data, mean ± standard deviation over the seeds. time: of the training steps
without evaluation, mean over the seeds, in seconds; ratio: the median, over all steps, of torch.nn's time by
rnnfused's for the same batch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.harness import ROOT

# By the name of the program in examples/, and of docs/applications.md's section.
APPLICATIONS = (
    "sentiment",
    "speech",
    "handwriting",
    "gestures",
    "tagging",
    "forecast",
    "transliterate",
)

# A row for each of these options.
VARIANTS = {"forecast": (["--series=co2"], ["--series=sunspots"])}

HEADER = (
    "| application | data | model | quality | rnnfused | torch.nn | time, s | torch.nn | ratio | command |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def commands(names: Iterable[str]) -> list[list[str]]:
    """What to run, without the interpreter: a program and its options."""
    return [
        [f"examples/{name}.py", *variant, "--quick"]
        for name in names
        for variant in VARIANTS.get(name, ([],))
    ]


def line(results: dict[str, Any], command: Sequence[str]) -> str:
    """A row of the table, of what the command of an example has written to results.json."""
    measure, runs = results["measure"], results["runs"]
    quality, seconds = {}, {}
    for backend in ("rnnfused", "torch.nn"):
        values = [run["quality"] for run in runs[backend]]
        deviation = stdev(values) if len(values) > 1 else 0.0
        quality[backend] = f"{fmean(values):.{measure['digits']}f} ± {deviation:.{measure['digits']}f}"
        seconds[backend] = f"{fmean(run['seconds'] for run in runs[backend]):.1f}"
    cells = [
        results["example"],
        results["data"]["description"],
        f"{results['model']['description']}; {results['model']['parameters']:,} parameters",
        f"{measure['name']} {measure['unit']}".strip(),
        *quality.values(),
        *seconds.values(),
        f"{results['ratio']:.2f}",
        f"`python {' '.join(command)}`",
    ]
    return f"| {' | '.join(cells)} |"


def run(command: Sequence[str], threads: int | None, output: Path) -> dict[str, Any] | None:
    """The results of an example, or None when it has failed; it has then said why."""
    whole = [sys.executable, *command, f"--output={output}"]
    if threads:
        whole.append(f"--threads={threads}")
    if subprocess.run(whole, cwd=ROOT, stdout=sys.stderr, check=False).returncode:
        return None
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.applications", description="The examples, one after the other."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(APPLICATIONS)} (all)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--output", type=Path, help="keep what the examples write in this folder")
    options = parser.parse_args()
    if unknown := set(options.names) - set(APPLICATIONS):
        parser.error(f"no such application: {', '.join(sorted(unknown))}")
    chosen = commands(options.names or APPLICATIONS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.output or Path(temporary)).resolve()
        found = [
            run(command, options.threads, folder / f"{number} {Path(command[0]).stem}")
            for number, command in enumerate(chosen, 1)
        ]
    rows = [line(results, command) for results, command in zip(found, chosen, strict=True) if results]
    print(*HEADER, *rows, sep="\n")
    return 0 if len(rows) == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
