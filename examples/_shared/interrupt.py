"""Ctrl-C as a request that training answers between two steps."""

import signal
from types import FrameType


class Interrupt:
    """While entered, Ctrl-C asks for a stop between two steps; a second one stops at once."""

    signals: tuple[signal.Signals, ...] = (signal.SIGINT,)

    def __init__(self) -> None:
        self._caught = False

    def requested(self) -> bool:
        return self._caught

    def __enter__(self) -> "Interrupt":
        self._previous = [signal.signal(number, self._handle) for number in self.signals]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self.signals, self._previous, strict=True):
            signal.signal(number, handler)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self._caught:
            raise KeyboardInterrupt
        self._caught = True
