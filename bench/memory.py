"""`python -m bench.memory`: the peak memory of a training step as a share of float32's, row by row.

The peak is that of a whole call above the parameters, as in bench.cpu. No time is taken: nothing need be
quiet.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from bench.cpu import add_rows, selected
from bench.harness import Worker, measure_peak
from bench.report import geometric_mean

SMALL = 2 << 20  # bytes, below which a thread's stack and the like weigh as much as the case


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    add_rows(parser)
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(modes=("training",), dtype="bfloat16")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    shares: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        workers = []
        for peer in ("float32", "rnnfused"):
            workers.append(Worker(peer, options.threads, tight_memory=True))
            stack.callback(workers[-1].close)
        print("| mode | cell | T | B | H | float32 MiB | MiB | share |\n|---|---|---|---|---|---|---|---|")
        for case in selected(options):
            peaks = measure_peak(case, workers)
            share = peaks["rnnfused"] / peaks["float32"]
            small = peaks["float32"] < SMALL
            group = "small" if small else "one sequence" if case.batch == 1 else "several"
            shares.setdefault(group, []).append(share)
            sizes = [case.mode, case.cell, case.steps, case.batch, case.hidden]
            mib = [f"{peaks[name] / 2**20:.2f}" for name in ("float32", "rnnfused")]
            print("| " + " | ".join(map(str, [*sizes, *mib])) + f" | {share:.2f} |", flush=True)
    everything = [share for found in shares.values() for share in found]
    for rows, found in [*shares.items(), ("all", everything)]:
        print(
            f"\n{rows} ({len(found)}): geometric mean {geometric_mean(found):.2f}, highest {max(found):.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
