"""Plots, where matplotlib can be imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE_AND_THIN = (4.0, 2.5, 1.5, 0.8)  # curves on top of each other: a thin one over a wide one shows both


def write_figure(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> str | None:
    """Let `draw` fill a figure of `size` inches and write it as a PNG; returns why not if matplotlib is not
    there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        return f"matplotlib cannot be imported ({error})"
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    figure.savefig(path, dpi=120)
    return None
