"""How every example begins and ends: missing modules, errors and Ctrl-C are one line and an exit code."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from . import ExampleError

CONFIGURED_WRONGLY = 2
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


@contextlib.contextmanager
def imports(program: str) -> Iterator[None]:
    """Around the imports of what has to be installed: one that is missing ends the program."""
    try:
        yield
    except ModuleNotFoundError as missing:
        print(f"{program}: {missing}; `make demo` installs what the examples need", file=sys.stderr)
        sys.exit(CONFIGURED_WRONGLY)


def run_program(program: str, body: Callable[[], int]) -> int:
    """The exit code of `body`; 2 after an error that the user can mend, 130 after Ctrl-C."""
    try:
        return body()
    except (ExampleError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return CONFIGURED_WRONGLY
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED


def stopped(program: str, checkpoint: Path) -> int:
    """Say how to go on after a stop that was asked for, and return its exit code."""
    print(f"{program}: interrupted; --resume {checkpoint} continues from here", file=sys.stderr)
    return INTERRUPTED
