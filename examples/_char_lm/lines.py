"""Training on the text's lines: sequences of unequal length, which torch.nn's users pack."""

import time
from collections.abc import Iterator
from statistics import median

import torch
from _shared.ragged import mask, pad, run_ragged
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from .corpus import Corpus
from .model import build_model
from .options import Recipe

STEPS = 12  # that are timed, after one that is not
LONGEST = 256  # characters of a line that are read


def line_rates(backends: tuple[str, ...], recipe: Recipe, corpus: Corpus) -> dict[str, float]:
    """Characters per second of training on batches of the text's lines, drawn by the recipe's seed: the
    median over the same batches for every backend, which take turns. Empty where the text has no lines.
    """
    trained = {backend: build_model(backend, len(corpus.vocabulary), recipe) for backend in backends}
    optimizers = {
        name: torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
        for name, model in trained.items()
    }
    rates: dict[str, list[float]] = {backend: [] for backend in backends}
    for batch in _batches(recipe, corpus):
        for backend in backends:
            started = time.perf_counter()
            _step(trained[backend], optimizers[backend], recipe.clip, *batch)
            rates[backend].append(int(batch[2].sum()) / (time.perf_counter() - started))
    return {backend: median(of[1:]) for backend, of in rates.items() if len(of) > 1}


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float,
    inputs: Tensor,
    targets: Tensor,
    lengths: Tensor,
) -> None:
    model.train()
    output, _ = run_ragged(model.recurrent, model.embedding(inputs), lengths)
    there = mask(lengths).t()
    loss = cross_entropy(model.scores(output[there]), targets[there])
    optimizer.zero_grad()
    loss.backward()
    clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def _batches(recipe: Recipe, corpus: Corpus) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs and targets [T, B], one character apart, and lengths [B]."""
    ends = (corpus.training == corpus.vocabulary.find("\n")).nonzero().flatten() + 1
    lines = [line[:LONGEST] for line in corpus.training.tensor_split(ends) if len(line) > 1]
    if not lines:
        return
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(1 + STEPS):
        drawn = [lines[i] for i in torch.randint(len(lines), (recipe.batch,), generator=generator).tolist()]
        inputs, lengths = pad([line[:-1] for line in drawn], batch_first=False)
        targets, _ = pad([line[1:] for line in drawn], batch_first=False)
        yield inputs, targets, lengths
