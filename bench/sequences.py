"""`python -m bench.sequences`: ragged batches and episodes that end inside a sequence, as one argument and as
what torch's users write today.

`lengths`: a padded batch whose sequences have any length, forward and backward. `resets`: rollouts in which
episodes end (sizes and shares of resets as in TorchRL's published comparison of its recurrent modules).
Each way runs in a process of its own, and they take turns; medians, in ms. Before anything is timed, every
way's outputs and gradients are compared with the first one's. TorchRL's own modules, whose scan over the
steps torch.compile takes, are a way more where they are installed:

    pip install "torch===2.13.0" torchrl hoptorch
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from bench.peers import Prepared
from bench.turns import in_turns, turns_parser
from bench.worker import in_its_turn

Forward = Callable[[Any, Any, Any], Any]  # (module, x, lengths or resets) -> y


@dataclass(frozen=True)
class Row:
    what: str  # lengths or resets
    cell: str
    steps: int
    batch: int
    input: int
    hidden: int
    resets: float = 0.0  # share of steps

    def __str__(self) -> str:
        share = f", {self.resets:.1%} resets" if self.what == "resets" else ""
        return f"{self.cell} T{self.steps} B{self.batch} I{self.input} H{self.hidden}{share}"


ROWS = [
    Row("lengths", "LSTM", 24, 32, 4, 16),
    Row("lengths", "GRU", 64, 16, 32, 64),
    Row("lengths", "LSTM", 128, 32, 64, 128),
    Row("lengths", "GRU", 128, 16, 32, 256),
    Row("lengths", "LSTM", 64, 64, 32, 256),
    Row("resets", "LSTM", 128, 256, 32, 512, 0.03),
    Row("resets", "GRU", 16, 128, 32, 512, 0.001),
    Row("resets", "GRU", 16, 128, 32, 512, 0.03),
    Row("resets", "LSTM", 128, 8, 16, 64, 0.01),
    Row("resets", "LSTM", 24, 512, 48, 256, 0.03),
]
# The first is what the others are held against; "alone" is the same call without lengths or resets.
WAYS = {
    "lengths": ("lengths=", "alone", "packed before", "pack and pad", "torch.nn: pack and pad"),
    "resets": (
        "resets=",
        "alone",
        "torch.nn: split, pack and pad",
        "torch.nn: layer step by step",
        "torch.nn: cell step by step",
    ),
}
SCAN = "TorchRL: scan, compiled"


def ways_of(what: str) -> tuple[str, ...]:
    scans = what == "resets" and find_spec("torchrl") and find_spec("hoptorch")
    return (*WAYS[what], SCAN) if scans else WAYS[what]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = turns_parser("bench.sequences", __doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(ROWS)), help="numbers of rows")
    return parser.parse_args(arguments)


# ---- In the process of one way


def prepare(row: Row, way: str) -> Prepared:
    """What is timed, and its output and gradients, numbered."""
    import torch

    import rnnfused

    torch.manual_seed(0)
    module = getattr(torch.nn, row.cell)(row.input, row.hidden)
    x = torch.randn(row.steps, row.batch, row.input)
    outer = torch.randn(row.steps, row.batch, row.hidden)
    where = torch.rand(row.steps, row.batch) < row.resets
    there = torch.ones(row.steps, row.batch, 1)
    if row.what == "lengths":
        where = torch.randint(1, row.steps + 1, (row.batch,))
        there = (torch.arange(row.steps).unsqueeze(1) < where).unsqueeze(-1).float()
    if way == SCAN:
        module = _torchrl(module)
    elif not way.startswith("torch.nn"):
        rnnfused.convert(module)
    forward, given = FORWARD[way], x
    if way == "packed before":
        given = torch.nn.utils.rnn.pack_padded_sequence(x, where, enforce_sorted=False)
        outer = torch.nn.utils.rnn.pack_padded_sequence(outer, where, enforce_sorted=False).data
    elif way != "alone":
        outer = outer * there
    y = torch.empty(0)

    def run() -> None:
        nonlocal y
        module.zero_grad(set_to_none=True)
        y = forward(module, given, where)
        y.backward(outer)

    def results() -> dict[str, np.ndarray]:
        found = (y, *(p.grad for p in module.parameters()))  # in torch.nn's order
        return {str(index): t.detach().numpy() for index, t in enumerate(found)}

    return Prepared(run, results)


def _padded(module: Any, x: Any, lengths: Any) -> Any:
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    y, _ = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    return pad_packed_sequence(y, total_length=len(x))[0]


def _split(module: Any, x: Any, resets: Any) -> Any:
    """Every episode a sequence of its own, and its output back where it was."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

    starts = resets.clone()
    starts[0] = True
    rows = x.transpose(0, 1).flatten(0, 1)
    places = starts.t().flatten().nonzero().squeeze(1)
    lengths = torch.diff(places, append=places.new_tensor([len(rows)]))
    padded = pad_sequence(torch.split(rows, lengths.tolist()))
    y, _ = module(pack_padded_sequence(padded, lengths, enforce_sorted=False))
    y = pad_packed_sequence(y)[0].transpose(0, 1)
    there = torch.arange(y.size(1)) < lengths.unsqueeze(1)
    return y[there].view(x.size(1), len(x), -1).transpose(0, 1)


def _by_steps(module: Any, x: Any, resets: Any) -> Any:
    import torch

    pair = isinstance(module, torch.nn.LSTM)
    states = tuple(x.new_zeros(1, x.size(1), module.hidden_size) for _ in range(1 + pair))
    keep, outputs = (~resets).float().unsqueeze(-1), []
    for t in range(len(x)):
        states = tuple(s * keep[t] for s in states)
        y, after = module(x[t : t + 1], states if pair else states[0])
        states = after if pair else (after,)
        outputs.append(y)
    return torch.cat(outputs)


def _by_cells(module: Any, x: Any, resets: Any) -> Any:
    import torch

    pair = isinstance(module, torch.nn.LSTM)
    cell = torch.lstm_cell if pair else torch.gru_cell
    weights = [getattr(module, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    states = tuple(x.new_zeros(x.size(1), module.hidden_size) for _ in range(1 + pair))
    keep, outputs = (~resets).float().unsqueeze(-1), []
    for t in range(len(x)):
        states = tuple(s * keep[t] for s in states)
        after = cell(x[t], states if pair else states[0], *weights)
        states = after if pair else (after,)
        outputs.append(states[0])
    return torch.stack(outputs)


def _torchrl(module: Any) -> Any:
    """TorchRL's module with the weights of torch.nn's."""
    import torch
    from torchrl import modules

    kind, states = ("GRU", ("h",)) if module.mode == "GRU" else ("LSTM", ("h", "c"))
    made: Any = getattr(modules, f"{kind}Module")(
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        in_keys=["x", *states],
        out_keys=["y", *(("next", state) for state in states)],
        recurrent_backend="scan",
        default_recurrent_mode=True,
    )
    getattr(made, kind.lower()).load_state_dict(module.state_dict())
    made.forward_rows = torch.compile(functools.partial(_scan, made, states, module.hidden_size))
    return made


def _scan(made: Any, states: tuple[str, ...], hidden: int, x: Any, resets: Any) -> Any:
    from tensordict import TensorDict

    steps, batch = x.shape[:2]
    zeros = x.new_zeros(batch, steps, 1, hidden)
    given = {"x": x.transpose(0, 1), "is_init": resets.t().unsqueeze(-1), **dict.fromkeys(states, zeros)}
    return made(TensorDict(given, [batch, steps]))["y"].transpose(0, 1)


FORWARD: dict[str, Forward] = {
    "alone": lambda module, x, _: module(x)[0],
    "lengths=": lambda module, x, lengths: module(x, lengths=lengths)[0],
    "packed before": lambda module, x, _: module(x)[0].data,
    "pack and pad": _padded,
    "torch.nn: pack and pad": _padded,
    "resets=": lambda module, x, resets: module(x, resets=resets)[0],
    "torch.nn: split, pack and pad": _split,
    "torch.nn: layer step by step": _by_steps,
    "torch.nn: cell step by step": _by_cells,
    SCAN: lambda module, x, resets: module.forward_rows(x, resets),
}


# ---- In the parent


def measure(row: Row, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of each way. Raises RuntimeError where one's results are not the first one's."""

    def check(results: dict[str, dict[str, np.ndarray]]) -> None:
        first = next(iter(results.values()))
        for way, found in results.items():
            for (index, one), other in zip(found.items(), first.values(), strict=True):
                comparable = way != "alone" and one.shape == other.shape
                if comparable and not np.abs(one - other).max() <= 2e-4 * np.abs(other).max():
                    raise RuntimeError(f"{row}, {way}: result {index} differs")

    ways = {way: (prepare, row, way, options.threads) for way in ways_of(row.what)}
    return in_turns(in_its_turn, ways, options.rounds, options.seconds, check)


def main() -> int:
    options = parse(sys.argv[1:])
    print(f"forward and backward, float32, {options.threads} threads, ms\n")
    found, before = [], ""
    for row in (ROWS[index] for index in options.rows):
        ways = ways_of(row.what)
        if row.what != before:
            print(f"\n| {row.what} | " + " | ".join(ways) + " |" + "\n|---" * 1 + "|---" * len(ways) + "|")
            before = row.what
        times = measure(row, options)
        own = times[ways[0]]
        cells = [f"{own:.2f}", *(f"{times[way]:.2f} ({times[way] / own:.2f} x)" for way in ways[1:])]
        print(f"| {row} | " + " | ".join(cells) + " |", flush=True)
        found.append({"row": asdict(row), "threads": options.threads, "ms": times})
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
