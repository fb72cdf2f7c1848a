"""`python -m bench.gpu SECTION`: one section of bench/gpu_suite.sh, which runs them all.

Each leaves a part, PARTS/SECTION.json; `report` puts the parts together under OUT, and for a device under
bench/results. The exit status says whether all of the section went well.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path

from bench.gpu.cases import ROWS
from bench.gpu.part import Section

# Loaded one at a time: most need torch, and the report must not.
MODULES = {
    "device": "device",
    "build": "build",
    "smoke": "smoke",
    "limits": "limits",
    "steps": "steps",
    "bench": "bench",
    "tests": "tests",
    "sanitizers": "sanitize",
}

__all__ = ["MODULES", "main", "parse"]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("section", choices=[*MODULES, "report"])
    parser.add_argument("--parts", type=Path, required=True, help="folder of what the sections found")
    parser.add_argument("--out", type=Path, help="folder of the report's JSON")
    parser.add_argument("--seconds", type=float, default=120.0, help="that the section may take")
    parser.add_argument("--rows", choices=ROWS, default=ROWS[0], help="of the benchmark")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU")
    parser.add_argument("--quiet", action="store_true", help="a report that only writes")
    options = parser.parse_args(arguments)
    if options.section == "report" and options.out is None:
        parser.error("report: --out is needed")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.section == "report":
        from bench.gpu import report

        return report.run(options.parts, options.out, options.dry_run, options.quiet)
    # Ended from outside, a section ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    section = Section(options.section, options.parts, options.seconds, options.dry_run, options.rows)
    run = importlib.import_module(f"bench.gpu.{MODULES[options.section]}").run
    return int(run(section))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
