"""`python -m bench.profile`: where rnnfused's time goes, row by row, by sampling with Linux perf.

Prints a Markdown table: of the samples that fell on the case's threads, the share of the products (tiles), of
gates and states (epilogues), of packing, of the weight gradients' operands, of waiting for the other thread,
and of everything else, which is Python, torch and the kernel.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.cases import Case
from bench.cpu import add_selection, selected
from bench.harness import Worker, measure_case

# The first that matches a symbol's name counts.
KINDS = (
    ("products", re.compile(r"\b(outer_)?tile<|\bdots<")),
    ("waiting", re.compile(r"Barrier::wait|Progress::wait|libgomp")),
    ("packing", re.compile(r"\bpack")),
    ("gradients beside products", re.compile(r"ParameterGradients")),
    ("gates and states", re.compile(r"rnnfused::")),
)
OTHER = "call and rest"


def kind_of(symbol: str) -> str:
    return next((name for name, pattern in KINDS if pattern.search(symbol)), OTHER)


def shares(report: str) -> dict[str, float]:
    """From `perf report`'s lines (percent, shared object, symbol) to a share of each kind."""
    found = dict.fromkeys([*(name for name, _ in KINDS), OTHER], 0.0)
    for line in report.splitlines():
        match = re.match(r"\s*([\d.]+)%\s+(.*)", line)
        if match:
            found[kind_of(match[2])] += float(match[1])
    return found


def profile(case: Case, worker: Worker, seconds: float) -> dict[str, float]:
    """Raises RuntimeError where perf is missing or refused."""
    measure_case(case, [worker], rounds=1, seconds=seconds / 10)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        events = ["-q", "-e", "cpu-clock", "-F", "4000", "-o", data, "-p", str(worker.pid)]
        record = subprocess.Popen(["perf", "record", *events, "--", "sleep", str(seconds)])
        worker.ask(time=seconds + 1)
        if record.wait():
            raise RuntimeError(f"perf record ended with status {record.returncode}")
        columns = ["-q", "--no-children", "--sort", "dso,symbol", "-i", data]
        report = subprocess.run(["perf", "report", *columns], check=True, capture_output=True, text=True)
    return shares(report.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    add_selection(parser)
    options = parser.parse_args()
    if shutil.which("perf") is None:
        print("bench: Linux perf is needed to take a profile", file=sys.stderr)
        return 1
    names = [*(name for name, _ in KINDS), OTHER]
    print("| row | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for case in selected(options):
        worker = Worker("rnnfused", options.threads)
        try:
            found = profile(case, worker, max(2.0, options.seconds))
        finally:
            worker.close()
        total = sum(found.values()) or 1.0
        print(f"| {case.name} | " + " | ".join(f"{found[name] / total:.0%}" for name in names) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
