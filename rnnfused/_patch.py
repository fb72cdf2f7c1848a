"""torch.nn's names of recurrent layers, which `patch` makes rnnfused's."""

from __future__ import annotations

import threading
from types import TracebackType

import torch

from rnnfused import modules

__all__ = ["Patch", "patch"]

_PLACES = (torch.nn, torch.nn.modules, torch.nn.modules.rnn)
_OURS = {name: getattr(modules, name) for name in modules.__all__}

_lock = threading.Lock()
_active: set[Patch] = set()
_saved: list[tuple[object, str, object]] = []  # place, name and class, while any patch is active


class Patch:
    """What `patch` returns: its names stay rnnfused's until `undo`, or the end of a `with` statement."""

    def __init__(self) -> None:
        self._entered = 0
        self._apply()

    def _apply(self) -> None:
        with _lock:
            if not _active:
                _saved[:] = [(place, name, getattr(place, name)) for place in _PLACES for name in _OURS]
                for place, name, _ in _saved:
                    setattr(place, name, _OURS[name])
            _active.add(self)

    def undo(self) -> None:
        """Gives the names back, unless another patch is active; a second time it does nothing."""
        with _lock:
            if self not in _active:
                return
            _active.remove(self)
            if not _active:
                for place, name, theirs in _saved:
                    if getattr(place, name) is _OURS[name]:  # else somebody has replaced it since
                        setattr(place, name, theirs)

    def __enter__(self) -> Patch:
        self._entered += 1
        self._apply()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if not self._entered:
            self.undo()


def patch() -> Patch:
    """Makes torch.nn.RNN, LSTM, GRU, RNNCell, LSTMCell and GRUCell rnnfused's, for packages that build their
    layers themselves:

        with rnnfused.patch():
            import package
            model = package.Model()

    or, without `with`, until `undo` of what is returned. Code that looks the names up from now on (in
    torch.nn, torch.nn.modules or torch.nn.modules.rnn), in whichever thread, finds rnnfused's classes: layers
    that it makes are rnnfused's, classes that it derives are subclasses of rnnfused's, and stay so. Classes
    and layers that are there already remain torch.nn's; for them there is `convert`. Patches may be nested:
    the last one that ends gives the names back, after an exception too. Raises nothing.
    """
    return Patch()
