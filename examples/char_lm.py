#!/usr/bin/env python3
"""Train a character language model with rnnfused and the same one with torch.nn, and compare them.

    python examples/char_lm.py --output demo-output

The text is the Python standard library's own sources (``--text PATH`` for any other). Each trains in
float32 and, by autocast, in bfloat16. All runs start from the same weights and read the same windows in the
same order. Written to the output folder: ``checkpoint.pt`` (``--resume`` continues from it, exactly),
``plot.png`` (loss curves and throughput) and ``sample.txt`` (text drawn from the model). Ctrl-C saves the
checkpoint. ``docs/demo.md`` tells the whole story.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from _shared import ExampleError
from _shared.program import imports, run_program, stopped

with imports("char_lm.py"):
    import torch
    from _char_lm.checkpoint import Checkpoint, begin, load_checkpoint
    from _char_lm.corpus import Corpus
    from _char_lm.lines import line_rates
    from _char_lm.model import RNNFUSED, RNNFUSED_BF16, TORCH, TORCH_BF16, is_ours, refusal, sample
    from _char_lm.options import Recipe, parse
    from _char_lm.report import (
        epoch_line,
        generation_rates,
        introduction,
        summary,
        weights_table,
        what_switching_buys,
        write_plot,
    )
    from _char_lm.training import Run, train
    from _shared.interrupt import Interrupt
    from _shared.options import given_recipe

    import rnnfused

CHECKPOINT, SAMPLE, PLOT = "checkpoint.pt", "sample.txt", "plot.png"
SAMPLE_LINES_SHOWN = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code: 0, 2 after an error, 130 after Ctrl-C."""
    return run_program("char_lm.py", lambda: _demo(parse(arguments)))


def _demo(options: argparse.Namespace) -> int:
    _prepare_machine(options)
    saved = load_checkpoint(options.resume) if options.resume else None
    checkpoint, corpus = begin(saved, given_recipe(options, Recipe), options.epochs)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / CHECKPOINT
    print(rnnfused.show_config(), introduction(checkpoint.recipe, corpus), sep="\n")

    runs = []
    with Interrupt() as interrupt:
        for backend in _backends(options):
            reason = refusal(backend, checkpoint.recipe, options.device)
            if reason:
                print(f"{backend}: left out, torch cannot run it here: {reason}")
                continue
            runs.append(_train(backend, checkpoint, corpus, options, path, interrupt))
            if interrupt.requested():
                checkpoint.save(path)
                return stopped("char_lm.py", path)
    _write_results(runs, checkpoint, corpus, options)
    return 0


def _backends(options: argparse.Namespace) -> list[str]:
    of_precision = {"float32": [RNNFUSED, TORCH], "bfloat16": [RNNFUSED_BF16, TORCH_BF16]}
    chosen = [
        backend
        for precision in of_precision
        for backend in of_precision[precision]
        if precision in options.precisions
    ]
    return [backend for backend in chosen if options.peer == "torch" or is_ours(backend)]


def _prepare_machine(options: argparse.Namespace) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda":
        _require_cuda()


def _require_cuda() -> None:
    if not torch.cuda.is_available():
        raise ExampleError("--device cuda: torch finds no usable CUDA device; --device cpu always works")
    try:
        rnnfused.RNN(1, 1, device="cuda")(torch.zeros(1, 1, 1, device="cuda"))
    except RuntimeError as error:
        raise ExampleError(f"--device cuda: {str(error).splitlines()[0]}") from error


def _train(
    backend: str,
    checkpoint: Checkpoint,
    corpus: Corpus,
    options: argparse.Namespace,
    path: Path,
    interrupt: Interrupt,
) -> Run:
    """Train one backend to the last epoch or until interrupted, saving after each epoch and at the stop."""
    # torch.nn's layers break the graph.
    compiled = options.compile and is_ours(backend)
    run = Run(backend, checkpoint.recipe, corpus, options.device, compiled)
    if backend in checkpoint.runs:
        run.load_state_dict(checkpoint.runs[backend])

    def save(whole_epoch: bool) -> None:
        if whole_epoch:
            print(epoch_line(run, checkpoint.epochs), flush=True)
        checkpoint.runs[backend] = run.state_dict()
        checkpoint.save(path)

    train(run, checkpoint.epochs, interrupt, save)
    return run


def _write_results(
    runs: Sequence[Run], checkpoint: Checkpoint, corpus: Corpus, options: argparse.Namespace
) -> None:
    text = sample(
        runs[0].model, corpus.vocabulary, options.sample_length, options.temperature, checkpoint.recipe.seed
    )
    checkpoint.save(options.output / CHECKPOINT)
    (options.output / SAMPLE).write_text(text, encoding="utf-8")
    no_plot = write_plot(runs, options.output / PLOT)
    print("\nsample:", *text.splitlines()[:SAMPLE_LINES_SHOWN], sep="\n  | ")
    print("", summary(runs), sep="\n")
    if runs[0].backend == RNNFUSED and options.device == "cpu":
        print("", weights_table(runs[0]), sep="\n")
    written = [CHECKPOINT, SAMPLE] if no_plot else [CHECKPOINT, SAMPLE, PLOT]
    print(f"written to {options.output}: {', '.join(written)}")
    if no_plot:
        print(f"no plot: {no_plot}")
    if {RNNFUSED, TORCH} <= {run.backend for run in runs} and options.device == "cpu":
        lines = line_rates((TORCH, RNNFUSED), checkpoint.recipe, corpus)
        generation = generation_rates(runs[0], corpus.vocabulary, options.sample_length)
        print("", what_switching_buys(runs, lines, generation, torch.get_num_threads()), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
