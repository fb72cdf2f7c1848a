#!/usr/bin/env python3
"""Write the names of places in katakana: an encoder, a decoder that attends, and beam search.

    python examples/transliterate.py --quick

Some 2,000 names of countries and their regions, in Latin script and in Japanese, character by character.
Trained with rnnfused.seq2seq, and with the same model whose recurrent parts are torch.nn's: an encoder that
packs, and a decoder that loops over its cell. ``docs/applications.md`` tells the options and what is written.
"""

from __future__ import annotations

import math
import re
import struct
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from gettext import GNUTranslations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _shared import ExampleError
from _shared.program import imports

with imports("transliterate.py"):
    import torch
    from _shared.comparison import compare
    from _shared.data import shuffled_split
    from _shared.example import Example, Measure, Recipe
    from _shared.options import option, positive_float, positive_int, share
    from _shared.ragged import pad, run_ragged
    from torch import Tensor, nn
    from torch.nn.functional import cross_entropy

    from rnnfused.attention import Memory
    from rnnfused.seq2seq import AttentionDecoder, Decoded, DecoderState, Encoder, Hypothesis, generate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD_OUT = 0.1
PADDING, UNKNOWN, BEGIN, END = range(4)  # the numbers that stand for no character
NO_CHARACTER = ("(padding)", "(unknown)", "(begin)", "(end)")  # their labels
WIDTH = 5  # of the beam
WARM_UP = 0.05  # share of the steps
SHOWN, DRAWN = 12, 4

KATAKANA = re.compile("[ァ-ヺー・]+")
MARKS = {"ー": "\N{EN DASH}", "・": "\N{MIDDLE DOT}"}  # the two that are no letters

Pair = tuple[Tensor, Tensor]
Batch = tuple[Tensor, Tensor, Tensor]  # sources [S, B], lengths [B], targets [T, B]


@dataclass(frozen=True)
class TransliterationRecipe(Recipe):
    epochs: int = option(24, positive_int, "passes over the training data")
    lr: float = option(5e-3, positive_float, "Adam's largest learning rate")
    embedding: int = option(48, positive_int, "features of an embedded character")
    hidden: int = option(
        128, positive_int, "hidden units of the decoder, and of each of the encoder's directions"
    )
    dropout: float = option(0.2, share, "share of the embeddings and of the last features that is dropped")
    smoothing: float = option(0.1, share, "share of a target's probability that all characters divide")


class Alphabet:
    """The characters of some texts, by number."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._characters = sorted(set().union(*texts))
        self._numbers = {character: number for number, character in enumerate(self._characters, END + 1)}

    def __len__(self) -> int:
        return END + 1 + len(self._characters)

    def encode(self, text: str) -> list[int]:
        return [self._numbers.get(character, UNKNOWN) for character in text]

    def decode(self, numbers: Iterable[int]) -> str:
        return "".join(self._characters[number - END - 1] for number in numbers if number > END)


class Transliterator(nn.Module):
    """A bidirectional GRU reads, a GRU that attends to what was read (Bahdanau et al. 2015) writes."""

    decoder_class: type[AttentionDecoder] = AttentionDecoder

    def __init__(self, latin: int, katakana: int, recipe: TransliterationRecipe) -> None:
        super().__init__()
        sizes, options = (recipe.embedding, recipe.hidden), {"cell": "gru", "dropout": recipe.dropout}
        self.encoder = Encoder(latin, *sizes, **options)
        self.decoder = self.decoder_class(katakana, *sizes, self.encoder.output_size, **options)

    def forward(self, sources: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Scores [T, B, characters] of what follows each of the targets [T, B]."""
        return self.decoder(targets, *self.read(sources, lengths)).scores

    def read(self, sources: Tensor, lengths: Tensor) -> tuple[Memory, DecoderState]:
        outputs, final = self.encoder(sources, lengths)
        return self.decoder.prepare(outputs, final, lengths)

    def write(self, sources: Tensor, lengths: Tensor, steps: int, width: int) -> list[Hypothesis]:
        found = generate(self.decoder, *self.read(sources, lengths), BEGIN, END, steps, width=width)
        return [best for (best,) in found]


class PackingGRU(nn.GRU):
    """torch.nn's layer, called as rnnfused's: lengths have it pack, and pad again."""

    def forward(self, input: Any, hx: Tensor | None = None, lengths: Tensor | None = None) -> Any:
        if lengths is None:
            return super().forward(input, hx)
        return run_ragged(self, input, lengths)


class LoopingDecoder(AttentionDecoder):
    """The same decoder as torch's users write it: what depends on the step before it, attention and
    torch.nn.GRUCell's operation, is a loop in Python, and all else is done at once.
    """

    def forward(
        self, tokens: Tensor, memory: Memory, state: DecoderState, teacher_forcing: float = 1.0
    ) -> Decoded:
        assert teacher_forcing == 1
        own = self.recurrent
        weights = (own.weight_ih_l0, own.weight_hh_l0, own.bias_ih_l0, own.bias_hh_l0)
        embedded = self.dropout(self.embedding(tokens))
        h = state.hx[0][-1]
        states, contexts, attended = [], [], []
        for given in embedded:
            context, weighed = self.attention.attend(h, memory)
            h = torch.gru_cell(torch.cat((given, context), -1), h, *weights)
            for kept, value in ((states, h), (contexts, context), (attended, weighed)):
                kept.append(value)
        entered = torch.cat((torch.stack(states), torch.stack(contexts), embedded), -1)
        scores = self.scores(self.dropout(torch.tanh(self.combine(entered))))
        return Decoded(scores, torch.stack(attended), DecoderState((h.unsqueeze(0),), None))

    def step(self, tokens: Tensor, memory: Memory, state: DecoderState) -> Decoded:
        scores, weights, after = self(tokens.unsqueeze(0), memory, state)
        return Decoded(scores.squeeze(0), weights.squeeze(0), after)


class TorchTransliterator(Transliterator):
    """The same model, whose recurrent parts are torch.nn's."""

    decoder_class = LoopingDecoder

    def __init__(self, latin: int, katakana: int, recipe: TransliterationRecipe) -> None:
        super().__init__(latin, katakana, recipe)
        self.encoder.recurrent = PackingGRU(recipe.embedding, recipe.hidden, bidirectional=True)


class Transliteration(Example):
    name = "transliterate"
    about = "Write the names of places in katakana by an encoder, a decoder with attention and beam search."
    data_set = "names-ja"
    measure = Measure("character error rate", "%", higher_is_better=False)
    also = (Measure("exact match", "%", higher_is_better=True),)
    recipe = TransliterationRecipe
    quick: Mapping[str, object] = {"epochs": 10, "hidden": 96, "dropout": 0.1, "seeds": 2}

    def __init__(self, recipe: TransliterationRecipe, files: Mapping[str, Path]) -> None:
        names = read(files)[: recipe.limit]
        training, held_out = ([names[item] for item in part] for part in shuffled_split(len(names), HELD_OUT))
        self._latin = Alphabet(latin for latin, _ in training)
        self._katakana = Alphabet(katakana for _, katakana in training)
        self._recipe = recipe
        self._training = [self._encode(*name) for name in training]
        self._held_out = held_out
        self._steps = max(len(target) for _, target in self._training)
        self.training_items = len(training)

    def describe_data(self) -> str:
        lengths = [len(source) for source, _ in self._training]
        return (
            f"{self.training_items:,} names to train on, {len(self._held_out):,} held out, "
            f"{min(lengths)} to {max(lengths)} characters"
        )

    def describe_model(self) -> str:
        recipe = self._recipe
        return (
            f"embeddings {recipe.embedding}, bidirectional GRU {recipe.hidden}, "
            f"GRU {recipe.hidden} with additive attention, beam of {WIDTH}"
        )

    def build(self) -> nn.Module:
        return TorchTransliterator(len(self._latin), len(self._katakana), self._recipe)

    def convert(self, model: nn.Module) -> nn.Module:
        ours = Transliterator(len(self._latin), len(self._katakana), self._recipe)
        ours.load_state_dict(model.state_dict())
        return ours

    def rate(self, recipe: Recipe, progress: float) -> float:
        """Rises over the first steps, then falls to zero as a cosine does."""
        return recipe.lr * min(1.0, (progress + 0.01) / WARM_UP) * (1 + math.cos(math.pi * progress)) / 2

    def batch(self, items: list[int]) -> Batch:
        return collate([self._training[item] for item in items])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        sources, lengths, targets = batch
        scores = model(sources, lengths, targets[:-1]).flatten(0, 1)
        smoothing = self._recipe.smoothing
        return cross_entropy(scores, targets[1:].flatten(), ignore_index=PADDING, label_smoothing=smoothing)

    def quality(self, model: nn.Module, part: str) -> float:
        wanted = [katakana for _, katakana in self._held_out]
        errors = sum(map(edits, self._written(model, self._held_out), wanted))
        return 100 * errors / sum(map(len, wanted))

    def further(self, model: nn.Module) -> tuple[float]:
        written = self._written(model, self._held_out)
        right = sum(found == wanted for found, (_, wanted) in zip(written, self._held_out, strict=True))
        return (100 * right / len(written),)

    def show(self, model: nn.Module) -> str:
        shown = self._held_out[:SHOWN]
        lines = ["held-out names, by the first seed's model:"]
        ways = [self._written(model, shown, width) for width in (1, WIDTH)]
        for (latin, katakana), greedy, best in zip(shown, *ways, strict=True):
            written = unicodedata.normalize("NFC", latin)
            lines.append(f"  {written}: {katakana}; greedy {greedy}, beam of {WIDTH} {best}")
        return "\n".join(lines)

    def pictures(self, model: nn.Module) -> dict[str, tuple[tuple[float, float], Callable[[Figure], None]]]:
        names = sorted(self._held_out[:SHOWN], key=lambda name: -len(name[0]))[:DRAWN]
        found = self._found(model, names, WIDTH)

        def draw(figure: Figure) -> None:
            grid = figure.subplots(2, 2).flat
            for axes, (latin, _), best in zip(grid, names, found, strict=False):
                axes.imshow(
                    best.weights[:, : len(latin)].numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto"
                )
                axes.set_xticks(range(len(latin)), map(visible, latin))
                axes.set_yticks(range(len(best.tokens)), [self._label(token) for token in best.tokens])
            figure.suptitle(
                "Where each written character (by its Latin name; small ones in lower case) attends"
            )

        return {"attention.png": ((9, 7), draw)}

    def _label(self, token: int) -> str:
        return NO_CHARACTER[token] if token <= END else latin_name(self._katakana.decode([token]))

    def _encode(self, latin: str, katakana: str) -> Pair:
        target = [BEGIN, *self._katakana.encode(katakana), END]
        return torch.tensor(self._latin.encode(latin)), torch.tensor(target)

    def _found(self, model: nn.Module, names: Sequence[tuple[str, str]], width: int) -> list[Hypothesis]:
        sources, lengths, _ = collate([self._encode(*name) for name in names])
        return model.write(sources, lengths, self._steps, width)

    def _written(self, model: nn.Module, names: Sequence[tuple[str, str]], width: int = WIDTH) -> list[str]:
        return [self._katakana.decode(best.tokens) for best in self._found(model, names, width)]


def read(files: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Names of places and what they are in katakana, sorted.

    Kept is a Japanese name of katakana and their marks alone: any other character translates a part of the
    name. So does what the Latin side adds in brackets or behind a comma. That is in lower case, its accents
    characters of their own, so that what is learnt of a letter holds for it with any accent.

    Raises:
        ExampleError: when a file is no catalogue, or there are too few names.
    """
    names = {}
    for catalogue in (path for name, path in files.items() if name.startswith("iso3166")):
        for latin, japanese in translations(catalogue).items():
            katakana = unicodedata.normalize("NFKC", japanese)  # half-width forms become full-width
            if KATAKANA.fullmatch(katakana) and not re.search("[,(]", latin):
                names[unicodedata.normalize("NFD", latin.lower())] = katakana
    if len(names) < 2:
        raise ExampleError(f"expected at least 2 names in katakana, got {len(names)}")
    return sorted(names.items())


def translations(catalogue: Path) -> dict[str, str]:
    with catalogue.open("rb") as file:
        try:
            found = GNUTranslations(file)._catalog  # there is no public way to list them
        except (OSError, UnicodeDecodeError, struct.error) as error:
            raise ExampleError(f"not a catalogue of translations: {catalogue}") from error
    return {text: translated for text, translated in found.items() if text}  # "" has the file's header


def collate(pairs: Sequence[Pair]) -> Batch:
    sources, lengths = pad([source for source, _ in pairs], batch_first=False)
    targets, _ = pad([target for _, target in pairs], batch_first=False)
    return sources, lengths, targets


def edits(found: str, wanted: str) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and substitutions."""
    row = list(range(len(wanted) + 1))  # of nothing to each beginning of what is wanted
    for count, character in enumerate(found, 1):
        above, row = row, [count]
        for column, other in enumerate(wanted, 1):
            row.append(min(row[-1] + 1, above[column] + 1, above[column - 1] + (character != other)))
    return row[-1]


def visible(character: str) -> str:
    """An accent needs something to stand on."""
    return f"\N{DOTTED CIRCLE}{character}" if unicodedata.combining(character) else character


def latin_name(kana: str) -> str:
    """What Unicode calls it, for fonts that lack it: KA, ka if it is a small one."""
    if kana in MARKS:
        return MARKS[kana]
    *kind, letter = unicodedata.name(kana, "?").split()
    return letter.lower() if "SMALL" in kind else letter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code: 0, 2 after an error, 130 after Ctrl-C."""
    return compare(Transliteration, arguments)


if __name__ == "__main__":
    sys.exit(main())
