"""`python -m bench.recompute`: what recompute=True costs in time and saves in memory, row by row.

The peak is that of a whole call above the parameters, as in bench.cpu.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from bench.cases import CELLS, Case, cases
from bench.cpu import add_selection
from bench.harness import Worker, measure_case, measure_peak
from bench.report import geometric_mean, per_step

NAMES = ("rnnfused", "recompute")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.recompute", description=__doc__)
    add_selection(parser)
    parser.set_defaults(modes=("training",), cells=tuple(cell for cell in CELLS if cell != "rnn"))
    return parser.parse_args(arguments)


def line(case: Case, times: dict[str, float], peaks: dict[str, int]) -> str:
    usual, lean = (times[name] for name in NAMES)
    cells = [case.name, per_step(case, usual), per_step(case, lean), f"{lean / usual:.2f}"]
    if peaks:
        cells += [f"{peaks[name] / 2**20:.1f}" for name in NAMES]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    options = parse(sys.argv[1:])
    ratios = []
    with contextlib.ExitStack() as stack:
        clocks: list[Worker] = []
        scales: list[Worker] = []
        for workers, tight in ((clocks, False), (scales, True)):
            for name in NAMES:
                workers.append(Worker(name, options.threads, tight_memory=tight))
                stack.callback(workers[-1].close)
        print("| row | us/step | recompute | ratio | peak MiB | recompute |\n|---|---|---|---|---|---|")
        for case in cases(tuple(options.modes), tuple(options.cells), options.quick):
            row = measure_case(case, clocks, options.rounds, options.seconds)
            ratios.append(row.medians["recompute"] / row.medians["rnnfused"])
            print(line(case, row.medians, measure_peak(case, scales)), flush=True)
    print(f"\ngeometric mean {geometric_mean(ratios):.2f}, worst row {max(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
