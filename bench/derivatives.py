"""`python -m bench.derivatives`: what second derivatives and forward mode cost, beside the first pass.

For each cell on (steps, batch, units): the forward pass, backward (every gradient), backward of those
gradients (double backward: their sum with random weights, with respect to input, states and weights), and
forward mode (torch.autograd.forward_ad) with a tangent of the input, of the weights, of every argument. They
take turns, so that what disturbs the machine disturbs all; medians, in ms or in units of the first pass.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

import rnnfused

KINDS = {"rnn": rnnfused.RNN, "lstm": rnnfused.LSTM, "gru": rnnfused.GRU}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.derivatives", description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 16, 128), metavar=("T", "B", "H"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=60)
    return parser.parse_args(arguments)


class Passes:
    """The four passes of one layer, ready to run again and again."""

    def __init__(self, kind: str, steps: int, batch: int, units: int) -> None:
        torch.manual_seed(0)
        self.layer = KINDS[kind](units, units)
        states = [torch.randn(1, batch, units, requires_grad=True) for _ in range(1 + (kind == "lstm"))]
        self.hx = tuple(states) if kind == "lstm" else states[0]
        self.input = torch.randn(steps, batch, units, requires_grad=True)
        self.arguments = [self.input, *states, *self.layer.parameters()]
        output = self.layer(self.input, self.hx)[0]
        self.output, self.outer = output, torch.randn_like(output)
        gradients = torch.autograd.grad(output, self.arguments, self.outer, create_graph=True)
        self.gradients, self.weights = gradients, [torch.randn_like(g) for g in gradients]
        self.tangents = [torch.randn_like(a) for a in self.arguments]

    def forward(self) -> None:
        with torch.no_grad():
            self.layer(self.input, self.hx)

    def backward(self) -> None:
        torch.autograd.grad(self.output, self.arguments, self.outer, retain_graph=True)

    def double_backward(self) -> None:
        torch.autograd.grad(self.gradients, self.arguments, self.weights, retain_graph=True)

    def forward_mode(self, of: slice) -> None:
        names = [name for name, _ in self.layer.named_parameters()]
        with torch.no_grad(), forward_ad.dual_level():
            arguments = list(self.arguments)
            pairs = zip(arguments[of], self.tangents[of], strict=True)
            arguments[of] = [forward_ad.make_dual(a, t) for a, t in pairs]
            x, *rest = arguments
            states, weights = rest[: -len(names)], rest[-len(names) :]
            hx: Tensor | tuple[Tensor, ...] = tuple(states) if isinstance(self.hx, tuple) else states[0]
            torch.func.functional_call(self.layer, dict(zip(names, weights, strict=True)), (x, hx))


def medians(passes: list[Callable[[], None]], rounds: int) -> list[float]:
    """Milliseconds."""
    times: list[list[float]] = [[] for _ in passes]
    for round_ in range(rounds + rounds // 5):
        for run, seconds in zip(passes, times, strict=True):
            start = time.perf_counter()
            run()
            if round_ >= rounds // 5:  # the others warm up
                seconds.append(time.perf_counter() - start)
    return [1e3 * statistics.median(seconds) for seconds in times]


def main() -> int:
    options = parse(sys.argv[1:])
    torch.set_num_threads(options.threads)
    print(f"T, B, H = {tuple(options.shape)}, float32, {options.threads} threads\n")
    print(
        "| cell | forward ms | backward ms | double backward | forward mode: input | weights | everything |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        p = Passes(kind, *options.shape)
        forward, backward, double, *modes = medians(
            [p.forward, p.backward, p.double_backward]
            + [partial(p.forward_mode, of) for of in (slice(0, 1), slice(-4, None), slice(None))],
            options.rounds,
        )
        ratios = " | ".join(f"{mode / forward:.2f} x" for mode in modes)
        print(
            f"| {kind} | {forward:.2f} | {backward:.2f} | {double / backward:.2f} x | {ratios} |", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
