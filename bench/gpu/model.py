"""`python -m bench.gpu.model`: what a step of the resident kernels should take, by estimate: the instructions
of their loops (tools/sass.json) and latencies that others have published. No GPU is asked, and no GPU has
confirmed it: the GPU suite's rows are what to hold it against (docs/gpu.md).
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

__all__ = ["estimate", "main"]

NUMBERS = Path(__file__).parents[2] / "tools" / "sass.json"
CLOCK = 1.7e9  # of an H100 under load; an H200 reads 1.98
# Cycles. Luo et al. (2024), "Benchmarking and dissecting the Nvidia Hopper GPU architecture through
# microbenchmarking": mma.sync m16n8k16 takes 33 in a chain and reaches 63 % of the rate of its tensor core,
# whose 8 cycles are then 13; a hop of distributed shared memory takes 180 to 230.
CHAINED, APART = 33, 13
FLIGHT = {"cluster": 230, "block": 30}  # the latter a barrier of the block
WAIT = 70  # the wait that succeeds, and the first ldmatrix
SHARED = 128  # bytes a cycle of a multiprocessor's shared memory


def estimate(name: str, numbers: dict[str, int]) -> float:
    """Cycles of a step of a kernel, by its name in tools/sass.json."""
    way, cell, dtype, depth, tiles, eights, exchange, warps, held = (
        int(word[1:]) if word[0] in "HMNWR" and word[1:].isdigit() else word for word in name.split()
    )
    operands = tiles * depth // (8 if dtype == "tf32" else 16)
    if cell == "gru" and way == "backward":
        operands = math.ceil(operands * 3 / 4)  # without the row that forward leaves empty
    turns = warps / 4  # warps that share a scheduler
    chains = 4 if tiles == 1 else 2 * tiles
    shared = max(0, operands - held) * 512 * warps / SHARED
    products = max(operands / chains * CHAINED, operands * eights * turns * APART, shared)
    if way == "forward":
        # What memory waits for overlaps with the flight.
        waited = WAIT + products + turns * numbers["to_send"] + FLIGHT[exchange]
        return max(waited, WAIT + turns * numbers["step"])
    # Nearly all instructions come before the sends.
    barrier = FLIGHT["block"]
    return WAIT + barrier + products + turns * numbers["step"] + FLIGHT[exchange]


def main() -> None:
    kernels = json.loads(NUMBERS.read_text())["kernels"]
    print("| kernel | instructions of a step | to the first send | estimate, us a step |\n|---|---|---|---|")
    order = sorted(kernels, key=lambda name: [*name.split()[:3], *map(int, re.findall(r"[HN](\d+)", name))])
    for name in order:
        if " bf16 " not in name or "relu" in name:
            continue
        way, cell, _, depth, _, eights, exchange, *_ = name.split()
        words = f"{way}, {cell.replace('rnn_tanh', 'rnn').upper()}, H {depth[1:]}, {exchange}"
        words += ", two eights of the batch" if eights == "N2" else ""
        step, send = kernels[name]["step"], kernels[name]["to_send"]
        print(f"| {words} | {step} | {send} | {estimate(name, kernels[name]) / CLOCK * 1e6:.2f} |")


if __name__ == "__main__":
    main()
