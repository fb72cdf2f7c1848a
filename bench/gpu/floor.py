"""The least time of a row on a device whose limits were measured."""

from __future__ import annotations

from typing import Any

from bench.cases import CELLS, Case
from bench.gpu.cases import PRECISIONS, GpuCase

__all__ = ["bytes_moved", "floor", "operations", "terms"]


def operations(case: Case) -> float:
    """Of all products. Backward has two for every one of forward's: for the input and for the weights."""
    return (case.projection_flops() + case.recurrent_flops()) * (3 if case.trains else 1)


def bytes_moved(row: GpuCase) -> float:
    """Every input read once and every output written once: x, the weights and y; in training their gradients
    too. What lies between forward and backward is not counted: it could be computed again.
    """
    case, rows = row.case, sum(row.case.lengths())
    gates = CELLS[case.cell] * case.hidden
    weights = case.directions * (2 * gates * case.layers)  # biases
    for layer in range(case.layers):
        inputs = case.hidden * (case.directions if layer else 1)
        weights += case.directions * gates * (inputs + case.hidden)
    elements = rows * case.hidden + weights + rows * case.hidden * case.directions
    return float(PRECISIONS[row.precision].bytes * elements * (2 if case.trains else 1))


def terms(row: GpuCase, limits: dict[str, Any]) -> dict[str, float]:
    """Seconds, of each limit that was measured: of the products at the rate of large ones, of the memory
    traffic at that of a large copy, and of one exchange between SMs for each of the steps that must follow
    one another. (Where one SM holds all weights of a sequence there need be no exchange.)
    """
    found = {}

    def value(name: str) -> float | None:
        return limits.get(name, {}).get("median")

    if rate := value(f"gemm_{row.precision}"):
        found["operations"] = operations(row.case) / rate
    if rate := value("copy"):
        found["bytes"] = bytes_moved(row) / rate
    if hop := value("cluster_hop_2"):
        chain = (row.case.steps + row.case.layers - 1) * (2 if row.case.trains else 1)
        found["exchange"] = chain * hop
    return found


def floor(row: GpuCase, limits: dict[str, Any]) -> dict[str, Any]:
    """`seconds` of the largest term of operations and bytes, and the term of the exchange beside it."""
    of = terms(row, limits)
    hard = {name: of[name] for name in ("operations", "bytes") if name in of}
    if len(hard) < 2:
        return {"terms": of, "seconds": None, "by": None}
    by = max(hard, key=lambda name: hard[name])
    return {"terms": of, "seconds": hard[by], "by": by}
