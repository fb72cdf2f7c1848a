"""Series of measurements that each belong to a class: their files, and the model that tells the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from . import ExampleError
from .classification import Classification, Labelled
from .data import shuffled_split
from .example import Recipe
from .options import option, positive_int, share
from .ragged import mask, run_ragged


@dataclass(frozen=True)
class SeriesRecipe(Recipe):
    hidden: int = option(128, positive_int, "hidden units of each direction")
    dropout: float = option(0.5, share, "share of the summary of a series that is dropped")


class SeriesClassifier(nn.Module):
    """A recurrent layer; its output's mean over time and its last states, together; scores."""

    def __init__(self, recurrent: nn.RNNBase, classes: int, dropped: float) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.scores = nn.Linear(2 * recurrent.hidden_size * (1 + recurrent.bidirectional), classes)
        self._dropped = dropped

    def forward(self, series: Tensor, lengths: Tensor) -> Tensor:
        """Series [B, T, features] and lengths [B] -> scores [B, classes]."""
        output, states = run_ragged(self.recurrent, series, lengths)
        last = states[0] if isinstance(states, tuple) else states  # [directions, B, hidden]
        mean = output.masked_fill(~mask(lengths).unsqueeze(2), 0).sum(1) / lengths.unsqueeze(1)
        summary = torch.cat([mean, *last], 1)
        return self.scores(dropout(summary, self._dropped, self.training))


class SeriesClassification(Classification):
    """An example of such series; it reads them in its __init__."""

    recipe = SeriesRecipe
    items: ClassVar[str]  # what the series are, in the plural
    cell: ClassVar[type[nn.RNNBase]]
    bidirectional: ClassVar[bool] = False

    def __init__(self, recipe: SeriesRecipe, files: Mapping[str, Path]) -> None:
        """Read the .ts files of a training and a test part."""
        self._recipe = recipe
        parts = [
            next(read_ts(path, len(self.classes)) for name, path in files.items() if name.endswith(ending))
            for ending in ("_TRAIN.ts", "_TEST.ts")
        ]
        self.training, self.held_out = standardised(*limited(parts, recipe.limit))

    def describe_data(self) -> str:
        lengths = [len(series) for part in (self.training, self.held_out) for series, _ in part]
        shortest, longest = min(lengths), max(lengths)
        steps = f"{shortest} steps" if shortest == longest else f"{shortest} to {longest} steps"
        return (
            f"{self.training_items:,} {self.items} to train on, {len(self.held_out):,} held out, "
            f"{steps} of {self._features()}, {len(self.classes)} classes"
        )

    def describe_model(self) -> str:
        direction = "bidirectional " if self.bidirectional else ""
        return (
            f"{direction}{self.cell.__name__} {self._recipe.hidden}, mean over time and last states, softmax"
        )

    def build(self) -> nn.Module:
        recurrent = self.cell(
            self._features(), self._recipe.hidden, batch_first=True, bidirectional=self.bidirectional
        )
        return SeriesClassifier(recurrent, len(self.classes), self._recipe.dropout)

    def rate(self, recipe: Recipe, progress: float) -> float:
        """Falls to 0 along a line: the last epochs, whose model counts, hardly differ then."""
        return recipe.lr * (1 - progress)

    def _features(self) -> int:
        return self.training[0][0].shape[1]


def read_ts(path: Path, classes: int) -> list[Labelled]:
    """The series of a .ts file: a line each, of features between colons and, last, a class counted from 1.

    Raises:
        ExampleError: when a line is something else, or there is none.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.startswith(("#", "@")) or not line.strip():
            continue
        try:
            *features, label = line.split(":")
            steps = zip(*(map(float, feature.split(",")) for feature in features), strict=True)
            series = torch.tensor(list(steps))
            if not (1 <= int(label) <= classes and series.numel() and series.isfinite().all()):
                raise ValueError("not a series and its class")
        except ValueError as error:
            raise ExampleError(
                f"{path}, line {number}: expected features of equal length and a class from 1 to {classes}, "
                "between colons"
            ) from error
        found.append((series, int(label) - 1))
    if not found:
        raise ExampleError(f"{path}: expected at least one series, got none")
    return found


def limited(parts: Sequence[Sequence[Labelled]], limit: int | None) -> list[list[Labelled]]:
    """Of all parts the same share, `limit` items together or all, and at least one, in an order that is
    always the same: files are often sorted by class.
    """
    there_are = sum(len(part) for part in parts)
    kept = min(limit or there_are, there_are) / there_are
    return [
        [part[item] for item in shuffled_split(len(part))[0][: max(1, int(kept * len(part)))]]
        for part in parts
    ]


def standardised(training: Sequence[Labelled], held_out: Sequence[Labelled]) -> list[list[Labelled]]:
    """Both with every feature less its mean, divided by its deviation, over all steps of `training`."""
    steps = torch.cat([series for series, _ in training])
    mean, deviation = steps.mean(0), steps.std(0)
    return [[((series - mean) / deviation, label) for series, label in part] for part in (training, held_out)]
