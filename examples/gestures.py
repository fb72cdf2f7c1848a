#!/usr/bin/env python3
"""Tell who moves a hand: the acceleration of what it holds, a GRU, a softmax.

    python examples/gestures.py --quick

Ten people pick a Wiimote up, ten times each; recorded is its acceleration along one axis, 29 to 361 steps
long (Guna, Humar and Pogačnik, 2012). Half of the 100 series are held out, so that one of them is two per
cent. Trained with rnnfused, which takes the series' lengths, and with torch.nn, whose users pack them.
``docs/applications.md`` tells the options and what is written.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from _shared.program import imports

with imports("gestures.py"):
    from _shared.comparison import compare
    from _shared.options import option, positive_float, positive_int
    from _shared.series import SeriesClassification, SeriesRecipe
    from torch import nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GesturesRecipe(SeriesRecipe):
    epochs: int = option(60, positive_int, "passes over the training data")
    batch: int = option(25, positive_int, "gestures of a batch")
    lr: float = option(2e-2, positive_float, "Adam's learning rate at the beginning")


class Gestures(SeriesClassification):
    name = "gestures"
    about = "Tell ten people by the acceleration of a gesture, by a GRU."
    data_set = "gestures"
    recipe = GesturesRecipe
    quick: Mapping[str, object] = {"epochs": 30}
    items = "gestures"
    classes = tuple(f"person {number}" for number in range(1, 11))
    cell = nn.GRU

    def pictures(self, model: nn.Module) -> dict[str, tuple[tuple[float, float], Callable[["Figure"], None]]]:
        def draw(figure: "Figure") -> None:
            curves, confusion = figure.subplots(1, 2)
            of_class = {label: series for series, label in self.held_out}
            for row, label in enumerate(sorted(of_class)):
                curves.plot(0.25 * of_class[label][:, 0].numpy() - row, linewidth=0.8)
            curves.set_yticks(
                [-row for row in range(len(of_class))], [self.classes[label] for label in sorted(of_class)]
            )
            curves.set(xlabel="step", title="Acceleration, a gesture of each person")
            self.draw_confusion(confusion, model)

        return {"gestures.png": ((11, 5.5), draw)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code: 0, 2 after an error, 130 after Ctrl-C."""
    return compare(Gestures, arguments)


if __name__ == "__main__":
    sys.exit(main())
