"""Processes of one gloo group that run what a test asks of them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

__all__ = ["Group"]

COLLECTIVE_SECONDS = 60  # after which a process that waits for another one gives up


class Group:
    """`run` calls a function in every process at once. The processes start with the first call and stay,
    since starting them takes longer than most calls; a failure ends them, and the next call starts others.

    They meet through a file of `folder`: groups side by side on a machine know nothing of each other.
    """

    def __init__(self, folder: Path, size: int = 2) -> None:
        self._folder, self._size = folder, size
        self._starts = 0
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []

    def run(self, function: Callable[..., Any], *arguments: Any, seconds: float = 120) -> list[Any]:
        """function(*arguments) of every process, in the order of ranks.

        The function is one of a module, and it and its arguments and results can be pickled. Raises
        RuntimeError with the traceback where a process raises or ends, and TimeoutError after `seconds`.
        """
        if not self._processes:
            self._start()
        finished = False
        try:
            for pipe in self._pipes:
                pipe.send_bytes(pickle.dumps((function, arguments)))
            results = self._results(time.monotonic() + seconds)
            finished = True
        finally:
            if not finished:
                self.close()
        return [results[rank] for rank in range(self._size)]

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        self._starts += 1
        context = multiprocessing.get_context("spawn")
        for rank in range(self._size):
            ours, theirs = context.Pipe()
            # A daemon ends with the tests, however they end.
            process = context.Process(
                target=_serve, args=(rank, self._size, self._store(), theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def _store(self) -> Path:
        return self._folder / f"store{self._starts}"

    def _results(self, end: float) -> dict[int, Any]:
        results: dict[int, Any] = {}
        while len(results) < self._size:
            missing = {self._pipes[rank]: rank for rank in range(self._size) if rank not in results}
            ready = wait(list(missing), max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no result from process {sorted(missing.values())}")
            for pipe in ready:
                rank = missing[pipe]
                try:
                    failure, results[rank] = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    raise RuntimeError(f"process {rank} ended") from None
                if failure:
                    raise RuntimeError(f"in process {rank}:\n{failure}")
        return results


def _serve(rank: int, size: int, store: Path, pipe: Connection) -> None:
    # Gloo then asks no name server for this machine's address.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a daemon may have no children
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(store.with_name("inductor"))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    timeout = timedelta(seconds=COLLECTIVE_SECONDS)
    dist.init_process_group("gloo", f"file://{store}", timeout, size, rank)
    while True:
        try:
            function, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = None, function(*arguments)
        except BaseException:
            answer = traceback.format_exc(), None
        pipe.send_bytes(pickle.dumps(answer))
