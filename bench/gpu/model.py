"""`python -m bench.gpu.model [RESULTS]`: what a step of the resident kernels should take, by estimate; with a
file of bench/results, what it took there, too.

The estimate is made of the instructions of the kernels' loops (tools/sass.json) and of what an H200 was seen
to do. It is no measurement: the GPU suite's steps are what to hold it against (docs/gpu.md).
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

__all__ = ["estimate", "main", "measured"]

NUMBERS = Path(__file__).parents[2] / "tools" / "sass.json"
CLOCK = 1.98e9  # of an H200 at work
# Cycles, seen on an H200. What comes from other blocks of a cluster arrives so many bytes a cycle, and the
# first of it so late; of a block that is alone it is a barrier.
ARRIVING, FLIGHT, BARRIER = 12, 220, 30
SHARED = 128  # bytes a cycle of a multiprocessor's shared memory
PRODUCT = 6.4  # of mma.sync m16n8k16 on a scheduler that has nothing else to do
DRAINED = 50  # from a phase's last instruction until its result is there
COLUMNS = 8  # of the batch, in an eight


def estimate(name: str, numbers: dict[str, int]) -> float:
    """Cycles of a step of a kernel, by its name in tools/sass.json."""
    way, cell, dtype, depth, tiles, eights, exchange, warps, held = (
        int(word[1:]) if word[0] in "HMNWR" and word[1:].isdigit() else word for word in name.split()
    )
    size, in_depth = (2, 16) if dtype in ("f16", "bf16") else (4, 8)
    split = 3 if dtype == "f32" else 1  # instructions to a product
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    units = warps * tiles * 16 // (1 if gates == 1 else 4)  # of a block
    columns = COLUMNS * eights
    turns = warps / 4  # warps that share a scheduler
    operands = tiles * depth // in_depth
    if way == "backward" and cell == "gru":
        operands = math.ceil(operands * 3 / 4)  # without the row that forward leaves empty
    # Every warp reads what is multiplied, forward h, backward the gate gradients of its share of the rows,
    # and what of the weights is not in registers.
    shares = max(1, warps * 16 // depth)
    read = columns * size * (depth if way == "forward" else gates * units // shares)
    kept = max(0, operands - held) * 512 * (2 if split > 1 else 1)
    products = max(warps * (read + kept) / SHARED, operands * split * eights * turns * PRODUCT) + DRAINED
    number = size if way == "forward" else 4
    arrival = FLIGHT + depth * columns * number / ARRIVING if exchange == "cluster" else BARRIER
    if way == "backward" or exchange == "block":
        # Nearly all other instructions come before what is sent.
        return products + turns * numbers["step"] + arrival
    # What memory waits for overlaps with the flight.
    after = turns * max(0, numbers["step"] - numbers["to_send"] - 2 * split * operands)
    return products + DRAINED + turns * numbers["to_send"] + max(arrival, after)


def measured(results: Path) -> dict[str, float]:
    """Seconds of a step of each kernel, by its name (without the operands in registers), with the
    smallest batch that the suite gave it.
    """
    found: dict[str, float] = {}
    for row in json.loads(results.read_text())["steps"]["rows"]:
        for name, of in row.get("kernels", {}).items():
            found.setdefault(name.rpartition(" R")[0], of["step"])
    return found


def main() -> None:
    kernels = json.loads(NUMBERS.read_text())["kernels"]
    taken = measured(Path(sys.argv[1])) if len(sys.argv) > 1 else {}
    print("| kernel | instructions of a step | to the first send | estimate, us a step | measured |")
    print("|---|---|---|---|---|")
    order = sorted(kernels, key=lambda name: [*name.split()[:3], *map(int, re.findall(r"[HN](\d+)", name))])
    for name in order:
        way, cell, dtype, depth, _, eights, exchange, *_ = name.split()
        if dtype not in ("bf16", "f32") or "relu" in name:
            continue
        words = f"{way}, {cell.replace('rnn_tanh', 'rnn').upper()} {dtype}, H {depth[1:]}, {exchange}"
        words += ", two eights of the batch" if eights == "N2" else ""
        step, send = kernels[name]["step"], kernels[name]["to_send"]
        seconds = taken.get(name.rpartition(" R")[0])
        cells = (words, step, send, f"{estimate(name, kernels[name]) / CLOCK * 1e6:.2f}")
        print("|", *(f"{cell} |" for cell in cells), f"{seconds * 1e6:.2f} |" if seconds else "|")


if __name__ == "__main__":
    main()
