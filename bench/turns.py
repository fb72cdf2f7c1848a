"""Ways to do the same, each in a process of its own, taking turns."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["in_turns"]


def in_turns(
    work: Callable[..., None],
    ways: Mapping[str, tuple[Any, ...]],
    rounds: int,
    request: Any,
    check: Callable[[dict[str, Any]], None] = lambda answers: None,
) -> dict[str, float]:
    """The median of each way's answers, one a round.

    work(*arguments, connection) runs in a fresh process for each of `ways` and its arguments: it sends a
    first answer once it is ready, which `check` sees for all ways before anything counts, and then a number
    for every `request` that it receives, until it receives None.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[str, Connection] = {}
    for way, arguments in ways.items():
        workers[way], other = context.Pipe()
        context.Process(target=work, args=(*arguments, other), daemon=True).start()
    check({way: worker.recv() for way, worker in workers.items()})
    answers: dict[str, list[float]] = {way: [] for way in workers}
    for _ in range(rounds):
        for way, worker in workers.items():
            worker.send(request)
            answers[way].append(worker.recv())
    for worker in workers.values():
        worker.send(None)
    return {way: statistics.median(found) for way, found in answers.items()}
