#!/usr/bin/env python3
"""Forecast a series with intervals, and be measured as forecasters are: by rolling origins.

    python examples/forecast.py --series co2 --quick
    python examples/forecast.py --series sunspots --quick

Weekly carbon dioxide over Mauna Loa, a year ahead, and yearly sunspots, eleven years ahead. A GRU reads what
lies before an origin and gives quantiles of all steps ahead at once. The end of the series is held out, and
forecast from one origin after the other. Trained with rnnfused and with torch.nn. ``docs/applications.md``
tells the options, the sources and what is drawn.
"""

from __future__ import annotations

import csv
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from _shared import ExampleError
from _shared.program import imports

with imports("forecast.py"):
    import torch
    from _shared.comparison import compare
    from _shared.data import find
    from _shared.example import Example, Measure, Recipe
    from _shared.options import option, positive_float, positive_int
    from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = (0.05, 0.5, 0.95)  # an interval that is to hold 90 %, and the median, whose error is measured
MEDIAN = QUANTILES.index(0.5)
CONTEXT = 2  # seasons that the network reads
DRAWN_BEFORE = 2  # seasons before the first forecast


@dataclass(frozen=True)
class Series:
    """What is known of a series before anything is learned.

    date: the format of the dates in its file; season: steps, and as many are forecast from an origin;
    stride: from one origin to the next; held_out: the seasons at the end that are forecast.
    """

    title: str
    unit: str
    date: str
    season: int
    stride: int
    held_out: int


SERIES = {
    "co2": Series("Carbon dioxide over Mauna Loa", "ppm", "%Y%m%d", season=52, stride=4, held_out=8),
    "sunspots": Series("Sunspots", "sunspots", "%Y", season=11, stride=1, held_out=6),
}


@dataclass(frozen=True)
class ForecastRecipe(Recipe):
    series: str = option("co2", str, "what to forecast", choices=tuple(SERIES))
    limit: int | None = option(None, positive_int, "use only so many values, the last of the series")
    epochs: int = option(20, positive_int, "passes over the training data")
    lr: float = option(
        1e-2, positive_float, "Adam's learning rate at the start; it falls to 0 along a cosine"
    )
    seeds: int = option(5, positive_int, "how many seeds, each of which trains every backend")
    hidden: int = option(32, positive_int, "hidden units")


class Forecaster(nn.Module):
    """A GRU over what lies before an origin; from its last state, the quantiles of all steps ahead.

    What it reads is divided by its own mean size, and what it forecasts multiplied: cycles and growth that
    are larger than all before are nothing new to the network.
    """

    def __init__(self, season: int, hidden: int) -> None:
        super().__init__()
        self.recurrent = nn.GRU(1, hidden, batch_first=True)
        self.quantiles = nn.Linear(hidden, season * len(QUANTILES))

    def forward(self, past: Tensor) -> Tensor:
        """Past [B, context] -> changes over a season [B, season, quantiles]."""
        scale = past.abs().mean(1, keepdim=True)
        _, last = self.recurrent((past / scale).unsqueeze(2))
        return (self.quantiles(last[-1]) * scale).unflatten(1, (-1, len(QUANTILES)))


class Forecast(Example):
    name = "forecast"
    about = "Forecast carbon dioxide or sunspots by a GRU, with intervals, from rolling origins."
    data_set = "co2"  # unless --series says otherwise
    measure = Measure("relative MAE", "", higher_is_better=False, digits=3)
    recipe = ForecastRecipe
    quick: Mapping[str, object] = {"seeds": 3}

    @classmethod
    def files(cls, recipe: ForecastRecipe) -> dict[str, Path]:
        return find(recipe.series, Path(recipe.data) if recipe.data else None)

    def __init__(self, recipe: ForecastRecipe, files: Mapping[str, Path]) -> None:
        (path,) = files.values()
        self._recipe, self._series = recipe, SERIES[recipe.series]
        series = self._series
        dates, values = read(path, series.date)
        self._season = series.season
        self._dates = dates[-(recipe.limit or 0) :]
        self._values = torch.tensor(values[-(recipe.limit or 0) :])
        # Training sees what lies before the first origin held out, inputs and targets.
        first, count = (CONTEXT + 1) * series.season, len(self._values)
        held_out = count - series.held_out * series.season
        if held_out < first + series.season:
            needed = (CONTEXT + 2 + series.held_out) * series.season
            raise ExampleError(f"expected at least {needed} values of {recipe.series}, got {count}")
        self._trained = range(first, held_out - series.season + 1, series.stride)
        self._origins = range(held_out, count - series.season + 1, series.stride)
        self.training_items = len(self._trained)

    def describe_data(self) -> str:
        held_out = self._series.held_out * self._season
        return (
            f"{self._series.title}, {len(self._values):,} values, the last {held_out} held out: "
            f"{len(self._origins)} origins, each forecast {self._season} steps ahead"
        )

    def describe_model(self) -> str:
        return f"GRU {self._recipe.hidden}, {len(QUANTILES)} quantiles of each step ahead"

    def build(self) -> nn.Module:
        return Forecaster(self._season, self._recipe.hidden)

    def batch(self, items: list[int]) -> tuple[Tensor, Tensor]:
        origins = [self._trained[item] for item in items]
        ahead = self._windows(origins, 0, self._season)
        return self._past(origins), ahead - self._naive(origins)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        past, changes = batch
        return quantile_loss(model(past), changes)

    def rate(self, recipe: Recipe, progress: float) -> float:
        return recipe.lr * (1 + math.cos(math.pi * progress)) / 2

    def quality(self, model: nn.Module, part: str) -> float:
        truth, forecast, naive = self._rolled(model)
        return float(mean_absolute(forecast[:, :, MEDIAN] - truth) / mean_absolute(naive - truth))

    def show(self, model: nn.Module) -> str:
        truth, forecast, naive = self._rolled(model)
        low, median, high = forecast.unbind(2)
        inside = ((low <= truth) & (truth <= high)).double().mean()
        unit = self._series.unit
        return "\n".join(
            (
                f"from {len(self._origins)} origins, by the first seed's model:",
                f"  mean absolute error {mean_absolute(median - truth):.3g} {unit}, "
                f"of the seasonal naive forecast {mean_absolute(naive - truth):.3g} {unit}",
                f"  intervals of {QUANTILES[-1] - QUANTILES[0]:.0%}: they hold {inside:.0%} of the values, "
                f"mean width {(high - low).mean():.3g} {unit}",
            )
        )

    def pictures(self, model: nn.Module) -> dict[str, tuple[tuple[float, float], Callable[[Figure], None]]]:
        """Forecasts from origins a season apart: together they cover all that is held out."""
        origins = range(self._origins.start, len(self._values), self._season)
        forecasts, naive = self._forecast(model, origins), self._naive(origins)
        begin = origins.start - DRAWN_BEFORE * self._season

        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            axes.plot(self._dates[begin:], self._values[begin:], color="black", linewidth=1, label="measured")
            labels = ("90 % interval", "median", "seasonal naive")
            for origin, (low, median, high), repeated in zip(origins, forecasts.mT, naive, strict=True):
                x = self._dates[origin : origin + self._season]
                axes.fill_between(x, low, high, color="tab:blue", alpha=0.25, linewidth=0, label=labels[0])
                axes.plot(x, median, color="tab:blue", linewidth=1.5, label=labels[1])
                axes.plot(x, repeated, color="tab:orange", linestyle=":", linewidth=1, label=labels[2])
                axes.axvline(x[0], color="gray", linewidth=0.5)
                labels = (None, None, None)
            title = f"{self._series.title}: forecasts from each vertical line on, {self._season} steps ahead"
            axes.set(ylabel=self._series.unit, title=title)
            axes.legend()

        return {f"{self._recipe.series}.png": ((10, 5), draw)}

    def _rolled(self, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Of every origin held out: values [N, season], forecast quantiles, the seasonal naive forecast."""
        truth = self._windows(self._origins, 0, self._season)
        return truth, self._forecast(model, self._origins), self._naive(self._origins)

    def _forecast(self, model: nn.Module, origins: Sequence[int]) -> Tensor:
        """Quantiles [N, season, quantiles] in the series' unit: in order, should any cross, and not below 0,
        as no value of these series is.
        """
        ahead = self._naive(origins).unsqueeze(2) + model(self._past(origins))
        return ahead.sort(2).values.clamp(min=0)

    def _naive(self, origins: Sequence[int]) -> Tensor:
        """What was measured a season before each step ahead, [N, season]."""
        return self._windows(origins, -self._season, 0)

    def _past(self, origins: Sequence[int]) -> Tensor:
        """The changes over a season that the network reads before each origin, [N, context]."""
        begin, season = -CONTEXT * self._season, self._season
        return self._windows(origins, begin, 0) - self._windows(origins, begin - season, -season)

    def _windows(self, origins: Sequence[int], begin: int, end: int) -> Tensor:
        """The values of these steps, counted from each origin, [N, end - begin]."""
        return torch.stack([self._values[origin + begin : origin + end] for origin in origins])


def quantile_loss(forecast: Tensor, truth: Tensor) -> Tensor:
    """The mean pinball loss of forecasts [..., quantiles] (Koenker and Bassett, 1978)."""
    quantiles = torch.tensor(QUANTILES)
    error = truth.unsqueeze(-1) - forecast
    return torch.maximum(quantiles * error, (quantiles - 1) * error).mean()


def mean_absolute(errors: Tensor) -> Tensor:
    return errors.abs().mean()


def read(path: Path, date: str) -> tuple[list[float], list[float]]:
    """The years, with fractions, and the values of a CSV with a header; gaps are interpolated.

    Raises:
        ExampleError: when a row is not a date and a number or nothing, or the first or last has no number.
    """
    years, values = [], []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.reader(file)
        try:
            next(reader, None)  # the header
            for when, value in reader:
                day = datetime.strptime(when, date).timetuple()
                years.append(day.tm_year + (day.tm_yday - 1) / 365.25)
                values.append(float(value) if value else math.nan)
        except (ValueError, csv.Error) as error:
            raise ExampleError(f"{path}, line {reader.line_num}: expected a date and a number") from error
    known = [place for place, value in enumerate(values) if math.isfinite(value)]
    if not known or (known[0], known[-1]) != (0, len(values) - 1):
        raise ExampleError(f"{path}: expected a number in the first and in the last row")
    for before, after in itertools.pairwise(known):
        for place in range(before + 1, after):
            share = (place - before) / (after - before)
            values[place] = (1 - share) * values[before] + share * values[after]
    return years, values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code: 0, 2 after an error, 130 after Ctrl-C."""
    return compare(Forecast, arguments)


if __name__ == "__main__":
    sys.exit(main())
