"""`python -m bench.compare BASE [CHANGED]`: two versions of rnnfused held against each other.

Each is a commit, which is checked out and built in a folder of its own, or a folder that holds a built
rnnfused package; CHANGED is the working tree by default. Rounds are interleaved as in bench.cpu, and a time
counts only after the results were checked.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.cases import Case
from bench.cpu import add_selection, selected
from bench.harness import ROOT, Row, Worker, measure_case
from bench.report import geometric_mean, per_step

NAMES = ("base", "changed")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("base", help="a commit, or a folder that holds a built rnnfused")
    parser.add_argument("changed", nargs="?", default=str(ROOT), help="likewise (default: the working tree)")
    add_selection(parser)
    return parser.parse_args(arguments)


def build(version: str, folder: Path, change: Callable[[Path], None] = lambda tree: None) -> Path:
    """A folder with the rnnfused package of that version, after `change` of its sources, and nothing else:
    that version's bench may not know the rows. Raises CalledProcessError where it cannot be had.
    """
    if (Path(version) / "rnnfused").is_dir():
        (folder / "rnnfused").symlink_to((Path(version) / "rnnfused").resolve())
        return folder

    def git(*arguments: str | Path) -> None:
        subprocess.run(["git", "-C", ROOT, *arguments], check=True)

    tree = folder / "tree"
    git("worktree", "add", "--quiet", "--detach", tree, version)
    try:
        change(tree)
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(command, cwd=tree, check=True, stdout=sys.stderr)
        shutil.copytree(tree / "rnnfused", folder / "rnnfused")
    finally:
        git("worktree", "remove", "--force", tree)
    return folder


def compare(trees: tuple[Path, Path], rows: Iterable[Case], options: argparse.Namespace) -> list[float]:
    """Prints each row's times under both trees, and returns the ratios of the first to the second."""
    ratios = []
    with contextlib.ExitStack() as stack:
        workers = []
        for name, tree in zip(NAMES, trees, strict=True):
            workers.append(Worker("rnnfused", options.threads, name=name, tree=tree))
            stack.callback(workers[-1].close)
        for case in rows:
            row = measure_case(case, workers, options.rounds, options.seconds)
            ratios.append(row.medians[NAMES[0]] / row.medians[NAMES[1]])
            print(line(row), flush=True)
    return ratios


def line(row: Row) -> str:
    """Microseconds a step, or a call, with their quartiles, and how many times faster the change is."""
    base, changed = (row.medians[name] for name in NAMES)
    cells = [row.case.name]
    for name in NAMES:
        low, high = (per_step(row.case, seconds) for seconds in row.quartiles[name])
        cells.append(f"{per_step(row.case, row.medians[name])} ({low} to {high})")
    return "| " + " | ".join([*cells, f"{base / changed:.3f}"]) + " |"


def main() -> int:
    options = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as changed:
        try:
            trees = build(options.base, Path(base)), build(options.changed, Path(changed))
        except subprocess.CalledProcessError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        columns = ["row", *(f"{name} us/step, of calls us/call" for name in NAMES), "base / changed"]
        print(f"| {' | '.join(columns)} |\n|---|---|---|---|")
        ratios = compare(trees, selected(options), options)
    if ratios:
        print(f"\ngeometric mean {geometric_mean(ratios):.3f}, worst row {min(ratios):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
