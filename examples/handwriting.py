#!/usr/bin/env python3
"""Read handwritten digits row by row: eight steps of eight pixels, an LSTM, a softmax.

    python examples/handwriting.py --quick

1,797 digits of 8 x 8 pixels from 0 to 16, which scikit-learn has (Alpaydin and Kaynak, 1998); a fifth is held
out. Trained with rnnfused and with torch.nn. ``docs/applications.md`` tells the options and what is written.
"""

import gzip
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _shared import ExampleError
from _shared.program import imports

with imports("handwriting.py"):
    import torch
    from _shared.classification import Labelled
    from _shared.comparison import compare
    from _shared.data import shuffled_split
    from _shared.options import option, positive_float, positive_int, share
    from _shared.series import SeriesClassification, SeriesRecipe
    from torch import nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD_OUT = 0.2
SIDE, WHITEST = 8, 16
DRAWN_ROWS, DRAWN_COLUMNS = 4, 10


@dataclass(frozen=True)
class HandwritingRecipe(SeriesRecipe):
    epochs: int = option(25, positive_int, "passes over the training data")
    lr: float = option(5e-3, positive_float, "Adam's learning rate at the beginning")
    dropout: float = option(0.2, share, "share of the summary of a digit that is dropped")


class Handwriting(SeriesClassification):
    name = "handwriting"
    about = "Read handwritten digits, a row of pixels a step, by an LSTM."
    data_set = "digits"
    recipe = HandwritingRecipe
    quick: Mapping[str, object] = {"epochs": 15}
    items = "digits"
    classes = tuple("0123456789")
    cell = nn.LSTM

    def __init__(self, recipe: HandwritingRecipe, files: Mapping[str, Path]) -> None:
        self._recipe = recipe
        (path,) = files.values()
        digits = read(path)[: recipe.limit]
        self.training, self.held_out = (
            [digits[item] for item in part] for part in shuffled_split(len(digits), HELD_OUT)
        )

    def pictures(self, model: nn.Module) -> dict[str, tuple[tuple[float, float], Callable[["Figure"], None]]]:
        """Held-out digits with what the model reads; those that it misreads come first."""
        truth, found = self.truth(), self.predictions(model)
        order = (found == truth).int().argsort(stable=True).tolist()

        def draw(figure: "Figure") -> None:
            for axes, item in zip(figure.subplots(DRAWN_ROWS, DRAWN_COLUMNS).flat, order, strict=False):
                axes.imshow(self.held_out[item][0].numpy(), cmap="gray_r")
                right = bool(found[item] == truth[item])
                axes.set_title(
                    str(int(found[item])) if right else f"{int(found[item])}, is {int(truth[item])}",
                    color="black" if right else "tab:red",
                    fontsize=9,
                )
            for axes in figure.axes:
                axes.set_axis_off()

        return {"digits.png": ((DRAWN_COLUMNS, 1.2 * DRAWN_ROWS), draw)}


def read(path: Path) -> list[Labelled]:
    """The digits [8, 8], from 0 to 1, and what they are.

    Raises:
        ExampleError: when a line is not 64 pixels and a digit, or there are too few.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ExampleError(f"{path}: expected a text file that gzip has compressed") from error
    digits = []
    for number, line in enumerate(lines, 1):
        try:
            *pixels, digit = map(int, map(float, line.split(",")))
            if (
                len(pixels) != SIDE * SIDE
                or not 0 <= min(pixels) <= max(pixels) <= WHITEST
                or digit not in range(10)
            ):
                raise ValueError("not a digit")
        except (ValueError, OverflowError) as error:  # the latter is int()'s, of inf
            raise ExampleError(
                f"{path}, line {number}: expected {SIDE * SIDE} pixels from 0 to {WHITEST} and a digit"
            ) from error
        digits.append((torch.tensor(pixels).view(SIDE, SIDE) / WHITEST, digit))
    if len(digits) < 2:
        raise ExampleError(f"{path}: expected at least 2 digits, got {len(digits)}")
    return digits


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code: 0, 2 after an error, 130 after Ctrl-C."""
    return compare(Handwriting, arguments)


if __name__ == "__main__":
    sys.exit(main())
