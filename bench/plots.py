"""`python -m bench.plots [RESULTS.json] [FOLDER]`: the results of bench.cpu as PNG files, one a mode.

Each shows, row by row, how many times faster rnnfused is than every peer; in fewer bits, than rnnfused in
float32, too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import report
from bench.harness import ROOT, Row
from bench.peers import KNOWN

COLOURS = {
    "torch": "#d62728",
    "jax": "#9467bd",
    "onnxruntime": "#2ca02c",
    "openvino": "#ff7f0e",
    "autocast": "#8c564b",
    "torch.ao": "#d62728",
    "ort int8": "#2ca02c",
    "float32": "#7f7f7f",
}


def plot(mode: str, rows: list[Row], path: Path) -> None:
    # Without pyplot: no display is asked for, and nothing is left behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    for peer, colour in COLOURS.items():
        points = [
            (row.ratio(peer), place) for place, row in zip(places, rows, strict=True) if peer in row.medians
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), color=colour, label=peer, zorder=2)
    axes.axvline(1, color="black", linewidth=1, label="rnnfused")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.set_yticks(
        places,
        [
            c.name.removeprefix(f"{mode} ")
            if c.timed_whole
            else f"{c.cell} {c.steps} x {c.batch} x {c.hidden}"
            for c in (row.case for row in rows)
        ],
    )
    axes.invert_yaxis()
    axes.grid(alpha=0.3, zorder=0)
    axes.set_xlabel("time of the peer / time of rnnfused")
    dtype = rows[0].case.dtype
    axes.set_title(mode if rows[0].case.timed_whole else f"{mode}, {dtype} (cell, T x B x H)")
    axes.legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=ROOT / "bench/results/cpu.json")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs/plots")
    options = parser.parse_args()
    assert COLOURS.keys() == KNOWN.keys() - {"rnnfused", "recompute"}
    rows, _ = report.load(options.results)
    options.folder.mkdir(parents=True, exist_ok=True)
    for mode in dict.fromkeys(row.case.mode for row in rows):
        of_mode = [row for row in rows if row.case.mode == mode]
        dtype = of_mode[0].case.dtype
        path = options.folder / (f"{mode}.png" if dtype == "float32" else f"{mode}-{dtype}.png")
        plot(mode, of_mode, path)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
