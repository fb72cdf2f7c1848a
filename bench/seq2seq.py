"""`python -m bench.seq2seq`: decoders with attention, beside the loop of cells that torch's users write.

Forward and backward of a decoder over a target that is given, its encoder's outputs with it; every way has a
process of its own, and they take turns; medians, in ms. Before anything is timed, outputs and gradients are
compared. The loop is torch.nn.LSTMCell with the same attention, the keys projected once, in eager mode. The
last column is what the products alone take at the rate at which registers multiply, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench import limits
from bench.peers import Prepared
from bench.turns import in_turns, turns_parser
from bench.worker import in_its_turn

WAYS = ("rnnfused", "torch.nn: loop of cells")


@dataclass(frozen=True)
class Row:
    kind: str
    input_feeding: bool
    steps: int = 50
    source: int = 50
    batch: int = 32
    hidden: int = 256

    def __str__(self) -> str:
        feeding = ", input feeding" if self.input_feeding else ""
        return f"{self.kind}{feeding} T{self.steps} S{self.source} B{self.batch} H{self.hidden}"


ROWS = [Row("bahdanau", False), Row("luong", True), Row("luong", False)]


def parse(arguments: list[str]) -> argparse.Namespace:
    return turns_parser("bench.seq2seq", __doc__).parse_args(arguments)


def prepare(row: Row, way: str) -> Prepared:
    """What is timed, and its output and gradients, numbered."""
    import torch

    from rnnfused.seq2seq import AttentionDecoder

    class Loop(AttentionDecoder):
        """The same, each step by torch's cell."""

        def _attends_natively(self, memory: Any, state: Any) -> bool:
            return False

        def _recur(self, x: Any, hx: Any) -> Any:
            own = self.recurrent
            weights = (own.weight_ih_l0, own.weight_hh_l0, own.bias_ih_l0, own.bias_hh_l0)
            h, c = torch.lstm_cell(x, (hx[0][0], hx[1][0]), *weights)
            return h, (h.unsqueeze(0), c.unsqueeze(0))

        def _at_once(self, tokens: Any, memory: Any, state: Any) -> Any:
            scores = []
            for given in tokens:
                of_step = self.step(given, memory, state)
                state = of_step.state
                scores.append(of_step.scores)
            return of_step._replace(scores=torch.stack(scores))

    torch.manual_seed(0)
    size, options = row.hidden, {"kind": row.kind, "input_feeding": row.input_feeding}
    decoder = (AttentionDecoder if way == "rnnfused" else Loop)(100, size, size, 2 * size, **options)
    outputs = torch.randn(row.source, row.batch, 2 * size, requires_grad=True)
    final = tuple(torch.randn(1, row.batch, 2 * size) for _ in range(2))
    lengths = torch.randint(1, row.source + 1, (row.batch,))
    target = torch.randint(100, (row.steps, row.batch))
    outer = torch.randn(row.steps, row.batch, 100)
    scores = torch.empty(0)

    def run() -> None:
        nonlocal scores
        decoder.zero_grad(set_to_none=True)
        outputs.grad = None
        scores = decoder(target, *decoder.prepare(outputs, final, lengths)).scores
        scores.backward(outer)

    def results() -> dict[str, np.ndarray]:
        found = (scores, outputs.grad, *(p.grad for p in decoder.parameters()))
        return {str(index): t.detach().numpy() for index, t in enumerate(found) if t is not None}

    return Prepared(run, results)


def operations(row: Row) -> int:
    """Of the products of forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    prepared = prepare(row, "rnnfused")
    with FlopCounterMode(display=False) as counter:
        prepared.run()
    return counter.get_total_flops()


def measure(row: Row, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of each way. Raises RuntimeError where their results differ."""

    def check(results: dict[str, dict[str, np.ndarray]]) -> None:
        ours, loop = (results[way] for way in WAYS)
        for index, want in loop.items():
            if not np.abs(ours[index] - want).max() <= 2e-4 * max(1e-3, np.abs(want).max()):
                raise RuntimeError(f"{row}: result {index} differs")

    ways = {way: (prepare, row, way, options.threads) for way in WAYS}
    return in_turns(in_its_turn, ways, options.rounds, options.seconds, check)


def main() -> int:
    options = parse(sys.argv[1:])
    rate = limits.measure(options.threads).fma
    print(f"forward and backward, float32, {options.threads} threads, {rate / 1e9:.0f} GFLOP/s at most, ms\n")
    print(
        "| decoder | " + " | ".join(WAYS) + " | products at the limit |\n|---" + "|---" * len(WAYS) + "|---|"
    )
    found = []
    for row in ROWS:
        taken = measure(row, options)
        ratio = taken[WAYS[1]] / taken[WAYS[0]]
        least = operations(row) / rate * 1e3
        print(
            f"| {row} | {taken[WAYS[0]]:.1f} | {taken[WAYS[1]]:.1f} ({ratio:.2f} x) | {least:.1f} |",
            flush=True,
        )
        found.append({"row": asdict(row), "threads": options.threads, "ms": taken, "limit_ms": least})
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
