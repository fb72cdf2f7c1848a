"""The registry: what a probe is, and the list of them all."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["THEMES", "NotApplicable", "Probe", "load", "load_module", "probe"]

# Files of this package, in the order of the table.
THEMES = (
    "behaviour",
    "sequences",
    "errors",
    "modules",
    "derivatives",
    "transforms",
    "tensors",
    "observing",
    "precision",
    "compiling",
    "exporting",
    "distributed",
)


class NotApplicable(Exception):
    """Raised by a probe where the question makes no sense; the message goes into the table."""


@dataclass(frozen=True)
class Probe:
    """One row. `run(layers)`, or `run(layers, variant)` for each variant, raises where the feature is
    missing. module: the file that holds it.

    refusal: rnnfused refuses the feature by design. That holds only while it raises an exception whose
    message contains `refusal`, the way out that it names; `reason` goes into the table.
    """

    name: str
    module: str
    feature: str
    what: str
    run: Callable[..., None]
    variants: tuple[str, ...] = ("",)
    reason: str = ""
    refusal: str = ""
    seconds: float = 120

    @property
    def theme(self) -> str:
        return self.module.rsplit(".", 1)[-1]


_probes: dict[str, Probe] = {}


def probe(
    feature: str,
    what: str,
    each: tuple[str, ...] = ("",),
    by_design: str = "",
    refusal: str = "",
    seconds: float = 120,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a probe. feature and what: the first columns of its row; each: its variants; by_design: why
    rnnfused refuses it, with `refusal` in its exception; seconds: the time limit of one variant.
    """

    def register(run: Callable[..., None]) -> Callable[..., None]:
        name = f"{run.__module__.rsplit('.', 1)[-1]}.{run.__name__}"
        if name in _probes:
            raise ValueError(f"probe {name} stands twice")
        _probes[name] = Probe(name, run.__module__, feature, what, run, each, by_design, refusal, seconds)
        return run

    return register


def load(themes: tuple[str, ...] = THEMES) -> list[Probe]:
    """The probes of these themes, in the order of the table."""
    return [found for theme in themes for found in load_module(f"bench.features.{theme}")]


def load_module(module: str) -> list[Probe]:
    """The probes of one file."""
    importlib.import_module(module)
    return [found for found in _probes.values() if found.module == module]


def call(found: Probe, layers: Any, variant: str) -> None:
    found.run(layers, variant) if variant else found.run(layers)
