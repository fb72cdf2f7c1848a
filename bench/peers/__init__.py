"""The implementations that are measured. A peer turns a case into a function to time and its results.

Every peer has a module of its own, imported only in the process that measures it: what one library does to
the process (threads, allocators) never touches another.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.cases import CELLS, MODES, MODES_OF, Case

__all__ = ["KNOWN", "OURS", "PEERS", "Prepared", "available", "peers_of", "prepare", "weighed_against"]


@dataclass(frozen=True)
class Peer:
    module: str  # of this package; its prepare(case, threads) makes the Prepared
    package: str  # that must be installed
    modes: tuple[str, ...]
    cells: tuple[str, ...] = tuple(CELLS)
    runs: Callable[[], bool] = lambda: True  # on this processor

    def takes(self, case: Case) -> bool:
        return case.mode in self.modes and case.cell in self.cells


@dataclass(frozen=True)
class Prepared:
    """`run` does one call, within `context`; `results` names its outputs: y, and of a case that trains the
    gradients of x, of the states h and c that are given, and of every parameter under torch's name.
    """

    run: Callable[[], None]
    results: Callable[[], dict[str, np.ndarray]]
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


def _autocasts() -> bool:
    """torch.nn's layers under autocast need a processor whose bfloat16 oneDNN knows."""
    import torch

    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
    except RuntimeError:
        return False
    return True


PEERS = {
    "torch": Peer("torch_nn", "torch", MODES),
    "jax": Peer("jax_scan", "jax", ("inference", "training", "streaming", "stacked")),
    "onnxruntime": Peer("onnx_runtime", "onnxruntime", ("inference", "streaming")),
    "openvino": Peer("open_vino", "openvino", ("inference", "streaming")),
    "rnnfused": Peer("rnnfused_nn", "rnnfused", MODES),
}
# And rnnfused with an option, for a comparison of its own; and what 16 bits are held against, too.
KNOWN = PEERS | {
    "recompute": Peer("rnnfused_recompute", "rnnfused", ("training", "ragged", "stacked")),
    "autocast": Peer("torch_autocast", "torch", MODES_OF["bfloat16"], runs=_autocasts),
    "float32": Peer("rnnfused_float32", "rnnfused", MODES),
    # Of torch.nn's layers it quantises these.
    "torch.ao": Peer("torch_quantized", "torch", MODES_OF["int8"], ("lstm", "gru")),
    "ort int8": Peer("onnx_quantized", "onnxruntime", MODES_OF["int8"], ("lstm",)),
}
OURS = ("float32", "recompute", "rnnfused")


def peers_of(dtype: str) -> dict[str, Peer]:
    """In 16 bits torch.nn has two ways, modules of that type and autocast; in 8 bits peers have few cells."""
    if dtype == "float32":
        return PEERS
    others = {"bfloat16": ("torch", "autocast", "openvino"), "int8": ("torch.ao", "ort int8")}
    return {name: KNOWN[name] for name in (*others[dtype], "float32", "rnnfused")}


def weighed_against(dtype: str) -> str:
    """The peer whose memory is the measure of rnnfused's."""
    return "torch" if dtype == "float32" else "float32"


def available(dtype: str = "float32") -> list[str]:
    """The peers whose package is installed, and runs here."""
    peers = peers_of(dtype).items()
    return [name for name, peer in peers if importlib.util.find_spec(peer.package) and peer.runs()]


def prepare(peer: str, case: Case, threads: int) -> Prepared:
    """`threads` are the run's; a case may have its own."""
    module = importlib.import_module(f"bench.peers.{KNOWN[peer].module}")
    prepared: Prepared = module.prepare(case, case.threads or threads)
    return prepared
