"""`python -m bench.cpu`: rnnfused against its peers on the CPU, and against the machine's limits.

Prints a Markdown table and writes JSON under bench/results/. --quick runs a few sizes of each mode in under
three minutes. Peers that are not installed are left out, and named.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from bench import report
from bench.cases import CELLS, DTYPES, MODES, MODES_OF, Case, cases
from bench.harness import Worker, measure_case, measure_peak
from bench.limits import measure
from bench.peers import KNOWN, available, peers_of, weighed_against


def add_timing(parser: argparse.ArgumentParser) -> None:
    """The options that say how thoroughly a row is measured."""
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds a row")
    parser.add_argument("--seconds", type=float, default=0.05, help="at least so long a peer and round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that say what is measured, and how thoroughly."""
    add_rows(parser)
    add_timing(parser)


def add_rows(parser: argparse.ArgumentParser) -> None:
    """What `selected` reads."""
    parser.add_argument("--modes", nargs="+", choices=MODES, help="all that the dtype has, unless given")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--cells", nargs="+", default=tuple(CELLS), choices=tuple(CELLS))
    parser.add_argument("--match", nargs="+", default=[""], help="rows whose name contains one of these")
    parser.add_argument("--quick", action="store_true", help="a few sizes of each mode")


def selected(options: argparse.Namespace) -> list[Case]:
    known = MODES_OF[options.dtype]
    modes = tuple(mode for mode in options.modes or known if mode in known)
    rows = cases(modes, tuple(options.cells), options.quick, options.dtype)
    return [case for case in rows if any(part in case.name for part in options.match)]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__)
    add_selection(parser)
    parser.add_argument("--peers", nargs="+", choices=KNOWN, help="all that are installed, unless given")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="no memory column")
    parser.add_argument("--output", type=Path, help="default: bench/results/cpu.json, or cpu-DTYPE.json")
    options = parser.parse_args(arguments)
    options.peers = options.peers or available(options.dtype)
    suffix = "" if options.dtype == "float32" else f"-{options.dtype}"
    options.output = options.output or Path(f"bench/results/cpu{suffix}.json")
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    limits = measure(options.threads)
    print(
        f"limits on {options.threads} threads: fma {limits.fma / 1e9:.0f}, dots {limits.dots / 1e9:.0f}, "
        f"those of bytes {limits.byte_dots / 1e9:.0f} and "
        f"sgemm {limits.sgemm / 1e9:.0f} GFLOP/s, "
        f"reads {limits.l2 / 1e9:.0f} GB/s from L2 and {limits.l3 / 1e9:.0f} GB/s from L3, "
        f"barrier {limits.barrier * 1e6:.2f} us"
    )
    missing = sorted(set(peers_of(options.dtype)) - set(options.peers))
    print(f"peers: {', '.join(options.peers)}" + (f"; without {', '.join(missing)}" if missing else ""), "\n")
    rows = []
    with contextlib.ExitStack() as stack:

        def start(peer: str, tight_memory: bool = False) -> Worker:
            worker = Worker(peer, options.threads, tight_memory=tight_memory)
            stack.callback(worker.close)
            return worker

        workers = [start(peer) for peer in options.peers]
        scales = [
            start(peer, tight_memory=True)
            for peer in (weighed_against(options.dtype), "rnnfused")
            if options.memory
        ]
        try:
            for case in selected(options):
                rows.append(measure_case(case, workers, options.rounds, options.seconds))
                if case.trains and not case.timed_whole:
                    rows[-1].peaks = measure_peak(case, scales)
                print(report.markdown(rows[-1:], limits).splitlines()[-1], file=sys.stderr, flush=True)
        except RuntimeError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    limits = limits.best(measure(options.threads))
    print(report.markdown(rows, limits), "\n")
    print(report.summary(rows, limits))
    settings = {"rounds": options.rounds, "seconds": options.seconds, "threads": options.threads}
    report.save(options.output, rows, limits, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
