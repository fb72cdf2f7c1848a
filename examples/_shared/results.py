"""What a comparison has measured: as a table, as results.json and as a plot."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

import torch

import rnnfused

from .example import RNNFUSED, TEST, TORCH, Example, Recipe
from .figures import WIDE_AND_THIN, write_figure
from .training import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Mapping[str, Sequence[Run]]  # by backend, in the order of the seeds

COMPARED = 10  # first steps in which the losses may differ by rounding alone
_COLOURS = ("tab:orange", "tab:blue")


def ratio(runs: Runs) -> float | None:
    """How many times faster rnnfused trains: the median, over all steps, of torch.nn's time for a step by
    rnnfused's for the same batch. None without torch.nn's.
    """
    if TORCH not in runs:
        return None
    pairs = [
        theirs / ours
        for run, peer in zip(runs[RNNFUSED], runs[TORCH], strict=True)
        for ours, theirs in zip(run.history.seconds, peer.history.seconds, strict=True)
    ]
    return median(pairs)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """The deviation of one value is 0."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def largest_difference(runs: Runs) -> float | None:
    """The largest difference of the backends' losses in the first steps. None without torch.nn's."""
    if TORCH not in runs:
        return None
    pairs = [
        pair
        for run, peer in zip(runs[RNNFUSED], runs[TORCH], strict=True)
        for pair in zip(run.history.losses[:COMPARED], peer.history.losses[:COMPARED], strict=True)
    ]
    return max(abs(ours - theirs) for ours, theirs in pairs)


def as_json(example: Example, recipe: Recipe, fingerprint: str, runs: Runs, command: str) -> dict[str, Any]:
    """The content of results.json."""
    model = runs[RNNFUSED][0].model
    return {
        "example": example.name,
        "command": command,
        "data": {"description": example.describe_data(), "fingerprint": fingerprint},
        "model": {
            "description": example.describe_model(),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "recipe": asdict(recipe),
        "measure": asdict(example.measure),
        "runs": {
            backend: [
                {
                    "seed": run.seed,
                    "quality": run.test_quality,
                    "epoch": run.chosen_epoch + 1,
                    "further": run.further,
                    "seconds": sum(run.history.seconds),
                    "losses_of_epochs": run.epoch_losses,
                    "quality_of_epochs": run.history.quality,
                }
                for run in of_backend
            ]
            for backend, of_backend in runs.items()
        },
        "ratio": ratio(runs),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "rnnfused": rnnfused.__version__,
        },
    }


def table(example: Example, runs: Runs) -> str:
    """The closing table: a line for each backend and seed, their means, and how the two compare."""
    measure = example.measure
    lines = [f"{'':<10}{'seed':>6}{'epoch':>7}{measure.name:>22}{'training seconds':>20}"]
    for backend, of_backend in runs.items():
        lines += [
            f"{backend:<10}{run.seed:>6}{run.chosen_epoch + 1:>7}{measure.text(run.test_quality):>22}"
            f"{sum(run.history.seconds):>20.2f}"
            for run in of_backend
        ]
    for backend, of_backend in runs.items():
        mean, deviation = mean_and_deviation([run.test_quality for run in of_backend])
        seconds = fmean(sum(run.history.seconds) for run in of_backend)
        lines.append(
            f"{backend}: {measure.name} {measure.text(mean)} ± {deviation:.{measure.digits}f}, "
            f"{seconds:.2f} seconds of training"
        )
        for other in example.also:
            mean, deviation = mean_and_deviation([run.further[other.name] for run in of_backend])
            lines.append(f"{backend}: {other.name} {other.text(mean)} ± {deviation:.{other.digits}f}")
    if TORCH in runs:
        lines.append(
            f"speed-up of {RNNFUSED} over {TORCH}: {ratio(runs):.2f}x (median over the steps)\n"
            f"largest difference of the losses in the first {COMPARED} steps: {largest_difference(runs):.2g}"
        )
    return "\n".join(lines)


def write_plot(example: Example, runs: Runs, path: Path) -> str | None:
    """Training loss by epoch, and quality by the seconds spent on training; returns why not if matplotlib is
    not there.
    """

    def draw(figure: Figure) -> None:
        losses, quality = figure.subplots(2, 1)
        for (backend, of_backend), colour, width in zip(runs.items(), _COLOURS, WIDE_AND_THIN, strict=False):
            for number, run in enumerate(of_backend):
                label = backend if number == 0 else None
                epochs = range(1, run.epochs_done + 1)
                line = {"color": colour, "label": label, "marker": "o", "markersize": width + 1}
                losses.plot(epochs, run.epoch_losses, linewidth=width, **line)
                quality.plot(run.epoch_ends, run.history.quality[TEST], linewidth=1, **line)
        losses.set(xlabel="epoch", ylabel="loss", title="Training loss, every seed")
        measured = f"{example.measure.name} {example.measure.unit}".strip()
        quality.set(xlabel="seconds of training", ylabel=measured, title="Test quality")
        quality.set_xlim(left=0)
        for axes in (losses, quality):
            axes.grid(alpha=0.3)
            axes.legend()

    return write_figure(path, (8, 7), draw)
