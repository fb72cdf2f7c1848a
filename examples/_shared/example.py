"""What an example supplies; everything else is the harness's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

import rnnfused

from .data import find
from .options import absolute_path, option, positive_float, positive_int, seed_int

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RNNFUSED, TORCH = "rnnfused", "torch.nn"

# A part of the data on which quality is measured after each epoch.
VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True)
class Measure:
    """What quality is: its name, its unit, and which of two values is the better one."""

    name: str
    unit: str
    higher_is_better: bool
    digits: int = 1

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}{self.unit and ' ' + self.unit}"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which numbers training produces; a checkpoint fixes it. An example adds its own
    fields to these, and gives them defaults of its own.
    """

    data: str | None = option(None, absolute_path, "a copy of the data: the file, or the folder of its files")
    limit: int | None = option(None, positive_int, "use at most this many items of the data")
    epochs: int = option(4, positive_int, "passes over the training data")
    batch: int = option(32, positive_int, "items of a batch")
    lr: float = option(1e-3, positive_float, "Adam's learning rate")
    clip: float = option(1.0, positive_float, "largest norm of the gradient")
    seed: int = option(0, seed_int, "the first seed, of initial weights, dropout and the order of batches")
    seeds: int = option(3, positive_int, "how many seeds, each of which trains every backend")


class Example(ABC):
    """An application: its data, its model, the loss of a batch and the quality of a model.

    An instance has read the data. It keeps nothing of a model, for all runs share it.
    """

    name: ClassVar[str]  # of the program, without .py
    about: ClassVar[str]  # one sentence for --help
    data_set: ClassVar[
        str
    ]  # of DATA_SETS; one that chooses among them, or has other files, overrides `files`
    measure: ClassVar[Measure]
    also: ClassVar[tuple[Measure, ...]] = ()  # what `further` measures
    parts: ClassVar[tuple[str, ...]] = (TEST,)  # with VALIDATION before it, the best epoch there counts
    recipe: ClassVar[type[Recipe]] = Recipe
    quick: ClassVar[Mapping[str, Any]] = {}  # what --quick sets of the recipe

    training_items: int  # set by __init__

    @classmethod
    def files(cls, recipe: Recipe) -> dict[str, Path]:
        """The files that the example reads, by name: a checkpoint's data must have the same bytes."""
        return find(cls.data_set, Path(recipe.data) if recipe.data else None)

    @abstractmethod
    def __init__(self, recipe: Recipe, files: Mapping[str, Path]) -> None:
        """Read the data. Raises ExampleError when it is not what it should be."""

    @abstractmethod
    def describe_data(self) -> str:
        """One line: what there is to train on, and what quality is measured on."""

    @abstractmethod
    def describe_model(self) -> str:
        """One line, without the number of parameters."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The model, of torch.nn's layers; the seed has been set."""

    def convert(self, model: nn.Module) -> nn.Module:
        """The same model of rnnfused's layers, with the same weights."""
        return rnnfused.convert(model)

    @abstractmethod
    def batch(self, items: list[int]) -> Any:
        """Some of the training items. Both backends take the same batch, and its time counts for neither."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch."""

    @abstractmethod
    def quality(self, model: nn.Module, part: str) -> float:
        """The measure on one of `parts`. The model is in eval mode and no gradients are kept."""

    def further(self, model: nn.Module) -> Sequence[float]:
        """What `also` names, on the test data, once a model is trained; the model is as for `quality`."""
        return ()

    def rate(self, recipe: Recipe, progress: float) -> float:
        """The learning rate when this share of all steps is done."""
        return recipe.lr

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)

    def show(self, model: nn.Module) -> str:
        """Lines to print of what a trained model does; the model is as for `quality`."""
        return ""

    def pictures(self, model: nn.Module) -> dict[str, tuple[tuple[float, float], Callable[[Figure], None]]]:
        """By the name of the PNG, its size in inches and what draws it; the model is as for `quality`."""
        return {}
