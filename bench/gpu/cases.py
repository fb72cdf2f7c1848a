"""What is measured on a GPU: the sizes, in every precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.cases import CELLS, Case

__all__ = ["PRECISIONS", "ROWS", "SHAPES", "GpuCase", "dry_cases", "gpu_cases", "key_cases", "smoke_cases"]


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
    "f64": Precision("float64", 8, 2.0**-52),
}
MEASURED = ("f16", "bf16", "tf32", "f32")
ROWS = ("key", "all")  # what is measured: those that say most, or every one

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


# Mode, cell, precision, T, B, H: those that say most, and of these the first ones most, since the time may
# end before the rows do. Between them: all cells and precisions, batches of 1, 16 and 64, 64 to 1024 units.
KEY = (
    ("training", "lstm", "bf16", 128, 16, 768),
    ("training", "lstm", "f32", 128, 16, 256),
    ("inference", "lstm", "bf16", 128, 1, 512),
    ("training", "gru", "bf16", 128, 64, 512),
    ("training", "lstm", "tf32", 128, 64, 256),
    ("training", "lstm", "bf16", 512, 16, 64),
    ("ragged", "lstm", "bf16", 128, 64, 512),
    ("stacked", "lstm", "bf16", 128, 16, 256),
    ("training", "lstm", "bf16", 128, 64, 1024),
    ("inference", "gru", "bf16", 128, 16, 256),
    ("training", "gru", "tf32", 128, 16, 512),
    ("inference", "lstm", "f16", 128, 16, 1024),
    ("training", "rnn", "bf16", 128, 16, 512),
    ("inference", "lstm", "f32", 128, 1, 256),
    ("training", "gru", "f32", 512, 16, 64),
    ("training", "lstm", "f16", 128, 16, 256),
    ("inference", "lstm", "tf32", 512, 16, 64),
    ("ragged", "gru", "f32", 128, 16, 256),
    ("stacked", "gru", "tf32", 128, 64, 512),
    ("inference", "gru", "f16", 128, 1, 768),
    ("training", "rnn", "f32", 128, 64, 256),
    ("inference", "rnn", "tf32", 512, 1, 64),
    ("training", "gru", "bf16", 128, 16, 1024),
    ("training", "lstm", "f32", 128, 16, 768),
)


def key_cases() -> list[GpuCase]:
    return [GpuCase(Case(m, cell, t, b, h, **_stacked(m)), precision) for m, cell, precision, t, b, h in KEY]


def gpu_cases() -> list[GpuCase]:
    """Every row: the key ones, then in parts of which each covers all sizes before the next begins."""
    parts = [
        ("lstm", "f16", "inference"),
        ("gru", "bf16", "training"),
        ("lstm", "bf16", "training"),
        ("gru", "f16", "inference"),
        ("lstm", "tf32", "training"),
        ("lstm", "f32", "inference"),
        ("rnn", "f16", "training"),
    ]
    every = [(c, p, m) for m in ("inference", "training") for c in ("lstm", "gru", "rnn") for p in MEASURED]
    extra = [(c, p, m) for c in ("lstm", "gru") for p in ("bf16", "f32") for m in ("ragged", "stacked")]
    ordered = [*parts[:4], *extra[:4], *parts[4:], *extra[4:], *every]
    found = key_cases()
    for cell, precision, mode in dict.fromkeys(ordered):
        shapes = {"ragged": (RAGGED,), "stacked": (STACKED,)}.get(mode, SHAPES)
        for t, b, h in shapes:
            found.append(GpuCase(Case(mode, cell, t, b, h, **_stacked(mode)), precision))
    return list(dict.fromkeys(found))


# T, B, H: units that a thread takes one by one, and a few hundred, with a batch that no tile divides.
SMOKE = ((5, 3, 7), (9, 17, 256))
# Resident kernels (docs/gpu.md) that these sizes leave out: clusters of up to 16 blocks, alone and with so
# many sequences that each cluster takes more of them; weights beyond the registers.
SMOKE_CHIP = ((3, 200, 200), (4, 9, 500), (3, 130, 500), (3, 9, 750))


def smoke_cases() -> list[GpuCase]:
    """Every cell in every precision, small and larger, then ragged; last what asks most of the device."""
    found = []
    for mode, (t, b, h) in (*(("training", shape) for shape in SMOKE), ("ragged", SMOKE[-1])):
        found += [GpuCase(Case(mode, cell, t, b, h), p) for p in PRECISIONS for cell in CELLS]
    for t, b, h in SMOKE_CHIP:
        found += [GpuCase(Case("training", cell, t, b, h), p) for p in ("bf16", "tf32") for cell in CELLS]
    return found


def dry_cases() -> list[GpuCase]:
    """Tiny ones, of every cell, precision and mode."""
    found = []
    for i, cell in enumerate(CELLS):
        for j, precision in enumerate(MEASURED):
            mode = ("inference", "training", "ragged", "stacked")[(i + j) % 4]
            found.append(GpuCase(Case(mode, cell, 3, 2, 8, **_stacked(mode)), precision))
    return found
