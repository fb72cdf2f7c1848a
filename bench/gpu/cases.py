"""What is measured on a GPU: the sizes, in every precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.cases import CELLS, Case

__all__ = ["PRECISIONS", "SHAPES", "GpuCase", "dry_cases", "gpu_cases"]


@dataclass(frozen=True)
class Precision:
    dtype: str  # torch's name
    bytes: int
    epsilon: float  # of what enters a product
    tf32: bool = False


PRECISIONS = {
    "f16": Precision("float16", 2, 2.0**-10),
    "bf16": Precision("bfloat16", 2, 2.0**-7),
    "tf32": Precision("float32", 4, 2.0**-10, tf32=True),
    "f32": Precision("float32", 4, 2.0**-23),
}

# T, B, H = I: bound by latency, by exchange and by arithmetic; weights that fit one SM, a cluster, the chip.
SHAPES = (
    (128, 16, 768),
    (128, 64, 512),
    (128, 32, 256),
    (128, 1, 256),
    (128, 64, 1024),
    (512, 16, 64),
    (128, 128, 1024),
    (128, 32, 2048),
)
RAGGED = (128, 64, 512)
STACKED = (128, 32, 256)


@dataclass(frozen=True)
class GpuCase:
    """A row: a case in one of the precisions. "tf32" is float32 whose products may round to TF32, "f32" is
    float32 whose products may not.
    """

    case: Case
    precision: str

    @property
    def name(self) -> str:
        return f"{self.case.name} {self.precision}"

    def as_dict(self) -> dict[str, Any]:
        return {"case": self.case.as_dict(), "precision": self.precision}


def _stacked(mode: str) -> dict[str, Any]:
    return {"layers": 2, "bidirectional": True} if mode == "stacked" else {}


def gpu_cases() -> list[GpuCase]:
    """Every row, those first that say most: each part of the list covers all sizes before the next begins."""
    parts = [
        ("lstm", "f16", "inference"),
        ("gru", "bf16", "training"),
        ("lstm", "bf16", "training"),
        ("gru", "f16", "inference"),
        ("lstm", "tf32", "training"),
        ("lstm", "f32", "inference"),
        ("rnn", "f16", "training"),
    ]
    every = [(c, p, m) for m in ("inference", "training") for c in ("lstm", "gru", "rnn") for p in PRECISIONS]
    extra = [(c, p, m) for c in ("lstm", "gru") for p in ("bf16", "f32") for m in ("ragged", "stacked")]
    ordered = [*parts[:4], *extra[:4], *parts[4:], *extra[4:], *every]
    found = []
    for cell, precision, mode in dict.fromkeys(ordered):
        shapes = {"ragged": (RAGGED,), "stacked": (STACKED,)}.get(mode, SHAPES)
        for t, b, h in shapes:
            found.append(GpuCase(Case(mode, cell, t, b, h, **_stacked(mode)), precision))
    return found


def dry_cases() -> list[GpuCase]:
    """Tiny ones, of every cell, precision and mode."""
    found = []
    for i, cell in enumerate(CELLS):
        for j, precision in enumerate(PRECISIONS):
            mode = ("inference", "training", "ragged", "stacked")[(i + j) % 4]
            found.append(GpuCase(Case(mode, cell, 3, 2, 8, **_stacked(mode)), precision))
    return found
