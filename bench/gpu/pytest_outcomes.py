"""A pytest plugin (-p bench.gpu.pytest_outcomes): every test's outcome as a line of JSON, at once.

What a run that hangs or dies has done until then is so known, and what it was doing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

OUTCOMES = "RNNFUSED_TEST_OUTCOMES"  # the file

__all__ = ["OUTCOMES", "summarize"]


def summarize(path: Path) -> dict[str, Any]:
    """Counts, the failures in their order with the first words of each, and what was running at the end."""
    outcomes: dict[str, str] = {}
    words: dict[str, str] = {}
    running: dict[str, None] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        entry = json.loads(line)
        name = entry["test"]
        if entry["outcome"] == "started":
            running[name] = None
        elif entry["outcome"] == "ended":
            running.pop(name, None)
        elif outcomes.get(name) != "failed":  # of setup, call and teardown, a failure counts
            outcomes[name] = entry["outcome"]
            words[name] = entry["words"]
    of = {
        kind: [name for name, o in outcomes.items() if o == kind] for kind in ("passed", "failed", "skipped")
    }
    return {
        "counts": {kind: len(names) for kind, names in of.items()},
        "failures": [{"test": name, "words": words[name]} for name in of["failed"]],
        "skips": sorted({words[name] for name in of["skipped"]}),
        "running": list(running),
    }


class _Writer:
    def __init__(self, path: str) -> None:
        self._path = path

    def _say(self, test: str, outcome: str, words: str = "") -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"test": test, "outcome": outcome, "words": words}) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._say(nodeid, "started")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._say(nodeid, "ended")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        words = ""
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            words = str(crash.message if crash else report.longrepr)[:400]
        elif report.outcome == "skipped":
            words = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)[:200]
        self._say(report.nodeid, report.outcome, words)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._say(report.nodeid, "failed", f"not collected: {str(report.longrepr)[-400:]}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What only a GPU shows comes first: the time may end before the tests do."""
    items.sort(key=lambda item: item.get_closest_marker("gpu") is None)


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist's workers report to the process that started them, and that one writes.
    if OUTCOMES in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Writer(os.environ[OUTCOMES]))
