"""One backend's training from one seed, stoppable between any two steps."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from .example import RNNFUSED, TEST, VALIDATION, Example, Recipe
from .interrupt import Interrupt
from .progress import progress


@dataclass
class History:
    """What a run has measured so far."""

    losses: list[float] = field(default_factory=list)  # of every step
    seconds: list[float] = field(default_factory=list)  # of every step
    quality: dict[str, list[float]] = field(default_factory=dict)  # by part, after every epoch


class Run:
    """Model, optimizer, random generator, and the history, which gives the position."""

    def __init__(self, example: Example, recipe: Recipe, backend: str, seed: int) -> None:
        self.backend, self.seed = backend, seed
        self.history = History(quality={part: [] for part in example.parts})
        self._example, self._recipe = example, recipe
        torch.manual_seed(seed)
        model = example.build()
        self._generator = torch.get_rng_state()  # of dropout: the same for both backends
        self.model: nn.Module = example.convert(model) if backend == RNNFUSED else model
        self._optimizer = example.optimizer(self.model, recipe)

    @property
    def key(self) -> str:
        """The run's name in a checkpoint."""
        return f"{self.seed} {self.backend}"

    @property
    def steps_of_an_epoch(self) -> int:
        return math.ceil(self._example.training_items / self._recipe.batch)

    @property
    def epochs_done(self) -> int:
        return len(self.history.quality[TEST])

    @property
    def is_finished(self) -> bool:
        return self.epochs_done == self._recipe.epochs

    @property
    def chosen_epoch(self) -> int:
        """The epoch, counted from 0, whose quality counts: the best in validation, or the last."""
        values = self.history.quality.get(VALIDATION)
        if values is None:
            return self.epochs_done - 1
        best = max if self._example.measure.higher_is_better else min
        return values.index(best(values))

    @property
    def test_quality(self) -> float:
        return self.history.quality[TEST][self.chosen_epoch]

    @property
    def epoch_losses(self) -> list[float]:
        """The mean training loss of each whole epoch."""
        steps, losses = self.steps_of_an_epoch, self.history.losses
        return [fmean(losses[epoch * steps : (epoch + 1) * steps]) for epoch in range(self.epochs_done)]

    @property
    def epoch_ends(self) -> list[float]:
        """The seconds of training until the end of each whole epoch."""
        steps = self.steps_of_an_epoch
        return [sum(self.history.seconds[: (epoch + 1) * steps]) for epoch in range(self.epochs_done)]

    @cached_property
    def further(self) -> dict[str, float]:
        """What the example measures besides, once training is finished, by the measure's name."""
        self.model.eval()
        with torch.no_grad():
            values = self._example.further(self.model)
        named = zip(self._example.also, values, strict=True)
        return {measure.name: value for measure, value in named}

    def train_epoch(self, interrupt: Interrupt) -> bool:
        """Train to the end of the present epoch and measure quality; False when interrupted before that."""
        done = len(self.history.losses) - self.epochs_done * self.steps_of_an_epoch
        label = f"seed {self.seed} {self.backend} epoch {self.epochs_done + 1}/{self._recipe.epochs}"
        order = self._order()
        with self._own_generator(), progress(label, self.steps_of_an_epoch, done, unit="step") as bar:
            for step in range(done, self.steps_of_an_epoch):
                if interrupt.requested():
                    return False
                self.step(order[step * self._recipe.batch : (step + 1) * self._recipe.batch])
                bar.set_postfix_str(f"loss {self.history.losses[-1]:.3f}", refresh=False)
                bar.update()
            measured = {part: self._measure(part) for part in self._example.parts}
        for part, value in measured.items():
            self.history.quality[part].append(value)
        return True

    def step(self, items: list[int]) -> None:
        """Train on a batch; the time taken is that of forward, loss, backward, clipping and optimizer."""
        batch = self._example.batch(items)
        steps = self._recipe.epochs * self.steps_of_an_epoch
        rate = self._example.rate(self._recipe, len(self.history.losses) / steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        started = time.perf_counter()
        self._optimizer.zero_grad()
        loss = self._example.loss(self.model, batch)
        loss.backward()
        clip_grad_norm_(self.model.parameters(), self._recipe.clip)
        self._optimizer.step()
        self.history.losses.append(loss.item())
        self.history.seconds.append(time.perf_counter() - started)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on; a run that is finished keeps its model alone."""
        return {
            "model": self.model.state_dict(),
            "optimizer": None if self.is_finished else self._optimizer.state_dict(),
            "history": asdict(self.history),
            "generator": self._generator,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.model.load_state_dict(saved["model"])
        if saved["optimizer"] is not None:
            self._optimizer.load_state_dict(saved["optimizer"])
        self.history = History(**saved["history"])
        self._generator = saved["generator"]

    def _order(self) -> list[int]:
        """The training items as the present epoch shuffles them: the seed and the epoch alone decide."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs_done + 1):
            order = torch.randperm(self._example.training_items, generator=generator)
        return order.tolist()

    @contextmanager
    def _own_generator(self) -> Iterator[None]:
        """Runs take turns: each goes on with the random numbers where its own last turn ended."""
        torch.set_rng_state(self._generator)
        try:
            yield
        finally:
            self._generator = torch.get_rng_state()

    @torch.no_grad()
    def _measure(self, part: str) -> float:
        self.model.eval()
        return self._example.quality(self.model, part)
