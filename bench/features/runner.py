"""Runs probes in processes of their own: what crashes or hangs costs one answer."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.features.layers import COLUMNS
from bench.features.probes import Probe

__all__ = ["Answer", "Answers", "run"]

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 120  # of a process, imports included


@dataclass(frozen=True)
class Answer:
    """What one variant of a probe gave: "yes", "no", "refused, by design", or why the question makes no
    sense.
    """

    status: str
    error: str = ""


# By column, name of the probe and variant.
Answers = dict[tuple[str, str, str], Answer]


def run(probes: list[Probe], jobs: int, cache: Path) -> Answers:
    """Every probe in both columns, `jobs` processes at a time. cache: a folder for what compilers write."""
    answers: Answers = {}
    themes = dict.fromkeys(found.theme for found in probes)
    tasks = [
        (column, [found for found in probes if found.theme == theme])
        for theme in themes
        for column in COLUMNS
    ]
    with ThreadPoolExecutor(jobs) as pool:
        for part in pool.map(lambda task: _theme(*task, cache), tasks):
            answers.update(part)
    return answers


def _theme(column: str, probes: list[Probe], cache: Path) -> Answers:
    answers: Answers = {}
    waiting = [(found, variant) for found in probes for variant in found.variants]
    while waiting:
        got = _process(column, waiting, cache)
        for (found, variant), answer in zip(waiting, got, strict=False):
            answers[column, found.name, variant] = answer
        waiting = waiting[len(got) :]
    return answers


def _process(column: str, items: list[tuple[Probe, str]], cache: Path) -> list[Answer]:
    """The answers of one process, up to and with the first item that ended it."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / column),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "bench.features.worker", column, items[0][0].module]
    command += [f"{found.name}:{variant}" for found, variant in items]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        try:
            return _read(process, items, errors)
        finally:
            # The probe's own processes too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(process: subprocess.Popen[str], items: list[tuple[Probe, str]], errors: IO[str]) -> list[Answer]:
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None

    def pump(stream: IO[str]) -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    threading.Thread(target=pump, args=(process.stdout,), daemon=True).start()
    try:
        if lines.get(timeout=START_SECONDS) != "ready\n":
            process.wait()
            errors.seek(0)
            raise RuntimeError(f"{' '.join(process.args)}:\n{errors.read()}")  # type: ignore[arg-type]
    except queue.Empty:
        raise RuntimeError(f"{process.args}: not ready after {START_SECONDS} s") from None
    answers: list[Answer] = []
    for found, _ in items:
        try:
            line = lines.get(timeout=found.seconds)
        except queue.Empty:
            return [*answers, Answer("no", f"no answer after {found.seconds:.0f} s")]
        if not line:
            return [*answers, Answer("no", _death(process.wait()))]
        answers.append(Answer(**json.loads(line)))
    return answers


def _death(code: int) -> str:
    return (
        f"the process died of {signal.Signals(-code).name}"
        if code < 0
        else f"the process ended, status {code}"
    )
