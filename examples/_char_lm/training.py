"""Truncated backpropagation through time, one backend at a time, stoppable between any two steps."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from _shared import ExampleError
from _shared.interrupt import Interrupt
from _shared.progress import progress
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from .corpus import Corpus, cut_streams
from .model import Inference, State, build_model, detach, is_bf16
from .options import Recipe


@dataclass
class History:
    """What a run has measured so far; losses are bits per character."""

    losses: list[float] = field(default_factory=list)  # of every step
    seconds: list[float] = field(default_factory=list)  # of every step
    held_out: list[float] = field(default_factory=list)  # after every epoch


class Run:
    """One backend's training: model, optimizer, carried state, and the history, which gives the position.

    The methods that say so may be otherwise where several processes share the work.
    """

    shows_progress = True

    def __init__(
        self, backend: str, recipe: Recipe, corpus: Corpus, device: str, compiled: bool = False
    ) -> None:
        self.backend = backend
        self.recipe = recipe
        self.history = History()
        self.model = build_model(backend, len(corpus.vocabulary), recipe).to(device)
        self._called = self._wrap(self.model)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.lr, fused=True)
        self._score, self._update = self._model_and_loss, self._optimizer.step
        if compiled:
            # Graphs count per function, of all runs together, up to a limit: each run begins with none.
            torch.compiler.reset()
            self._score = torch.compile(self._score, fullgraph=True)
            self._update = torch.compile(self._update)
        self._state: State | None = None
        self._training, self._held_out = (
            [self._share(part).to(device) for part in cut_streams(characters, recipe.batch)]
            for characters in (corpus.training, corpus.held_out)
        )

    @property
    def steps_of_an_epoch(self) -> int:
        return len(self._training[0]) // self.recipe.steps

    @property
    def characters_of_a_step(self) -> int:
        return self.recipe.batch * self.recipe.steps

    @property
    def epochs_done(self) -> int:
        return len(self.history.held_out)

    @property
    def epochs_begun(self) -> int:
        return math.ceil(len(self.history.losses) / self.steps_of_an_epoch)

    def train_epoch(self, epochs: int, interrupt: Interrupt) -> bool:
        """Train to the end of the present epoch, out of `epochs`; False when interrupted before that."""
        epoch = self.epochs_done + 1
        done = len(self.history.losses) - self.epochs_done * self.steps_of_an_epoch
        with progress(
            f"{self.backend} epoch {epoch}/{epochs}",
            self.steps_of_an_epoch * self.characters_of_a_step,
            done * self.characters_of_a_step,
            unit="char",
            unit_scale=True,
            disable=not self.shows_progress,
        ) as bar:
            for window in range(done, self.steps_of_an_epoch):
                if interrupt.requested():
                    return False
                self.step(window)
                bar.set_postfix_str(f"{self.history.losses[-1]:.3f} bits/char", refresh=False)
                bar.update(self.characters_of_a_step)
        self.history.held_out.append(self.evaluate())
        return True

    def step(self, window: int) -> None:
        """Train on one window of the epoch; the time taken is that of all the work a step needs."""
        started = time.perf_counter()
        carried = self._state if window else None
        self.model.train()
        loss, state = self._loss(self._score, self._training, window * self.recipe.steps, carried)
        self._optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self._update()
        self._state = detach(state)
        # Reading the loss waits for the device, so it belongs before the clock is read.
        self.history.losses.append(self._mean(loss) / math.log(2))
        self.history.seconds.append(time.perf_counter() - started)

    def evaluate_weights(self, kind: str) -> float:
        """As `evaluate`, the recurrent layers' weights stored as rnnfused.Frozen stores that kind."""
        layers = self.model.recurrent
        self.model.recurrent = Inference(layers, kind)
        try:
            return self.evaluate()
        finally:
            self.model.recurrent = layers

    @torch.no_grad()
    def evaluate(self) -> float:
        """Bits per character on the held-out text, the state carried from its start to its end.

        Never compiled: without gradients, in a shorter last window and with other weights it would need
        graphs of its own.
        """
        self.model.eval()
        state: State | None = None
        total, length = 0.0, len(self._held_out[0])
        for start in range(0, length, self.recipe.steps):
            loss, state = self._loss(self._model_and_loss, self._held_out, start, state)
            total += self._mean(loss) * min(self.recipe.steps, length - start)
        return total / length / math.log(2)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on; the generator is the CPU's, the only one in use."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "carried": self._state,
            "history": asdict(self.history),
            "generator": torch.get_rng_state(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from `state_dict()`, on any device and with either backend."""
        self.model.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._state = _to(saved["carried"], self._training[0].device)
        self.history = History(**saved["history"])
        torch.set_rng_state(saved["generator"])

    def _loss(
        self,
        score: Callable[[Tensor, Tensor, State | None], tuple[Tensor, State]],
        streams: list[Tensor],
        start: int,
        carried: State | None,
    ) -> tuple[Tensor, State]:
        inputs, targets = (stream[start : start + self.recipe.steps] for stream in streams)
        return score(inputs, targets, carried)

    def _model_and_loss(self, inputs: Tensor, targets: Tensor, carried: State | None) -> tuple[Tensor, State]:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=is_bf16(self.backend)):
            scores, state = self._called(inputs, carried)
        return cross_entropy(scores.flatten(0, 1).float(), targets.flatten()), state

    def _wrap(self, model: nn.Module) -> nn.Module:
        """What is called in the model's place; may be otherwise."""
        return model

    def _share(self, stream: Tensor) -> Tensor:
        """The columns of [T, B] that this process reads; may be otherwise."""
        return stream

    def _mean(self, loss: Tensor) -> float:
        """The loss of the whole batch, from that of this process's columns; may be otherwise."""
        return loss.item()


def train(run: Run, epochs: int, interrupt: Interrupt, after: Callable[[bool], None]) -> None:
    """Train to the last epoch or until interrupted. `after(True)` follows each epoch, `after(False)` the part
    of one after which it stopped.

    Raises:
        ExampleError: when the run is beyond that epoch.
    """
    if run.epochs_begun > epochs:
        raise ExampleError(
            f"the checkpoint is already in epoch {run.epochs_begun}: --epochs must be at least that"
        )
    while run.epochs_done < epochs and not interrupt.requested():
        after(run.train_epoch(epochs, interrupt))


def _to(state: State | None, device: torch.device) -> State | None:
    if state is None or isinstance(state, Tensor):
        return state if state is None else state.to(device)
    return tuple(part.to(device) for part in state)
