"""The results that every peer is held against: torch.nn's in float64, on the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bench.cases import Case
from bench.peers.torch_layers import measured, torch_layers

__all__ = ["write"]


def write(case: Case, folder: Path) -> None:
    """One file a result; float32 is exact enough for the tolerance that peers are held to."""
    prepared = measured(torch_layers(case, torch.float64), case, torch.float64)
    with prepared.context():
        prepared.run()
        results = prepared.results()
    for name, array in results.items():
        np.save(folder / f"{name}.npy", array.astype(np.float32))
