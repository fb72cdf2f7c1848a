"""What a section of the suite is given, and the file in which it leaves what it found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["NOT_REACHED", "ROOT", "Section", "read", "run_logged", "tail", "write"]

ROOT = Path(__file__).resolve().parent.parent.parent
NOT_REACHED = "not reached: the time of the section was over"


@dataclass(frozen=True)
class Section:
    """`parts` holds a file of every section; `seconds` are this one's. A dry run has no GPU. `rows`: those of
    the benchmark.
    """

    name: str
    parts: Path
    seconds: float
    dry_run: bool
    rows: str = "key"

    def save(self, found: dict[str, Any]) -> None:
        """May be called again and again: what is there when a section is cut off counts."""
        write(self.parts / f"{self.name}.json", found)

    def of(self, name: str) -> dict[str, Any]:
        """What another section found; nothing where it did not run."""
        return read(self.parts / f"{name}.json")


def write(path: Path, record: dict[str, Any]) -> None:
    """Whoever reads the file meets the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def tail(text: str, lines: int = 15) -> str:
    return "\n".join(line[:300] for line in text.strip().splitlines()[-lines:])


def run_logged(
    command: list[str], seconds: float, environment: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """The exit status, None where the time was over, and the output, which is printed too."""
    print("$", " ".join(command), flush=True)
    run = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    status: int | None = None
    try:
        output, _ = run.communicate(timeout=max(1.0, seconds))
        status = run.returncode
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)  # what it started would go on holding the GPU
        output, _ = run.communicate()
    except BaseException:
        os.killpg(run.pid, signal.SIGKILL)
        raise
    sys.stdout.write(output)
    print(f"[exit status {status}]" if status is not None else f"[stopped after {seconds:.0f} s]", flush=True)
    return status, output
