"""`python -m bench.load`: how layers fare beside other processes that are busy, as data loaders are.

Each row's layer runs on all processors, alone and then beside one and two processes that never rest; rnnfused
and torch.nn take turns, each in a process of its own. Printed are the mean times as multiples of the time
alone. On two processors a fair share would be 1.5 and 2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import exact
from bench.cases import Case
from bench.harness import Worker

PEERS = ("rnnfused", "torch")
ROWS = [
    Case("inference", "lstm", 128, 1, 128),
    Case("inference", "gru", 128, 1, 512),
    Case("inference", "lstm", 128, 8, 256),
    Case("training", "lstm", 128, 32, 256),
    Case("training", "lstm", 64, 256, 128),
    Case("training", "gru", 128, 8, 256),
]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--busy", type=int, nargs="*", default=(1, 2), help="numbers of busy processes")
    parser.add_argument("--peers", nargs="*", default=PEERS)
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(ROWS)), help="numbers of rows")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each peer in each round")
    parser.add_argument("--output", type=Path, help="a JSON file for the times")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> int:
    options = parse(sys.argv[1:])
    workers = [Worker(peer, options.threads) for peer in options.peers]
    found = []
    columns = [f"{count} busy: {peer}" for count in options.busy for peer in options.peers]
    print(f"{options.threads} threads; means, as multiples of the time alone\n")
    print("| | " + " | ".join([*(f"alone, us: {peer}" for peer in options.peers), *columns]) + " |")
    print("|---" * (1 + len(options.peers) + len(columns)) + "|")
    for case in (ROWS[index] for index in options.rows):
        with tempfile.TemporaryDirectory() as folder:
            exact.write(case, Path(folder))
            for worker in workers:
                worker.ask(prepare=case.as_dict(), exact=folder)
        times: dict[str, list[float]] = {}
        for count in (0, *options.busy):
            with busy_processes(count):
                for _ in range(options.rounds):
                    for worker in workers:
                        seconds = worker.ask(time=options.seconds)["seconds"]
                        times.setdefault(f"{count} {worker.name}", []).extend(seconds)
        means = {name: statistics.fmean(seconds) for name, seconds in times.items()}
        found.append({"case": case.name, "threads": options.threads, "mean_seconds": means})
        alone = [f"{1e6 * means[f'0 {peer}']:.0f}" for peer in options.peers]
        multiples = [
            f"{means[f'{count} {peer}'] / means[f'0 {peer}']:.1f}"
            for count in options.busy
            for peer in options.peers
        ]
        print(f"| {case.name} | " + " | ".join([*alone, *multiples]) + " |", flush=True)
    for worker in workers:
        worker.close()
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
