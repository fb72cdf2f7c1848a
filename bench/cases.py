"""What is measured: modes, cells and sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["CELLS", "DTYPES", "MODES", "MODES_OF", "Case", "cases", "inputs", "states", "weights"]

CELLS = {"rnn": 1, "lstm": 4, "gru": 3}  # and their gates
MODES = ("inference", "training", "streaming", "ragged", "stacked", "calls", "models")
# What is measured of each dtype: of int8 the weights alone, of which peers have none for training.
MODES_OF = {
    "float32": MODES,
    "bfloat16": ("inference", "training", "ragged", "stacked"),
    "int8": ("inference", "streaming"),
}
DTYPES = tuple(MODES_OF)
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0}

# T, B, H = I
SHAPES = (
    (128, 1, 64),
    (128, 1, 128),
    (128, 1, 256),
    (128, 1, 512),
    (64, 1, 1024),
    (512, 16, 64),
    (128, 8, 256),
    (128, 32, 256),
    (128, 32, 512),
    (32, 64, 1024),
)
# Sizes of published models: Deep Speech 2, GNMT, a recurrent policy.
REAL = (("gru", 100, 32, 1760), ("lstm", 50, 32, 1024), ("lstm", 64, 256, 128))
STREAMING = ((1, 1, 64), (1, 1, 128), (1, 1, 256), (1, 1, 512), (1, 1, 640), (1, 1, 1024))
# So small that the way to the kernels and back decides: (cell, T, B, I, H, of cells, backward).
CALLS = (
    *((cell, 1, 8, 32, 32, True, backward) for cell in CELLS for backward in (False, True)),
    ("lstm", 20, 8, 32, 32, True, True),
    ("lstm", 24, 32, 4, 16, False, True),
    ("lstm", 1, 1, 64, 64, False, False),
    ("lstm", 128, 1, 64, 64, False, False),
    ("lstm", 128, 1, 64, 64, False, True),
)
# The recurrent layers and cells of the models in bench.published, as they are called there:
# (model, cell, T, B, I, H, layers, both directions, of cells).
MODELS = (
    ("DeepSpeech", "rnn", 150, 4, 2048, 2048, 1, True, False),
    ("WaveRNN", "gru", 1375, 4, 544, 512, 1, False, False),
    ("Tacotron2 encoder", "lstm", 60, 8, 512, 256, 1, True, False),
    ("Tacotron2 decoder", "lstm", 1, 8, 1536, 1024, 1, False, True),
    ("CRDNN", "lstm", 100, 4, 2560, 512, 4, True, False),
    ("DPRNN-TasNet intra", "lstm", 100, 44, 128, 128, 1, True, False),
    ("DPRNN-TasNet inter", "lstm", 22, 200, 128, 128, 1, True, False),
    ("LSTM-TasNet", "lstm", 499, 2, 64, 512, 4, True, False),
    ("Open-Unmix", "lstm", 255, 4, 512, 256, 3, True, False),
    ("HDemucs outer", "lstm", 44, 1, 192, 192, 2, True, False),
    ("HDemucs inner", "lstm", 22, 1, 384, 384, 2, True, False),
    ("PyanNet", "lstm", 589, 8, 60, 128, 2, True, False),
    ("resemblyzer", "lstm", 160, 32, 40, 256, 3, False, False),
    ("kraken first", "lstm", 100, 8, 960, 200, 1, True, False),
    ("kraken next", "lstm", 100, 8, 400, 200, 1, True, False),
    ("EasyOCR", "lstm", 63, 8, 256, 256, 1, True, False),
    ("docTR", "lstm", 32, 8, 512, 128, 2, True, False),
    ("stanza characters", "lstm", 12, 699, 100, 400, 1, False, False),
    ("stanza tagger", "lstm", 40, 32, 325, 200, 1, True, False),
    ("stanza language model", "lstm", 250, 8, 100, 1024, 1, False, False),
    ("Temporal Fusion Transformer", "lstm", 60, 64, 16, 16, 1, False, False),
    ("DeepAR training", "lstm", 59, 64, 23, 10, 2, False, False),
    ("DeepAR sampling", "lstm", 1, 6400, 23, 10, 2, False, False),
    ("DeepAR of 40 units", "lstm", 47, 32, 48, 40, 2, False, False),
    ("neuralforecast LSTM", "lstm", 72, 128, 1, 128, 2, False, False),
    ("neuralforecast GRU", "gru", 72, 128, 1, 200, 2, False, False),
    ("BRITS", "lstm", 1, 32, 74, 128, 1, False, True),
    ("DIEN", "gru", 100, 128, 36, 36, 1, False, False),
    ("AttentiveFP", "gru", 1, 2600, 200, 200, 1, False, True),
    ("recurrent policy, acting", "lstm", 1, 8, 4, 256, 1, False, False),
    ("recurrent policy, learning", "lstm", 64, 63, 128, 128, 1, False, False),
    ("locomotion policy", "lstm", 24, 93, 48, 256, 1, False, False),
)
# The sizes of a quick run: a latency-bound one, a middle one, and one that is bound by arithmetic.
QUICK = {
    "inference": {(128, 1, 128), (512, 16, 64), (128, 8, 256), (128, 32, 512)},
    "training": {(128, 1, 128), (512, 16, 64), (128, 8, 256)},
    "streaming": {(1, 1, 64), (1, 1, 640)},
    "ragged": {(512, 16, 64), (128, 8, 256)},
    "stacked": {(128, 1, 128), (128, 8, 256)},
}
QUICK_MODELS = (
    "EasyOCR",
    "Temporal Fusion Transformer",
    "neuralforecast GRU",
    "BRITS",
    "recurrent policy, acting",
)


@dataclass(frozen=True)
class Case:
    """One row: a cell of hidden size H over T steps of B sequences, in one of the modes. The input is as
    wide, unless `input_size` says otherwise.

    The rest is for calls and models: `of_cells` calls a cell T times, its output the next call's input, in
    place of a layer; `backward` says whether gradients are taken; `model` is whose layer it is. `threads`
    are the row's own; 0: those of the run.
    `dtype` is that of the input and of the parameters; int8 that of the matrices, made of float32 ones by
    each peer in its way.
    """

    mode: str
    cell: str
    steps: int
    batch: int
    hidden: int
    layers: int = 1
    bidirectional: bool = False
    input_size: int = 0
    of_cells: bool = False
    backward: bool = False
    threads: int = 0
    dtype: str = "float32"
    model: str = ""

    @property
    def name(self) -> str:
        if self.mode == "calls":
            return f"calls {self.called}"
        if self.mode == "models":
            return f"models {self.model}: {self.called}"
        layers = f" L{self.layers}" if self.layers > 1 and self.mode != "stacked" else ""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.mode} {self.cell} T{self.steps} B{self.batch} H{self.hidden}{layers}{dtype}"

    @property
    def called(self) -> str:
        """What a row of calls calls, and which way."""
        what = f"{self.cell} T{self.steps}"
        if self.of_cells:
            what = f"{self.cell} cell" + (f" {self.steps} times" if self.steps > 1 else "")
        sizes = f"B{self.batch} " + (f"I{self.features} " if self.input_size else "") + f"H{self.hidden}"
        sizes += f" L{self.layers}" if self.layers > 1 else ""
        sizes += " bidirectional" if self.bidirectional else ""
        return f"{what} {sizes} {'forward and backward' if self.backward else 'forward'}"

    @property
    def timed_whole(self) -> bool:
        """Whether its time is told of a call: a step of it says nothing."""
        return self.mode in ("calls", "models")

    @property
    def features(self) -> int:
        return self.input_size or self.hidden

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def trains(self) -> bool:
        return self.backward or self.mode in ("training", "ragged", "stacked")

    def lengths(self) -> list[int]:
        """Lengths of the sequences, longest first: uniform in [T/4, T] when ragged, else all T."""
        if self.mode != "ragged":
            return [self.steps] * self.batch
        lengths = np.random.default_rng(2).integers(max(1, self.steps // 4), self.steps + 1, self.batch)
        lengths[0] = self.steps
        return sorted((int(n) for n in lengths), reverse=True)

    def projection_flops(self) -> float:
        """Of the input projection of all steps, forward: two per multiplication and addition."""
        inputs = self.features + self.hidden * (self.layers - 1) * self.directions
        return 2.0 * self.directions * CELLS[self.cell] * self.hidden * inputs * sum(self.lengths())

    def recurrent_flops(self) -> float:
        """Of the recurrent product of all steps, forward."""
        return 2.0 * self.directions * self.layers * CELLS[self.cell] * self.hidden**2 * sum(self.lengths())

    def recurrent_bytes(self) -> float:
        """Weights that every step of every layer must read."""
        return _BYTES[self.dtype] * CELLS[self.cell] * self.hidden**2 * self.layers * self.directions

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def cases(
    modes: tuple[str, ...] = MODES,
    cells: tuple[str, ...] = tuple(CELLS),
    quick: bool = False,
    dtype: str = "float32",
) -> list[Case]:
    """Every row of the modes and cells; `quick` keeps a few sizes of each."""
    rows = []
    for mode in modes:
        if mode == "calls":
            rows += [case for case in _calls() if case.cell in cells]
            continue
        if mode == "models":
            rows += [
                case for case in _models() if case.cell in cells and (not quick or case.model in QUICK_MODELS)
            ]
            continue
        for cell in cells:
            shapes = STREAMING if mode == "streaming" else SHAPES
            real = () if mode == "streaming" else tuple((t, b, h) for c, t, b, h in REAL if c == cell)
            for t, b, h in shapes + real:
                if (quick and (t, b, h) not in QUICK[mode]) or (mode == "ragged" and b == 1):
                    continue
                stacked = {"layers": 2, "bidirectional": True} if mode == "stacked" else {}
                rows.append(Case(mode, cell, t, b, h, **stacked, dtype=dtype))
    return rows


def _calls() -> list[Case]:
    rows = []
    for cell, t, b, i, h, of_cells, backward in CALLS:
        options = {"input_size": i if i != h else 0, "of_cells": of_cells, "backward": backward}
        # So little work gives a second thread nothing to do but wait.
        rows.append(Case("calls", cell, t, b, h, **options, threads=1))
    return rows


def _models() -> list[Case]:
    rows = []
    for model, cell, t, b, i, h, layers, bidirectional, of_cells in MODELS:
        options = {"input_size": i if i != h else 0, "of_cells": of_cells, "model": model}
        for backward in (False, True):
            rows.append(Case("models", cell, t, b, h, layers, bidirectional, backward=backward, **options))
    return rows


def _representable(values: np.ndarray, case: Case) -> np.ndarray:
    """In float32, rounded to what the case's dtype can hold: to even where two are as near."""
    bits = values.astype(np.float32).view(np.uint32)
    if case.dtype == "bfloat16":
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def inputs(case: Case) -> np.ndarray:
    """The input [T, B, I], the same in every process."""
    shape = (case.steps, case.batch, case.features)
    return _representable(np.random.default_rng(1).standard_normal(shape), case)


def states(case: Case) -> dict[str, np.ndarray]:
    """The states [B, H] that a row of cells starts from, h and an LSTM's c; the same in every process."""
    random = np.random.default_rng(4)
    names = ("h", "c") if case.cell == "lstm" else ("h",)
    shape = (case.batch, case.hidden)
    return {name: random.uniform(-1, 1, shape).astype(np.float32) for name in names}


def weights(case: Case) -> dict[str, np.ndarray]:
    """The parameters under torch's names, drawn as torch initialises them; the same in every process."""
    random = np.random.default_rng(3)
    bound = case.hidden**-0.5
    gates = CELLS[case.cell] * case.hidden
    found = {}
    for layer in range(case.layers):
        inputs = case.hidden * case.directions if layer else case.features
        for suffix in ("", "_reverse")[: case.directions]:
            for name, shape in (
                ("weight_ih", (gates, inputs)),
                ("weight_hh", (gates, case.hidden)),
                ("bias_ih", (gates,)),
                ("bias_hh", (gates,)),
            ):
                drawn = random.uniform(-bound, bound, shape)
                found[f"{name}_l{layer}{suffix}"] = _representable(drawn, case)
    return found
