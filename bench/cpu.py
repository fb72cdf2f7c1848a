"""`python -m bench.cpu`: rnnfused against its peers on the CPU, and against the machine's limits.

Prints a Markdown table and writes JSON under bench/results/. --quick runs a few sizes of each mode.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bench import report
from bench.cases import CELLS, MODES, cases
from bench.harness import Worker, measure_case
from bench.limits import measure
from bench.peers import PEERS


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--cells", nargs="+", default=tuple(CELLS), choices=tuple(CELLS))
    parser.add_argument("--quick", action="store_true", help="a few sizes of each mode")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds a row")
    parser.add_argument("--seconds", type=float, default=0.05, help="at least so long a peer and round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=Path("bench/results/cpu.json"))
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    limits = measure(options.threads)
    print(
        f"limits on {options.threads} threads: sgemm {limits.sgemm / 1e9:.0f} GFLOP/s, "
        f"matrix-vector reads {limits.near / 1e9:.0f} GB/s near, {limits.far / 1e9:.0f} GB/s far\n"
    )
    workers = [Worker(peer, options.threads) for peer in PEERS]
    rows = []
    try:
        for case in cases(tuple(options.modes), tuple(options.cells), options.quick):
            rows.append(measure_case(case, workers, options.rounds, options.seconds))
            print(report.markdown(rows[-1:], limits).splitlines()[-1], file=sys.stderr, flush=True)
    except RuntimeError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        for worker in workers:
            worker.close()
    print(report.markdown(rows, limits), "\n")
    print(report.summary(rows))
    settings = {"rounds": options.rounds, "seconds": options.seconds, "threads": options.threads}
    report.save(options.output, rows, limits, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
