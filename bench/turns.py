"""Ways to do the same, each in a process of its own, taking turns."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["Died", "in_turns", "turns_parser"]


def turns_parser(module: str, about: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark whose ways take turns."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="of each way in each round, at least a call"
    )
    parser.add_argument("--output", type=Path, help="a JSON file for the times")
    return parser


class Died(RuntimeError):
    """A way's process has ended before it answered."""


def in_turns(
    work: Callable[..., None],
    ways: Mapping[str, tuple[Any, ...]],
    rounds: int,
    request: Any,
    check: Callable[[dict[str, Any]], None] = lambda answers: None,
) -> dict[str, Any]:
    """The median of each way's answers, one a round; of dicts, that of each entry. Nothing without rounds.

    work(*arguments, connection) runs in a fresh process for each of `ways` and its arguments: it sends a
    first answer once it is ready, which `check` sees for all ways before anything counts, and then a number,
    or several in a dict, for every `request` that it receives. One process begins when the one before is
    ready: two that prepare at once would wait for each other's threads. Raises Died.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[str, Connection] = {}

    def answer(way: str) -> Any:
        try:
            return workers[way].recv()
        except EOFError:
            raise Died(f"the process of {way} has ended") from None

    with contextlib.ExitStack() as stack:
        first = {}
        for way, arguments in ways.items():
            workers[way], other = context.Pipe()
            process = context.Process(target=work, args=(*arguments, other), daemon=True)
            process.start()
            stack.callback(process.kill)
            other.close()  # so that its end shows here
            first[way] = answer(way)
        check(first)
        answers: dict[str, list[Any]] = {way: [] for way in workers}
        for _ in range(rounds):
            for way, worker in workers.items():
                worker.send(request)
                answers[way].append(answer(way))
    return {way: _median(found) for way, found in answers.items() if found}


def _median(answers: list[Any]) -> Any:
    if isinstance(answers[0], dict):
        return {name: statistics.median(one[name] for one in answers) for name in answers[0]}
    return statistics.median(answers)
