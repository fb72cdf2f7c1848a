"""`python -m bench.real_models`: models that other packages publish, on torch.nn as they are and after
rnnfused.convert.

Of every model of bench/published.py: its recurrent part alone (the calls that the model makes of its
recurrent layers, kept and made again, with the gradients that their outputs got), and all of it; in
inference, and in training (the recurrent part forward and backward; a step of the model with its loss and
Adam). torch.nn and rnnfused have a process each and take turns; medians, in ms. Before anything is timed,
outputs and gradients are compared: a model whose are not the same has no times, and the exit status is 1.

Every package is optional: one that is not installed, or cannot be imported with this torch, is named and left
out. All of them:

    pip install "torch===2.13.0" torchvision==0.28.0 torchaudio "setuptools<81" demucs easyocr gluonts \\
      kraken librosa neuralforecast openunmix pyannote-audio pypots python-doctr pytorch-forecasting \\
      rsl-rl-lib sb3-contrib soundfile speechbrain stanza torch-geometric torchrl webrtcvad
    pip install --no-deps asteroid deepctr-torch resemblyzer

(`===` takes the build of torch for CUDA, without which neither torchvision nor torchaudio can be imported.)
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import rnnfused
from bench import report
from bench.cpu import add_timing
from bench.harness import TOLERANCES
from bench.peers import Prepared
from bench.published import MODELS, Built, Published
from bench.turns import Died, in_turns
from bench.worker import times

WAYS = ("torch.nn", "rnnfused")
MODES = ("inference", "training")
PARTS = tuple(f"{what} {mode}" for what in ("recurrent", "model") for mode in MODES)

# Of a model's gradient, as one vector: where a ReLU's argument is 0 but for rounding, it is on in one run and
# off in the other. (In float64 the models agree to 1e-13.)
GRADIENT_TOLERANCE = 1e-2

KINDS = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.real_models", description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=[""], help="whose package and name contain one of these"
    )
    parser.add_argument("--check-only", action="store_true", help="compare the results, time nothing")
    add_timing(parser)
    parser.add_argument("--output", type=Path, default=Path("bench/results/real_models.json"))
    return parser.parse_args(arguments)


# ---- In the process of one way


def tensors(value: Any) -> Iterator[Tensor]:
    """Those in lists, tuples and dicts; of a PackedSequence its data."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, (list, tuple, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors(inner)


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `function` of what `tensors` finds in it."""
    inner = functools.partial(_mapped, function)
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        return PackedSequence(function(value.data), *value[1:])
    if isinstance(value, (list, tuple)):
        return type(value)(map(inner, value))
    return {name: inner(one) for name, one in value.items()} if isinstance(value, dict) else value


def _leaf(t: Tensor) -> Tensor:
    """A copy that nothing changes, and that wants a gradient if `t` did."""
    return t.detach().clone().requires_grad_(t.requires_grad)


@dataclass
class Call:
    """A call of a recurrent layer as a model made it, and the gradients that its outputs got."""

    layer: torch.nn.Module
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    gradients: dict[int, Tensor] = field(default_factory=dict)  # by the output's place

    def again(self) -> list[Tensor]:
        return list(tensors(self.layer(*self.arguments, **self.named)))

    def leaves(self) -> list[Tensor]:
        given = [*tensors((self.arguments, self.named)), *self.layer.parameters()]
        return [t for t in given if t.requires_grad]

    def __str__(self) -> str:
        layer: Any = self.layer
        kinds = (kind for kind in KINDS if isinstance(layer, getattr(torch.nn, kind)))
        x = next(iter((*self.arguments, *self.named.values())))
        if packed := isinstance(x, PackedSequence):
            sizes = [len(x.batch_sizes), int(x.batch_sizes[0])]
        else:
            sizes = [*x.shape[:-1], 1][:2]  # an unbatched input is a batch of one
            if isinstance(layer, torch.nn.RNNCellBase):
                sizes = [1, sizes[0]]
            elif layer.batch_first and x.dim() == 3:
                sizes.reverse()
        words = [next(kinds, type(layer).__name__), "T{} B{}".format(*sizes)]
        words.append(f"I{layer.input_size} H{layer.hidden_size}")
        words += [f"L{layer.num_layers}"] if getattr(layer, "num_layers", 1) > 1 else []
        words += ["bidirectional"] if getattr(layer, "bidirectional", False) else []
        words += ["packed"] if packed else ["with lengths"] if "lengths" in self.named else []
        return " ".join(words)


def capture(model: torch.nn.Module, run: Callable[[], object]) -> list[Call]:
    """The calls of recurrent layers that `run` makes, in order."""
    calls: list[Call] = []

    def before(layer: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(Call(layer, _mapped(_leaf, arguments), _mapped(_leaf, named)))

    def after(layer: torch.nn.Module, arguments: object, named: object, outputs: Any) -> Any:
        # The model gets copies: an output may play a part inside of the layer, too, as a cell's c does in h.
        copies = _mapped(Tensor.clone, outputs)
        for place, t in enumerate(tensors(copies)):
            if t.requires_grad:
                t.register_hook(functools.partial(calls[-1].gradients.__setitem__, place))
        return copies

    with contextlib.ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, (torch.nn.RNNBase, torch.nn.RNNCellBase)):
                hooks.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(layer.register_forward_hook(after, with_kwargs=True).remove)
        run()
    return calls


def described(calls: list[Call]) -> list[str]:
    """Of calls of the same shape their layers, if there are several, and their number, if there are more."""
    shapes = Counter(map(str, calls))
    layers = Counter(shape for shape, _ in {(str(call), call.layer) for call in calls})
    return [
        (f"{layers[shape]} x " if layers[shape] > 1 else "")
        + shape
        + (f", {count} calls" if count > layers[shape] else "")
        for shape, count in shapes.items()
    ]


@contextlib.contextmanager
def _mode(model: torch.nn.Module, mode: str) -> Iterator[None]:
    model.train(mode == "training")
    with contextlib.nullcontext() if mode == "training" else torch.inference_mode():
        yield


def _named(kind: str, found: Any) -> dict[str, np.ndarray]:
    return {f"{kind} {place}": t.detach().numpy() for place, t in enumerate(tensors(found))}


def _inference(run: Callable[[], Any], context: Any) -> Prepared:
    return Prepared(run, lambda: _named("output", run()), context)


def _replay(calls: list[Call], context: Any) -> Prepared:
    """Training of the recurrent part."""
    leaves = list({id(leaf): leaf for call in calls for leaf in call.leaves()}.values())
    reached = [(index, place) for index, call in enumerate(calls) for place in call.gradients]
    gradients = [calls[index].gradients[place] for index, place in reached]

    def run() -> list[list[Tensor]]:
        for leaf in leaves:
            leaf.grad = None
        outputs = [call.again() for call in calls]
        torch.autograd.backward([outputs[index][place] for index, place in reached], gradients)
        return outputs

    def results() -> dict[str, np.ndarray]:
        outputs = run()
        return _named("output", outputs) | _named("gradient", [leaf.grad for leaf in leaves])

    return Prepared(run, results, context)


def _training(built: Built, context: Any) -> Prepared:
    weights = [p for p in built.model.parameters() if p.requires_grad]
    # Its steps are so small that the last one is on the weights of the first.
    optimizer = torch.optim.Adam(weights, lr=1e-9)

    def backward() -> Tensor:
        optimizer.zero_grad()
        loss = built.loss()
        loss.backward()
        return loss

    def step() -> None:
        backward()
        optimizer.step()

    def results() -> dict[str, np.ndarray]:
        loss = backward()
        gradient = torch.cat([p.grad.flatten() for p in weights if p.grad is not None])
        return _named("output", loss) | {"gradient": gradient.numpy()}

    return Prepared(step, results, context)


class Ready(NamedTuple):
    """What a process answers first."""

    layers: int  # recurrent ones
    converted: int  # of them, by rnnfused.convert
    calls: dict[str, list[str]]  # in each mode
    results: dict[str, dict[str, np.ndarray]]  # of each part


def prepare(built: Built, way: str) -> tuple[dict[str, Prepared], Ready]:
    """The parts of a model as published. What is kept of its calls is torch.nn's, whichever way."""
    model = built.model
    context = {mode: functools.partial(_mode, model, mode) for mode in MODES}
    with context["inference"]():
        inferred = capture(model, built.infer)
    with context["training"]():
        trained = capture(model, lambda: built.loss().backward())
    layers = rnnfused.conversions(model)
    if way == "rnnfused":
        rnnfused.convert(model)
    parts = {
        "recurrent inference": _inference(lambda: [call.again() for call in inferred], context["inference"]),
        "recurrent training": _replay(trained, context["training"]),
        "model inference": _inference(built.infer, context["inference"]),
        "model training": _training(built, context["training"]),
    }
    results = {}
    for part, prepared in parts.items():
        torch.manual_seed(1)  # of dropout and samples
        with prepared.context():
            results[part] = prepared.results()
    calls = {"inference": described(inferred), "training": described(trained)}
    return parts, Ready(len(layers), sum(layer.converted for layer in layers), calls, results)


def work(build: Callable[[], Built], way: str, threads: int, parent: Connection) -> None:
    """Answers with a Ready, or why the package's model could not be built; then, as often as it is given a
    number of seconds for each, with the milliseconds of every part."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    with contextlib.redirect_stdout(sys.stderr):  # packages greet
        try:
            built = build()
        except Exception as error:
            parent.send(f"{type(error).__name__}: {error}")
            return
        parts, ready = prepare(built, way)
        parent.send(ready)
        while seconds := parent.recv():
            parent.send({part: 1e3 * statistics.median(times(one, seconds)) for part, one in parts.items()})


# ---- In the parent


class NotBuilt(Exception):
    """A package is installed, but its model cannot be built here."""


class Failed(Exception):
    """rnnfused's results are not torch.nn's."""


@dataclass
class Row:
    package: str
    version: str
    model: str
    layers: int = 0
    converted: int = 0
    calls: dict[str, list[str]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)  # of each part the largest, relative
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)  # of each part and way

    def ratio(self, part: str) -> float:
        before, after = (self.milliseconds[part][way] for way in WAYS)
        return before / after


def difference(name: str, one: np.ndarray, other: np.ndarray) -> float:
    """The largest, relative to the largest value; of a model's gradient the norm, relative to its norm."""
    size = np.linalg.norm if name == "gradient" else lambda array: np.abs(array).max(initial=0.0)
    return float(size(one - other) / max(1e-30, size(other)))


def compare(row: Row, before: Ready, after: Ready) -> None:
    """Writes into the row all but times. Raises Failed."""
    row.layers, row.converted, row.calls = after.layers, after.converted, before.calls
    for part in PARTS:
        found = {
            name: difference(name, after.results[part][name], array)
            for name, array in before.results[part].items()
        }
        row.differences[part] = max(found.values())
        for name, value in found.items():
            if not value <= (GRADIENT_TOLERANCE if name == "gradient" else TOLERANCES["float32"]):
                raise Failed(f"{part}, {name} differs by {value:.1e}")


def measure(row: Row, build: Callable[[], Built], options: argparse.Namespace) -> None:
    """Fills the row. Raises NotBuilt, Failed or Died."""

    def check(answers: dict[str, Ready | str]) -> None:
        for answer in answers.values():
            if isinstance(answer, str):
                raise NotBuilt(answer)
        compare(row, *(answers[way] for way in WAYS))

    ways = {way: (build, way, options.threads) for way in WAYS}
    rounds = 0 if options.check_only else options.rounds
    found = in_turns(work, ways, rounds, options.seconds, check)
    if found:
        row.milliseconds = {part: {way: found[way][part] for way in WAYS} for part in PARTS}


def head() -> str:
    columns = ["package", "model", "converted", "calls", "recurrent part differs by", "all of it by"]
    return "\n".join(report.head([*columns, *PARTS]))


def line(row: Row) -> str:
    calls = {mode: "; ".join(of_mode) for mode, of_mode in row.calls.items()}
    same = calls["inference"] == calls["training"]
    cells = [f"{row.package} {row.version}", row.model, f"{row.converted} of {row.layers}"]
    cells.append(calls["training"] if same else "; ".join(f"{mode}: {calls[mode]}" for mode in MODES))
    for what in ("recurrent", "model"):
        cells.append(f"{max(row.differences[f'{what} {mode}'] for mode in MODES):.0e}")
    for part, of_part in row.milliseconds.items():
        cells.append(" / ".join(f"{of_part[way]:.2f}" for way in WAYS) + f" = {row.ratio(part):.2f}")
    return report.line(cells)


def summary(rows: list[Row]) -> str:
    lines = []
    for part in PARTS:
        mean = report.geometric_mean([row.ratio(part) for row in rows])
        worst = min(rows, key=lambda row: row.ratio(part))
        name = f"{worst.package} {worst.model}"
        lines.append(f"{part}: geometric mean {mean:.2f}, worst row {worst.ratio(part):.2f} ({name})")
    return "\n".join(lines)


def save(path: Path, rows: list[Row], options: argparse.Namespace) -> None:
    versions = {"torch": torch.__version__, **{row.package: row.version for row in rows}}
    record = {
        "commit": report.commit(),
        "processor": report.processor(),
        "versions": versions,
        "settings": {name: getattr(options, name) for name in ("rounds", "seconds", "threads")},
        "rows": [asdict(row) | {"ratio": {part: row.ratio(part) for part in PARTS}} for row in rows],
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def installed(models: list[Published]) -> list[tuple[Published, str]]:
    """Those whose package is there, and its version. Names the other packages."""
    versions = {}
    for package in dict.fromkeys(model.package for model in models):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            print(f"{package} is not installed: left out")
    return [(model, versions[model.package]) for model in models if model.package in versions]


def main() -> int:
    options = parse(sys.argv[1:])
    selected = [model for model in MODELS if any(part in str(model) for part in options.models)]
    rows, failed = [], False
    print(f"float32, {options.threads} threads, ms: torch.nn / rnnfused = ratio; torch {torch.__version__}")
    found = installed(selected)
    print("\n" + head())
    for model, number in found:
        row = Row(model.package, number, model.name)
        try:
            measure(row, model.build, options)
        except NotBuilt as error:
            print(f"{model} cannot be built with {number}, left out: {error}", file=sys.stderr)
        except (Failed, Died) as error:
            print(f"{model} {number} FAILED: {error}", file=sys.stderr)
            failed = True
        else:
            print(line(row), flush=True)
            rows.append(row)
    if rows and not options.check_only:
        print("\n" + summary(rows))
        save(options.output, rows, options)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
