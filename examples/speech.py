#!/usr/bin/env python3
"""Tell who speaks: cepstrum coefficients of a vowel, a bidirectional GRU, a softmax.

    python examples/speech.py --quick

640 utterances of two Japanese vowels by nine men, each 7 to 29 frames of 12 coefficients (Kudo, Toyama and
Shimbo, 1999), in the parts for training and for testing that the authors made. Trained with rnnfused, which
takes the utterances' lengths, and with torch.nn, whose users pack them. ``docs/applications.md`` tells the
options and what is written.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from _shared.program import imports

with imports("speech.py"):
    from _shared.comparison import compare
    from _shared.options import option, positive_float, positive_int
    from _shared.series import SeriesClassification, SeriesRecipe
    from torch import nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SpeechRecipe(SeriesRecipe):
    epochs: int = option(30, positive_int, "passes over the training data")
    batch: int = option(16, positive_int, "utterances of a batch")
    lr: float = option(3e-3, positive_float, "Adam's learning rate at the beginning")


class Speech(SeriesClassification):
    name = "speech"
    about = "Tell nine speakers by a vowel's cepstrum coefficients, by a bidirectional GRU."
    data_set = "japanese-vowels"
    recipe = SpeechRecipe
    quick: Mapping[str, object] = {"epochs": 20}
    items = "utterances"
    classes = tuple(f"speaker {number}" for number in range(1, 10))
    cell = nn.GRU
    bidirectional = True

    def pictures(self, model: nn.Module) -> dict[str, tuple[tuple[float, float], Callable[["Figure"], None]]]:
        def draw(figure: "Figure") -> None:
            utterance, confusion = figure.subplots(1, 2)
            series, speaker = self.held_out[0]
            utterance.imshow(series.T.numpy(), aspect="auto", origin="lower", cmap="viridis")
            utterance.set(
                xlabel="frame", ylabel="coefficient", title=f"An utterance of {self.classes[speaker]}"
            )
            self.draw_confusion(confusion, model)

        return {"speakers.png": ((11, 5), draw)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code: 0, 2 after an error, 130 after Ctrl-C."""
    return compare(Speech, arguments)


if __name__ == "__main__":
    sys.exit(main())
