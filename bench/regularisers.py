"""`python -m bench.regularisers`: what a regulariser of the weights costs a training step.

Forward and backward of one layer with and without it; every way has a process of its own, and they take
turns; medians, in ms. weight_norm is torch's parametrisation, of both matrices.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from bench.peers import Prepared
from bench.turns import in_turns, turns_parser
from bench.worker import in_its_turn

STEPS, BATCH, UNITS = 128, 32, 256
KINDS = ("LSTM", "GRU", "RNN")
REGULARISERS = ("none", "weight_norm", "weight_drop")
WAYS = [f"{package}, {of}" for package in ("rnnfused", "torch.nn") for of in REGULARISERS]


def prepare(kind: str, way: str) -> Prepared:
    """What is timed, and its output and gradients, numbered."""
    import torch
    from torch.nn.utils.parametrizations import weight_norm

    import rnnfused

    torch.manual_seed(0)
    package, regulariser = way.split(", ")
    own = package == "rnnfused"
    options = {"weight_drop": 0.5} if own and regulariser == "weight_drop" else {}
    layer = getattr(rnnfused if own else torch.nn, kind)(UNITS, UNITS, **options)
    if regulariser == "weight_norm":
        for name in ("weight_ih_l0", "weight_hh_l0"):
            weight_norm(layer, name)
    x, outer = torch.randn(STEPS, BATCH, UNITS), torch.randn(STEPS, BATCH, UNITS)
    x.requires_grad_()
    y = torch.empty(0)

    def call() -> torch.Tensor:
        if own or regulariser != "weight_drop":
            return layer(x)[0]
        # As users of torch.nn write it (AWD-LSTM).
        dropped = torch.nn.functional.dropout(layer.weight_hh_l0, 0.5)
        return torch.func.functional_call(layer, {"weight_hh_l0": dropped}, (x,))[0]

    def run() -> None:
        nonlocal y
        layer.zero_grad(set_to_none=True)
        x.grad = None
        torch.manual_seed(1)
        y = call()
        y.backward(outer)

    def results() -> dict[str, np.ndarray]:
        found = (y, x.grad, *(p.grad for p in layer.parameters()))
        return {str(index): t.detach().numpy() for index, t in enumerate(found) if t is not None}

    return Prepared(run, results)


def main() -> int:
    parser = turns_parser("bench.regularisers", __doc__)
    options = parser.parse_args(sys.argv[1:])
    print(f"training step, T {STEPS}, B {BATCH}, H {UNITS}, float32, {options.threads} threads, ms\n")
    print("| layer | " + " | ".join(WAYS) + " |")
    print("|---" + "|---" * len(WAYS) + "|")
    found = []
    for kind in KINDS:

        def check(results: dict[str, dict[str, np.ndarray]], kind: str = kind) -> None:
            for of in REGULARISERS:
                ours, theirs = results[f"rnnfused, {of}"], results[f"torch.nn, {of}"]
                for index, want in theirs.items():
                    if not np.abs(ours[index] - want).max() <= 1e-3 * max(1e-3, np.abs(want).max()):
                        raise RuntimeError(f"{kind}, {of}: result {index} differs")

        ways = {way: (prepare, kind, way, options.threads) for way in WAYS}
        taken = in_turns(in_its_turn, ways, options.rounds, options.seconds, check)
        cells = []
        for way in WAYS:
            ratio = taken[way] / taken[way.split(", ")[0] + ", none"]
            cells.append(f"{taken[way]:.2f} ({ratio:.3f} x)")
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)
        found.append({"layer": kind, "threads": options.threads, "ms": taken})
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
