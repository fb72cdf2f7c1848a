"""From text to tensors: what is read, what is held out, and how windows are cut."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from _shared import ExampleError
from _shared.data import library_sources
from torch import Tensor

from .options import Recipe

HELD_OUT = 0.05
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what the decoder puts for undecodable bytes, too


@dataclass(frozen=True)
class Corpus:
    """A text split in two. Its tail is held out, and does not even contribute to the vocabulary."""

    vocabulary: str  # the character of every index; UNKNOWN is index 0
    training: Tensor  # [N] int64
    held_out: Tensor  # [M] int64
    fingerprint: str  # of the whole text: a checkpoint names the text it was trained on


def load_corpus(recipe: Recipe) -> Corpus:
    """Read and encode the text that a recipe asks for.

    Raises:
        ExampleError: when the text cannot be read, is too short for one window of every stretch, or has
            no character to train on.
    """
    text = _read(Path(recipe.text), recipe.characters) if recipe.text else _library_text(recipe.characters)
    needed = _shortest_text(recipe)
    if len(text) < needed:
        raise ExampleError(
            f"text too short: {recipe.text or 'the standard library'} gives {len(text):,} characters, "
            f"and batch {recipe.batch} x steps {recipe.steps} needs {needed:,}: "
            "use a longer text or a smaller batch or steps"
        )
    split = len(text) - int(len(text) * HELD_OUT)
    vocabulary = UNKNOWN + "".join(sorted(set(text[:split]) - {UNKNOWN}))
    if vocabulary == UNKNOWN:
        raise ExampleError(f"no text to train on: {recipe.text} gives only bytes that UTF-8 cannot decode")
    return Corpus(
        vocabulary,
        _encode(text[:split], vocabulary),
        _encode(text[split:], vocabulary),
        hashlib.sha256(text.encode()).hexdigest(),
    )


def cut_streams(characters: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Lay a text [N] out as inputs and targets, each [(N - 1) // batch, batch], one step apart.

    Column b reads the b-th of `batch` equal stretches from top to bottom, so a state carried from one window
    of rows to the next has seen the characters just before it.
    """
    length = (len(characters) - 1) // batch
    inputs = characters[: batch * length].view(batch, length)
    targets = characters[1 : batch * length + 1].view(batch, length)
    return inputs.t().contiguous(), targets.t().contiguous()


def _shortest_text(recipe: Recipe) -> int:
    one_window = recipe.batch * recipe.steps + 1
    one_held_out_step = recipe.batch + 1
    return max(math.ceil(one_window / (1 - HELD_OUT)), math.ceil(one_held_out_step / HELD_OUT))


def _encode(text: str, vocabulary: str) -> Tensor:
    index = {character: i for i, character in enumerate(vocabulary)}
    return torch.tensor([index.get(character, 0) for character in text])


def _read(path: Path, limit: int) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(limit)
    except OSError as error:
        raise ExampleError(f"cannot read the text {path}: {error.strerror}") from error


def _library_text(limit: int) -> str:
    parts: list[str] = []
    missing = limit
    for path in library_sources():
        parts.append(_read(path, missing))
        missing -= len(parts[-1])
        if not missing:
            break
    return "".join(parts)
