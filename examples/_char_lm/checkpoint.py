"""One file that holds every run of a comparison, so that whichever was interrupted goes on exactly."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from _shared import ExampleError
from _shared.checkpoint import read_checkpoint, save_checkpoint
from _shared.options import resumed_recipe

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
        """Replace the file at once: a crash leaves the previous checkpoint whole."""
        save_checkpoint(path, _FORMAT, {**vars(self), "recipe": asdict(self.recipe)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ExampleError: when the file is missing, or is not a checkpoint of this demo.
    """
    return read_checkpoint(path, _FORMAT, "this demo", from_content)


def from_content(content: dict[str, Any]) -> Checkpoint:
    """The checkpoint whose fields, the recipe's as a dict, are `content`."""
    return Checkpoint(**{**content, "recipe": Recipe(**content["recipe"])})


def begin(saved: Checkpoint | None, given: dict[str, Any], epochs: int | None) -> tuple[Checkpoint, Corpus]:
    """The checkpoint to continue, or an empty one, and the text it is about. given: the options of the recipe
    that the command line names; epochs: those it asks for.

    Raises:
        ExampleError: when the options or the text do not fit the checkpoint, or the text cannot be used.
    """
    if saved is None:
        recipe = Recipe(**given)
        corpus = load_corpus(recipe)
        return Checkpoint(recipe, corpus.fingerprint, epochs or DEFAULT_EPOCHS), corpus
    recipe = resumed_recipe(saved.recipe, given, path=("text",))
    corpus = load_corpus(recipe)
    if corpus.fingerprint != saved.fingerprint:
        raise ExampleError("the checkpoint was trained on another text")
    return replace(saved, recipe=recipe, epochs=epochs or saved.epochs), corpus
