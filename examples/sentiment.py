#!/usr/bin/env python3
"""Tell a film review's praise from its blame: words, a bidirectional LSTM, a softmax.

    python examples/sentiment.py --quick

10,604 sentences of film reviews, each with the mean rating of some readers (Hutto and Gilbert, 2014); those
above 0 are positive, those below negative. Trained with rnnfused, which takes the sentences' lengths, and
with torch.nn, whose users pack them. ``docs/applications.md`` tells the options and what is written.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _shared import ExampleError
from _shared.program import imports

with imports("sentiment.py"):
    import torch
    from _shared.classification import Classification, collate
    from _shared.comparison import compare
    from _shared.data import shuffled_split
    from _shared.example import Recipe
    from _shared.options import option, positive_float, positive_int, share
    from _shared.ragged import mask, run_ragged
    from torch import Tensor, nn
    from torch.nn.functional import dropout

HELD_OUT = 0.1
UNKNOWN, SEEN_TWICE = 0, 2  # a word of the training sentences has a number of its own if it is there twice
SHOWN = 5
CLASSES = ("negative", "positive")


@dataclass(frozen=True)
class SentimentRecipe(Recipe):
    epochs: int = option(4, positive_int, "passes over the training data")
    lr: float = option(4e-3, positive_float, "Adam's learning rate")
    embedding: int = option(100, positive_int, "features of an embedded word")
    hidden: int = option(128, positive_int, "hidden units of each direction")
    dropout: float = option(0.5, share, "share of the embedding's and of the pooled features that is dropped")


class Classifier(nn.Module):
    """Embedded words, a bidirectional LSTM, the largest value of each feature over a sentence, scores."""

    def __init__(self, words: int, recipe: SentimentRecipe) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, recipe.embedding)
        self.recurrent = nn.LSTM(recipe.embedding, recipe.hidden, batch_first=True, bidirectional=True)
        self.scores = nn.Linear(2 * recipe.hidden, len(CLASSES))
        self._dropout = recipe.dropout

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Words [B, T] and lengths [B] -> scores [B, classes]."""
        embedded = self.embedding(words)
        # One mask a sentence, the same for all of its words (Gal and Ghahramani 2016).
        kept = embedded.new_ones(len(words), 1, embedded.size(2))
        embedded = embedded * dropout(kept, self._dropout, self.training)
        output, _ = run_ragged(self.recurrent, embedded, lengths)
        pooled = output.masked_fill(~mask(lengths).unsqueeze(2), -torch.inf).amax(1)
        return self.scores(dropout(pooled, self._dropout, self.training))


class Sentiment(Classification):
    name = "sentiment"
    about = "Tell positive from negative sentences of film reviews by a bidirectional LSTM."
    data_set = "movie-snippets"
    classes = CLASSES
    recipe = SentimentRecipe
    quick: Mapping[str, object] = {"epochs": 3, "hidden": 96, "limit": 9000}

    def __init__(self, recipe: SentimentRecipe, files: Mapping[str, Path]) -> None:
        (path,) = files.values()
        of_file = read(path)  # the positive ones first
        sentences = [of_file[item] for item in shuffled_split(len(of_file))[0][: recipe.limit]]
        training, held_out = shuffled_split(len(sentences), HELD_OUT)
        counts = Counter(word for item in training for word in tokenize(sentences[item][0]))
        known = sorted(word for word, count in counts.items() if count >= SEEN_TWICE)
        self._numbers = {word: number for number, word in enumerate(known, UNKNOWN + 1)}
        self._recipe = recipe
        self.training = [self._encode(*sentences[item]) for item in training]
        self.held_out = [self._encode(*sentences[item]) for item in held_out]
        self._shown = [sentences[item] for item in held_out[:SHOWN]]

    def describe_data(self) -> str:
        lengths = [len(words) for words, _ in self.training]
        return (
            f"{self.training_items:,} sentences to train on, {len(self.held_out):,} held out, "
            f"{min(lengths)} to {max(lengths)} words, {len(self._numbers):,} different"
        )

    def describe_model(self) -> str:
        recipe = self._recipe
        return f"embedding {recipe.embedding}, bidirectional LSTM {recipe.hidden}, maximum over time, softmax"

    def build(self) -> nn.Module:
        return Classifier(len(self._numbers) + 1, self._recipe)

    def show(self, model: nn.Module) -> str:
        words, lengths, _ = collate(self.held_out[:SHOWN])
        probabilities = model(words, lengths).softmax(1)[:, 1]
        lines = ["probability of being positive, by the first seed's model:"]
        for (text, rating), probability in zip(self._shown, probabilities.tolist(), strict=True):
            lines.append(f"  {probability:.2f}  (readers: {rating:+.1f})  {text}")
        return "\n".join(lines)

    def _encode(self, text: str, rating: float) -> tuple[Tensor, int]:
        numbers = [self._numbers.get(word, UNKNOWN) for word in tokenize(text)]
        return torch.tensor(numbers), int(rating > 0)


def read(path: Path) -> list[tuple[str, float]]:
    """Each sentence that has a word, and its mean rating, unless that is 0.

    Raises:
        ExampleError: when a line is not `number<TAB>rating<TAB>text`, or there are too few.
    """
    sentences = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            _, rating, text = line.split("\t", 2)
            if not math.isfinite(float(rating)):
                raise ValueError("not a rating")
            sentences.append((text, float(rating)))
        except ValueError as error:
            raise ExampleError(f"{path}, line {number}: expected number, rating and text") from error
    usable = [(text, rating) for text, rating in sentences if rating and tokenize(text)]
    if len(usable) < 2:
        raise ExampleError(f"{path}: expected at least 2 rated sentences, got {len(usable)}")
    return usable


def tokenize(text: str) -> list[str]:
    """Words in lower case, and the marks that colour a sentence."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?|[!?]", text.lower())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code: 0, 2 after an error, 130 after Ctrl-C."""
    return compare(Sentiment, arguments)


if __name__ == "__main__":
    sys.exit(main())
