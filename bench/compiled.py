"""`python -m bench.compiled`: a training step of the demo's model, eager and under
torch.compile(fullgraph=True), side by side, and how far their losses part.

Both start from the same weights and take the same windows; steps take turns, and turns at being first, so
that what disturbs the machine disturbs both. The compiled one's first steps, in which it compiles, do not
count.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from bench.harness import ROOT

sys.path.insert(0, str(ROOT / "examples"))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.compiled", description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="training steps of each (default 60)")
    parser.add_argument("--characters", type=int, default=200_000, help="of the text (default 200000)")
    parser.add_argument("--cell", choices=("lstm", "gru", "rnn"), default="lstm")
    return parser.parse_args(arguments)


def main() -> int:
    from _char_lm.corpus import load_corpus
    from _char_lm.model import RNNFUSED
    from _char_lm.options import Recipe
    from _char_lm.training import Run

    options = parse(sys.argv[1:])
    recipe = Recipe(characters=options.characters, cell=options.cell)
    corpus = load_corpus(recipe)
    eager = Run(RNNFUSED, recipe, corpus, "cpu")
    compiled = Run(RNNFUSED, recipe, corpus, "cpu", compiled=True)
    steps = min(options.steps, eager.steps_of_an_epoch)
    for window in range(steps):
        for run in (eager, compiled) if window % 2 else (compiled, eager):
            run.step(window)
    warm = steps // 4
    medians = [statistics.median(run.history.seconds[warm:]) * 1e3 for run in (eager, compiled)]
    apart = max(abs(a - b) for a, b in zip(eager.history.losses, compiled.history.losses, strict=True))
    print(
        f"{options.cell}, {recipe.layers} x {recipe.hidden} units, {recipe.batch} x {recipe.steps} characters"
    )
    print(
        f"eager {medians[0]:.2f} ms/step, compiled {medians[1]:.2f} ms/step ({medians[0] / medians[1]:.3f} x)"
    )
    print(f"losses of {steps} steps differ by at most {apart:.1e} bits a character")
    return 0


if __name__ == "__main__":
    sys.exit(main())
