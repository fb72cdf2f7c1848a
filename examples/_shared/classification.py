"""Sequences that each belong to a class: what their examples do alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .example import Example, Measure
from .ragged import pad

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Labelled = tuple[Tensor, int]  # a sequence [T, ...] and the number of its class
Batch = tuple[Tensor, Tensor, Tensor]  # padded sequences [B, T, ...], lengths [B], classes [B]

EVALUATED_AT_ONCE = 256
MISTAKES_SHOWN = 5


class Classification(Example):
    """An example whose model takes padded sequences and their lengths, and gives scores [B, classes]."""

    measure = Measure("accuracy", "%", higher_is_better=True)

    classes: Sequence[str]
    training: Sequence[Labelled]  # these two are set by __init__
    held_out: Sequence[Labelled]

    @property
    def training_items(self) -> int:
        return len(self.training)

    def batch(self, items: list[int]) -> Batch:
        return collate([self.training[item] for item in items])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        sequences, lengths, classes = batch
        return cross_entropy(model(sequences, lengths), classes)

    def quality(self, model: nn.Module, part: str) -> float:
        return 100 * (self.predictions(model) == self.truth()).double().mean().item()

    def truth(self) -> Tensor:
        """The classes of what is held out."""
        return torch.tensor([label for _, label in self.held_out])

    def predictions(self, model: nn.Module) -> Tensor:
        """The classes that a model gives to what is held out."""
        found = []
        for start in range(0, len(self.held_out), EVALUATED_AT_ONCE):
            sequences, lengths, _ = collate(self.held_out[start : start + EVALUATED_AT_ONCE])
            found.append(model(sequences, lengths).argmax(1))
        return torch.cat(found)

    def show(self, model: nn.Module) -> str:
        """The most frequent mistakes."""
        pairs = zip(self.truth().tolist(), self.predictions(model).tolist(), strict=True)
        mistakes = Counter(pair for pair in pairs if pair[0] != pair[1])
        lines = [
            f"{mistakes.total()} of {len(self.held_out)} held out are taken for another class by the first "
            "seed's model, most often:"
        ]
        lines += [
            f"  {count} of {self.classes[true]} for {self.classes[taken]}"
            for (true, taken), count in mistakes.most_common(MISTAKES_SHOWN)
        ]
        return "\n".join(lines if mistakes else ["the first seed's model makes no mistake"])

    def draw_confusion(self, axes: Axes, model: nn.Module) -> None:
        """How many held-out items of each class are taken for each."""
        names, count = self.classes, len(self.classes)
        pairs = self.truth() * count + self.predictions(model)
        table = torch.bincount(pairs, minlength=count * count).view(count, count)
        axes.imshow(table.numpy(), cmap="Blues")
        for true, taken in table.nonzero().tolist():
            number = int(table[true, taken])
            colour = "white" if 2 * number > int(table.max()) else "black"
            axes.text(taken, true, str(number), ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(count), names, rotation=90 if len(max(names, key=len)) > 2 else 0)
        axes.set_yticks(range(count), names)
        axes.set(xlabel="taken for", ylabel="is", title="Held-out sequences")


def collate(items: Sequence[Labelled]) -> Batch:
    sequences, lengths = pad([sequence for sequence, _ in items])
    return sequences, lengths, torch.tensor([label for _, label in items])
