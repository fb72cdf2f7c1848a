"""What the runs measured, as the closing summary and as a plot."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from _shared.figures import WIDE_AND_THIN, write_figure

import rnnfused

from .corpus import Corpus
from .model import RNNFUSED, RNNFUSED_BF16, TORCH, TORCH_BF16, is_ours, sample
from .options import Recipe
from .training import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 10  # steps whose throughput is one measurement: long enough for the clock, short enough for a median
COMPARED = 100  # steps over which two backends' losses must agree; rounding has not yet grown into chaos
GENERATED = 3  # samples that are timed
INT8 = "rnnfused, int8"
_COLOURS = ("tab:orange", "tab:blue", "tab:red", "tab:green")
AVERAGED = 100  # last steps whose mean is the final training loss: one window alone is noisy


def block_rates(run: Run) -> list[float]:
    """Characters per second in each block of BLOCK steps; a shorter last block counts only if it is alone."""
    seconds = run.history.seconds
    size = min(BLOCK, len(seconds))
    starts = range(0, len(seconds) - size + 1, size)
    return [size * run.characters_of_a_step / sum(seconds[start : start + size]) for start in starts]


def total_rate(run: Run) -> float:
    """Characters per second over all training steps, held-out evaluation not counted."""
    return len(run.history.seconds) * run.characters_of_a_step / sum(run.history.seconds)


def largest_difference(run: Run, peer: Run) -> float:
    """Largest difference of the two losses, in bits per character, over the first COMPARED steps."""
    pairs = zip(run.history.losses[:COMPARED], peer.history.losses[:COMPARED], strict=True)
    return max(abs(ours - theirs) for ours, theirs in pairs)


def introduction(recipe: Recipe, corpus: Corpus) -> str:
    """What is about to be trained, on which text."""
    return (
        f"text: {recipe.text or 'the Python standard library'}, {len(corpus.training):,} characters to train "
        f"on, {len(corpus.held_out):,} held out, {len(corpus.vocabulary)} different\n"
        f"model: {recipe.cell}, {recipe.layers} x {recipe.hidden} hidden units, embedding "
        f"{recipe.embedding}; batch {recipe.batch} x {recipe.steps} steps, seed {recipe.seed}"
    )


def epoch_line(run: Run, epochs: int) -> str:
    """The state of a run that has just finished an epoch, out of `epochs`."""
    training = fmean(run.history.losses[-run.steps_of_an_epoch :])
    return (
        f"{run.backend} epoch {run.epochs_done}/{epochs}: "
        f"training {training:.3f}, held-out {run.history.held_out[-1]:.3f} bits/character, "
        f"{median(block_rates(run)):,.0f} characters/second"
    )


def summary(runs: Sequence[Run]) -> str:
    """The closing table: a column for each run, and how the first compares with each of the others."""
    columns = [_column(run) for run in runs]
    labels = ("", "training loss", "held-out loss", "speed, median", "speed, total")
    units = (
        "",
        f"bits/character, mean of the last {min(AVERAGED, len(runs[0].history.losses))} steps",
        "bits/character, after the last epoch",
        f"characters/second, median of blocks of {BLOCK} steps",
        "characters/second, over all steps",
    )
    lines = [
        f"{label:<14}" + "".join(f"{cell:>15}" for cell in cells) + f"  {unit}".rstrip()
        for label, unit, *cells in zip(labels, units, *columns, strict=True)
    ]
    return "\n".join(lines + _comparisons(runs))


def weights_table(run: Run) -> str:
    """The held-out loss of a trained model whose recurrent weights are stored in fewer bits."""
    losses = {"float32": run.history.held_out[-1]}
    losses |= {kind: run.evaluate_weights(kind) for kind in ("bf16", "f16", "int8")}
    lines = ["held-out loss by the recurrent weights' type, for inference, in bits/character:"]
    lines += [f"  {kind:<8}{loss:>9.4f}  {loss - losses['float32']:+.4f}" for kind, loss in losses.items()]
    return "\n".join(lines)


def generation_rates(run: Run, vocabulary: str, length: int) -> dict[str, float]:
    """Characters per second of the trained model, one character after the other: by torch.nn's layers in a
    loop, by an rnnfused.Stepper, and by one whose weights are of 8 bits; medians.
    """
    torchs = rnnfused.to_torch(copy.deepcopy(run.model))
    ways = {TORCH: (torchs, None), RNNFUSED: (run.model, None), INT8: (run.model, "int8")}
    rates = {}
    for name, (model, weights) in ways.items():
        seconds = []
        for _ in range(GENERATED):
            started = time.perf_counter()
            sample(model, vocabulary, length, 1.0, 0, weights)
            seconds.append(time.perf_counter() - started)
        rates[name] = length / median(seconds)
    return rates


def what_switching_buys(
    runs: Sequence[Run], lines: dict[str, float], generation: dict[str, float], threads: int
) -> str:
    """The last table: torch.nn, rnnfused, and how many times as fast it is. lines, generation: characters per
    second by backend.
    """
    by_name = {run.backend: run for run in runs}
    table = [
        f"what switching from torch.nn to rnnfused buys here, on {threads} thread{'s' * (threads > 1)}:",
        f"  {'':<28}{TORCH:>11}{RNNFUSED:>11}",
    ]

    def add(what: str, theirs: float, ours: float) -> None:
        table.append(f"  {what:<28}{theirs:>11,.0f}{ours:>11,.0f}{ours / theirs:>7.2f}x  characters/second")

    pairs = (("float32", TORCH, RNNFUSED), ("bfloat16", TORCH_BF16, RNNFUSED_BF16))
    both = [pair for pair in pairs if pair[1] in by_name and pair[2] in by_name]
    for precision, peer, own in both:
        add(f"training, {precision}", *(median(block_rates(by_name[name])) for name in (peer, own)))
    if lines:
        add("training on single lines", lines[TORCH], lines[RNNFUSED])
    add("generation", generation[TORCH], generation[RNNFUSED])
    add("generation, 8-bit weights", generation[TORCH], generation[INT8])
    for precision, *names in both:
        losses = "".join(f"{by_name[name].history.held_out[-1]:>11.4f}" for name in names)
        table.append(f"  {'held-out loss, ' + precision:<28}{losses}          bits/character")
    return "\n".join(table)


def write_plot(runs: Sequence[Run], path: Path) -> str | None:
    """Draw the loss curves and the throughput as a PNG; returns why not if matplotlib is not there."""

    def draw(figure: Figure) -> None:
        losses, speeds = figure.subplots(2, 1)
        for run, colour, width in zip(runs, _COLOURS, WIDE_AND_THIN, strict=False):
            history, per_epoch, rates = run.history, run.steps_of_an_epoch, block_rates(run)
            steps = range(1, len(history.losses) + 1)
            ends = [per_epoch * (epoch + 1) for epoch in range(run.epochs_done)]
            losses.plot(
                steps, history.losses, color=colour, linewidth=width, label=f"{run.backend}, training"
            )
            losses.plot(
                ends,
                history.held_out,
                "o",
                color=colour,
                markersize=4 + width,
                label=f"{run.backend}, held out",
            )
            block_ends = [min(BLOCK, len(steps)) * (block + 1) for block in range(len(rates))]
            speeds.plot(block_ends, rates, color=colour, label=f"{run.backend}, median {median(rates):,.0f}")
        losses.set(ylabel="bits per character", title="Loss")
        speeds.set(xlabel="training step", ylabel="characters per second", title="Throughput")
        speeds.set_ylim(bottom=0)
        for axes in (losses, speeds):
            axes.grid(alpha=0.3)
            axes.legend()

    return write_figure(path, (8, 7), draw)


def _column(run: Run) -> tuple[str, ...]:
    return (
        run.backend,
        f"{fmean(run.history.losses[-AVERAGED:]):.4f}",
        f"{run.history.held_out[-1]:.4f}",
        f"{median(block_rates(run)):,.0f}",
        f"{total_rate(run):,.0f}",
    )


def _comparisons(runs: Sequence[Run]) -> list[str]:
    """Each of ours beside each of torch.nn's; and beside our own in float32 what fewer bits change."""
    lines = []
    for run in filter(lambda run: is_ours(run.backend), runs):
        for peer in filter(lambda run: not is_ours(run.backend), runs):
            by_median = median(block_rates(run)) / median(block_rates(peer))
            by_total = total_rate(run) / total_rate(peer)
            lines.append(
                f"speed-up of {run.backend} over {peer.backend}: {by_median:.2f}x (median), "
                f"{by_total:.2f}x (total)"
            )
    by_name = {run.backend: run for run in runs}
    for name, peer_name in ((RNNFUSED, TORCH), (RNNFUSED_BF16, TORCH_BF16)):
        if name in by_name and peer_name in by_name:
            run, peer = by_name[name], by_name[peer_name]
            compared = min(COMPARED, len(run.history.losses))
            lines.append(
                f"largest difference of the losses of {name} and {peer_name} over the first {compared} "
                f"steps: {largest_difference(run, peer):.2g} bits/character"
            )
    if RNNFUSED in by_name and RNNFUSED_BF16 in by_name:
        ours, narrow = (by_name[name].history.held_out[-1] for name in (RNNFUSED, RNNFUSED_BF16))
        lines.append(
            f"held-out loss of {RNNFUSED_BF16} less that of {RNNFUSED}: {narrow - ours:+.4f} bits/character"
        )
    return lines
