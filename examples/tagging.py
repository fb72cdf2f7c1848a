#!/usr/bin/env python3
"""Colour Python source like an editor, without a grammar: characters, a bidirectional LSTM, a label each.

    python examples/tagging.py --quick

The standard library's own files, each character labelled by the token that Python's `tokenize` puts it in:
its kind, and whether the token begins there. Only what comes before and after tells a quote that opens a
string from one that closes it. Files are held out as a whole. Trained with rnnfused, which takes the pieces'
lengths, and with torch.nn, whose users pack them. ``docs/applications.md`` tells the options and what is
drawn.
"""

from __future__ import annotations

import io
import itertools
import keyword
import sys
import token
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _shared import ExampleError
from _shared.program import imports

with imports("tagging.py"):
    import torch
    from _shared.comparison import compare
    from _shared.data import library_sources, shuffled_split
    from _shared.example import Example, Measure, Recipe
    from _shared.options import option, positive_float, positive_int
    from _shared.ragged import mask, pad, run_ragged
    from torch import Tensor, nn
    from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD_OUT = 0.1
UNKNOWN = 0
ALL_ALIKE = "encodings"  # a folder of tables: a file held out would be nearly a copy of one trained on
EVALUATED_AT_ONCE = 128
SHOWN_LINES, SHOWN_COLUMNS = 40, 90
TEXT = {"family": "monospace", "fontsize": 8, "parse_math": False, "ha": "center", "va": "center"}

KINDS = ("name", "keyword", "number", "string", "operator", "comment")
COLOURS = ("black", "tab:purple", "tab:cyan", "tab:green", "tab:brown", "tab:gray")

# A label is 0 between tokens, and 2 * kind + 1 where a token begins, one more where it goes on.
BETWEEN = 0
LABELS = 2 * len(KINDS) + 1

Batch = tuple[Tensor, Tensor, Tensor]  # characters [B, T], lengths [B], labels [B, T]
Span = tuple[int, int, int]  # a token: first character, the one after its last, kind


@dataclass(frozen=True)
class TaggingRecipe(Recipe):
    limit: int = option(10000, positive_int, "use at most this many pieces of source")
    epochs: int = option(5, positive_int, "passes over the training data")
    batch: int = option(16, positive_int, "pieces of a batch")
    lr: float = option(1.5e-2, positive_float, "Adam's learning rate at the start; it falls to 0 in a line")
    embedding: int = option(32, positive_int, "features of an embedded character")
    clip: float = option(0.5, positive_float, "largest norm of the gradient")
    hidden: int = option(128, positive_int, "hidden units of each direction")
    longest: int = option(400, positive_int, "characters of the longest piece")


@dataclass(frozen=True)
class Piece:
    """Some whole statements of a file, and the label of each character."""

    text: str
    labels: list[int]


class Tagger(nn.Module):
    """Embedded characters, a bidirectional LSTM, scores of every label at every character."""

    def __init__(self, characters: int, recipe: TaggingRecipe) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, recipe.embedding)
        self.recurrent = nn.LSTM(recipe.embedding, recipe.hidden, batch_first=True, bidirectional=True)
        self.scores = nn.Linear(2 * recipe.hidden, LABELS)

    def forward(self, characters: Tensor, lengths: Tensor) -> Tensor:
        """Characters [B, T] and lengths [B] -> scores [B, T, labels]."""
        output, _ = run_ragged(self.recurrent, self.embedding(characters), lengths)
        return self.scores(output)


class Tagging(Example):
    name = "tagging"
    about = "Label the characters of Python source by kind of token, with a bidirectional LSTM."
    measure = Measure("token F1", "%", higher_is_better=True, digits=2)
    recipe = TaggingRecipe
    quick: Mapping[str, object] = {"limit": 3600, "epochs": 2, "hidden": 64, "longest": 120, "seeds": 2}

    @classmethod
    def files(cls, recipe: Recipe) -> dict[str, Path]:
        """The Python files that --data names, or else the standard library's."""
        if recipe.data is None:
            paths = [path for path in library_sources() if path.parent.name != ALL_ALIKE]
        else:
            paths = sorted(path for path in Path(recipe.data).rglob("*.py") if path.is_file())
        if len(paths) < 2:
            raise ExampleError(f"--data: expected a folder of at least 2 Python files, got {len(paths)}")
        return {str(path): path for path in paths}

    def __init__(self, recipe: TaggingRecipe, files: Mapping[str, Path]) -> None:
        paths = list(files.values())
        training, held_out = shuffled_split(len(paths), HELD_OUT)
        tested = max(1, int(recipe.limit * HELD_OUT))

        def first(numbers: list[int], count: int) -> list[Piece]:
            pieces = (piece for number in numbers for piece in read(paths[number], recipe.longest))
            return list(itertools.islice(pieces, count))

        self._held_out = first(held_out, tested)
        pieces = first(training, max(1, recipe.limit - tested))
        if not pieces or not self._held_out:
            raise ExampleError(
                f"no piece of source to train on, or none to hold out, of at most {recipe.longest} characters"
            )
        self._numbers = {
            character: number
            for number, character in enumerate(
                sorted({c for piece in pieces for c in piece.text}), UNKNOWN + 1
            )
        }
        self._recipe = recipe
        self._training = [self._encode(piece) for piece in pieces]
        self._tested = [self._encode(piece) for piece in self._held_out]
        self.training_items = len(pieces)

    def describe_data(self) -> str:
        lengths = [len(labels) for _, labels in self._training]
        return (
            f"{self.training_items:,} pieces of source to train on, {len(self._held_out):,} of other files "
            f"held out, {min(lengths)} to {max(lengths)} characters, {len(self._numbers)} different"
        )

    def describe_model(self) -> str:
        return f"embedding {self._recipe.embedding}, bidirectional LSTM {self._recipe.hidden}, softmax"

    def build(self) -> nn.Module:
        return Tagger(len(self._numbers) + 1, self._recipe)

    def batch(self, items: list[int]) -> Batch:
        return collate([self._training[item] for item in items])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        characters, lengths, labels = batch
        present = mask(lengths)
        return cross_entropy(model(characters, lengths)[present], labels[present])

    def rate(self, recipe: Recipe, progress: float) -> float:
        return recipe.lr * (1 - progress)

    def quality(self, model: nn.Module, part: str) -> float:
        return 100 * sum(self._counts(model), Counts()).f1

    def show(self, model: nn.Module) -> str:
        lines = ["token F1 by kind, in %, of the first seed's model:"]
        for kind, counts in zip(KINDS, self._counts(model), strict=True):
            lines.append(f"  {kind:<10}{100 * counts.f1:>8.2f}{counts.true:>10,} tokens")
        return "\n".join(lines)

    def pictures(self, model: nn.Module) -> dict[str, tuple[tuple[float, float], Callable[[Figure], None]]]:
        wrong = [
            (piece, labels)
            for piece, labels in zip(self._held_out, self._predict(model), strict=True)
            if labels != piece.labels
        ]
        return {"highlighted.png": ((7, 7), lambda figure: draw(figure, wrong))}

    def _predict(self, model: nn.Module) -> Iterator[list[int]]:
        """The labels that the model gives to each of the pieces held out."""
        for start in range(0, len(self._tested), EVALUATED_AT_ONCE):
            characters, lengths, _ = collate(self._tested[start : start + EVALUATED_AT_ONCE])
            labels = model(characters, lengths).argmax(2)
            for row, length in zip(labels.tolist(), lengths.tolist(), strict=True):
                yield row[:length]

    def _counts(self, model: nn.Module) -> list[Counts]:
        """Of each kind."""
        found, true, both = (Counter[int]() for _ in range(3))
        for piece, labels in zip(self._held_out, self._predict(model), strict=True):
            predicted, expected = set(spans(labels)), set(spans(piece.labels))
            for counter, tokens in ((found, predicted), (true, expected), (both, predicted & expected)):
                counter.update(kind for _, _, kind in tokens)
        return [Counts(found[kind], true[kind], both[kind]) for kind in range(len(KINDS))]

    def _encode(self, piece: Piece) -> tuple[Tensor, Tensor]:
        numbers = [self._numbers.get(character, UNKNOWN) for character in piece.text]
        return torch.tensor(numbers), torch.tensor(piece.labels)


@dataclass(frozen=True)
class Counts:
    """Tokens that a model has found, that there are, and that are both: the same characters and kind."""

    found: int = 0
    true: int = 0
    both: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.found + other.found, self.true + other.true, self.both + other.both)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 1 where there is nothing to find."""
        return 2 * self.both / (self.found + self.true) if self.found + self.true else 1.0


def spans(labels: Sequence[int]) -> Iterator[Span]:
    """The tokens that labels stand for; one that goes on without having begun begins there."""
    begin = 0
    for end in range(1, len(labels) + 1):
        kind = (labels[begin] - 1) // 2
        goes_on = end < len(labels) and labels[begin] != BETWEEN and labels[end] == 2 * kind + 2
        if not goes_on:
            if labels[begin] != BETWEEN:
                yield begin, end, kind
            begin = end


def read(path: Path, longest: int) -> Iterator[Piece]:
    """The pieces of a file; none of one that this Python cannot read."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
        lines = list(io.StringIO(text))  # a form feed ends no line, as it would for splitlines()
        tokens = list(tokenize.generate_tokens(iter(lines).__next__))
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError):
        return
    starts = [0, *itertools.accumulate(map(len, lines))]
    labels = [BETWEEN] * len(text)
    for begin, end, kind in labelled(tokens, starts):
        labels[begin] = 2 * kind + 1
        labels[begin + 1 : end] = [2 * kind + 2] * (end - begin - 1)
    for begin, end in cut(text, [starts[row] for row in statement_ends(tokens)], longest):
        yield Piece(text[begin:end], labels[begin:end])


def labelled(tokens: Iterable[tokenize.TokenInfo], starts: Sequence[int]) -> Iterator[Span]:
    """Every token that has a kind. starts: the first character of each line.

    From 3.12 on, tokenize takes f-strings apart; here they are strings, as before.
    """
    depth, first = 0, 0
    for item in tokens:
        begin, end = (starts[row - 1] + column for row, column in (item.start, item.end))
        name = token.tok_name[item.type]
        if name.endswith("STRING_START"):
            first = begin if depth == 0 else first
            depth += 1
        elif name.endswith("STRING_END"):
            depth -= 1
            begin, name = first, "STRING"
        if depth == 0 and (kind := kind_of(name, item.string)) is not None:
            yield begin, end, KINDS.index(kind)


def kind_of(name: str, text: str) -> str | None:
    """The kind of a token by tokenize's name for it; None of line ends and indentation."""
    if name == "NAME":
        return "keyword" if keyword.iskeyword(text) else "name"
    return {"NUMBER": "number", "STRING": "string", "OP": "operator", "COMMENT": "comment"}.get(name)


def statement_ends(tokens: Iterable[tokenize.TokenInfo]) -> Iterator[int]:
    """The lines, counted from 1, after which no statement goes on; blank lines and comments count as such."""
    inside = False
    for item in tokens:
        if item.type == token.NEWLINE or (item.type == token.NL and not inside):
            inside = False
            yield item.start[0]
        elif item.type not in (token.NL, token.COMMENT, token.INDENT, token.DEDENT):
            inside = True


def cut(text: str, ends: Iterable[int], longest: int) -> Iterator[tuple[int, int]]:
    """Where pieces begin and end: at blank lines, and where the next statement would make one too long.

    A statement that is too long by itself is left out. ends: of statements.
    """
    begin = end = 0
    for following in ends:
        is_blank = text[end:following].isspace()
        if is_blank or following - begin > longest:
            if begin < end:
                yield begin, end
            begin = following if is_blank or following - end > longest else end
        end = following
    if begin < end:
        yield begin, end


def collate(items: Sequence[tuple[Tensor, Tensor]]) -> Batch:
    characters, lengths = pad([characters for characters, _ in items])
    labels, _ = pad([labels for _, labels in items])
    return characters, lengths, labels


def draw(figure: Figure, pieces: Iterable[tuple[Piece, list[int]]]) -> None:
    """Source in the colours of the predicted kinds; a character with a wrong label has a red ground."""
    axes = figure.subplots()
    row = 0
    for piece, labels in pieces:
        if row + piece.text.count("\n") > SHOWN_LINES:
            break
        column = 0
        for character, label, expected in zip(piece.text, labels, piece.labels, strict=True):
            colour = "black" if label == BETWEEN else COLOURS[(label - 1) // 2]
            if label != expected:
                axes.broken_barh([(column - 0.5, 1)], (row - 0.5, 1), color="mistyrose", zorder=0)
            if character != "\n":
                axes.text(column, row, character, color=colour, clip_on=True, **TEXT)
            row, column = (row + 1, 0) if character == "\n" else (row, column + 1)
        row += 1
    axes.set(xlim=(-1, SHOWN_COLUMNS), ylim=(SHOWN_LINES, -1), title="Held-out pieces with an error, marked")
    axes.set_axis_off()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code: 0, 2 after an error, 130 after Ctrl-C."""
    return compare(Tagging, arguments)


if __name__ == "__main__":
    sys.exit(main())
