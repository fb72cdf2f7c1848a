"""Train an example with every backend from every seed, and compare: the program of each example."""

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import rnnfused

from . import ExampleError
from .checkpoint import read_checkpoint, save_checkpoint
from .example import RNNFUSED, TORCH, Example, Recipe
from .figures import write_figure
from .files import replacing
from .interrupt import Interrupt
from .options import OneLineParser, add_recipe, given_recipe, positive_int, resumed_recipe
from .program import run_program, stopped
from .results import Runs, as_json, table, write_plot
from .training import Run

CHECKPOINT, RESULTS, PLOT = "checkpoint.pt", "results.json", "plot.png"


@dataclass
class Checkpoint:
    """A recipe, the fingerprint of its data, and the state of each run that has begun, by the run's key."""

    recipe: Recipe
    fingerprint: str
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)


def compare(example: type[Example], arguments: Sequence[str] | None = None) -> int:
    """Run an example's program and return its exit code: 0, 2 after an error, 130 after Ctrl-C."""
    program = f"{example.name}.py"
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_program(program, lambda: _Comparison(example, program, arguments).run())


class _Comparison:
    def __init__(self, example: type[Example], program: str, arguments: Sequence[str]) -> None:
        options = _parse(example, program, arguments)
        if options.threads:
            torch.set_num_threads(options.threads)
        self._program, self._output = program, options.output
        self._command = shlex.join(["python", f"examples/{program}", *arguments])
        self._form = f"rnnfused {example.name} 1"
        self._checkpoint, files = self._begin(example, options)
        self._recipe = self._checkpoint.recipe
        self._example = example(self._recipe, files)
        self._backends = (RNNFUSED, TORCH) if options.peer == "torch" else (RNNFUSED,)

    def run(self) -> int:
        self._output.mkdir(parents=True, exist_ok=True)
        print(rnnfused.show_config())
        print(f"data: {self._example.describe_data()}\nmodel: {self._example.describe_model()}", flush=True)
        finished: dict[str, list[Run]] = {backend: [] for backend in self._backends}
        with Interrupt() as interrupt:
            for seed in range(self._recipe.seed, self._recipe.seed + self._recipe.seeds):
                runs = [self._run(backend, seed) for backend in self._backends]
                for run in _turns(runs):
                    whole = run.train_epoch(interrupt)
                    self._save(run)
                    if not whole or interrupt.requested():
                        return stopped(self._program, self._output / CHECKPOINT)
                    self._say(run)
                for run in runs:
                    finished[run.backend].append(run)
        self._write(finished)
        return 0

    def _begin(
        self, example: type[Example], options: argparse.Namespace
    ) -> tuple[Checkpoint, dict[str, Path]]:
        """The checkpoint to continue, or an empty one, and the files of its data."""
        given = {**(example.quick if options.quick else {}), **given_recipe(options, example.recipe)}
        if options.resume is None:
            recipe = example.recipe(**given)
            files = example.files(recipe)
            return Checkpoint(recipe, _fingerprint(files)), files
        saved = read_checkpoint(
            options.resume,
            self._form,
            self._program,
            lambda content: Checkpoint(**{**content, "recipe": example.recipe(**content["recipe"])}),
        )
        saved.recipe = resumed_recipe(saved.recipe, given, path=("data",))
        files = example.files(saved.recipe)
        if _fingerprint(files) != saved.fingerprint:
            raise ExampleError("the checkpoint was trained on other data")
        return saved, files

    def _run(self, backend: str, seed: int) -> Run:
        run = Run(self._example, self._recipe, backend, seed)
        if run.key in self._checkpoint.runs:
            run.load_state_dict(self._checkpoint.runs[run.key])
        return run

    def _save(self, run: Run) -> None:
        self._checkpoint.runs[run.key] = run.state_dict()
        content = {**vars(self._checkpoint), "recipe": asdict(self._recipe)}
        save_checkpoint(self._output / CHECKPOINT, self._form, content)

    def _say(self, run: Run) -> None:
        measure = self._example.measure
        latest = {part: values[-1] for part, values in run.history.quality.items()}
        quality = ", ".join(f"{part} {measure.text(value)}" for part, value in latest.items())
        print(
            f"seed {run.seed} {run.backend} epoch {run.epochs_done}/{self._recipe.epochs}: "
            f"loss {run.epoch_losses[-1]:.4f}, {measure.name}: {quality}, {run.epoch_ends[-1]:.2f} s",
            flush=True,
        )

    def _write(self, runs: Runs) -> None:
        model = runs[RNNFUSED][0].model.eval()
        with torch.no_grad():
            shown = self._example.show(model)
            pictures = self._example.pictures(model)
        results = as_json(self._example, self._recipe, self._checkpoint.fingerprint, runs, self._command)
        with replacing(self._output / RESULTS) as file:
            file.write((json.dumps(results, indent=1) + "\n").encode())
        missing = {PLOT: write_plot(self._example, runs, self._output / PLOT)}
        for name, (size, draw) in pictures.items():
            missing[name] = write_figure(self._output / name, size, draw)
        print(*filter(None, ("", shown, table(self._example, runs))), sep="\n")
        written = [CHECKPOINT, RESULTS, *(name for name, reason in missing.items() if reason is None)]
        print(f"written to {self._output}: {', '.join(written)}")
        for name, reason in missing.items():
            if reason is not None:
                print(f"no {name}: {reason}")


def _parse(example: type[Example], program: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog=program, description=example.about)
    add_recipe(parser, example.recipe)
    quick = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in example.quick.items())
    parser.add_argument("--quick", action="store_true", help=f"at most two minutes: {quick}")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--peer", choices=("torch", "none"), default="torch", help="train torch.nn as well (default torch)"
    )
    parser.add_argument("--resume", type=Path, metavar="CHECKPOINT", help="continue where this one stopped")
    output = Path("examples-output", example.name)
    parser.add_argument("--output", type=Path, default=output, help=f"folder (default {output})")
    return parser.parse_args(arguments)


def _turns(runs: Sequence[Run]) -> Iterator[Run]:
    """The runs of a seed, an epoch each, until all are finished.

    They begin in another order at every epoch, so that what disturbs the machine disturbs them alike.
    """
    while unfinished := [run for run in runs if not run.is_finished]:
        epoch = min(run.epochs_done for run in unfinished)
        in_order = unfinished if epoch % 2 == 0 else unfinished[::-1]
        yield next(run for run in in_order if run.epochs_done == epoch)


def _fingerprint(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(hashlib.sha256(files[name].read_bytes()).digest())
    return digest.hexdigest()
