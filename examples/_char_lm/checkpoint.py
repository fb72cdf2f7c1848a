"""One file that holds every run of a comparison, so that whichever was interrupted goes on exactly."""

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import DemoError
from .corpus import Corpus, load_corpus
from .options import DEFAULT_EPOCHS, Recipe

_FORMAT = "rnnfused char_lm 1"


@dataclass
class Checkpoint:
    """A recipe, the fingerprint of its text, the epochs aimed at, and the state of each backend's run."""

    recipe: Recipe
    fingerprint: str
    epochs: int
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write to a neighbour and rename it: a crash leaves the previous checkpoint whole."""
        unfinished = path.with_name(path.name + ".unfinished")
        with unfinished.open("wb") as file:
            torch.save({"format": _FORMAT, **vars(self), "recipe": asdict(self.recipe)}, file)
        os.replace(unfinished, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; only tensors and plain values are unpickled, never code.

    Raises:
        DemoError: when the file is missing, or is not a checkpoint of this demo.
    """
    if not path.is_file():
        raise DemoError(f"checkpoint not found: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != _FORMAT:
            raise ValueError("another format")
        return Checkpoint(**{**content, "recipe": Recipe(**content["recipe"])})
    except Exception as error:  # torch.load raises nearly anything, depending on which byte is wrong
        raise DemoError(f"not a checkpoint of this demo: {path}") from error


def begin(saved: Checkpoint | None, given: dict[str, Any], epochs: int | None) -> tuple[Checkpoint, Corpus]:
    """The checkpoint to continue, or an empty one, and the text it is about. given: the options of the recipe
    that the command line names; epochs: those it asks for.

    Raises:
        DemoError: when the options or the text do not fit the checkpoint, or the text cannot be used.
    """
    if saved is None:
        recipe = Recipe(**given)
        corpus = load_corpus(recipe)
        return Checkpoint(recipe, corpus.fingerprint, epochs or DEFAULT_EPOCHS), corpus
    recipe = resumed_recipe(saved, given)
    corpus = load_corpus(recipe)
    if corpus.fingerprint != saved.fingerprint:
        raise DemoError("the checkpoint was trained on another text")
    return replace(saved, recipe=recipe, epochs=epochs or saved.epochs), corpus


def resumed_recipe(checkpoint: Checkpoint, given: dict[str, Any]) -> Recipe:
    """The checkpoint's recipe; what the command line gives must agree with it.

    The path of the text may differ, for the same text can lie elsewhere: its fingerprint is what counts.

    Raises:
        DemoError: naming every option that differs.
    """
    saved = asdict(checkpoint.recipe)
    differing = [
        f"--{name} {value} (checkpoint: {saved[name]})"
        for name, value in given.items()
        if name != "text" and value != saved[name]
    ]
    if differing:
        raise DemoError(f"the checkpoint was made with other options than {', '.join(differing)}")
    return replace(checkpoint.recipe, text=given.get("text", checkpoint.recipe.text))
