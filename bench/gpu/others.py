"""More ways to run a row's layer than torch.nn in the row's dtype and rnnfused: torch.nn under autocast, and
packages that happen to be importable. Nothing is installed for them; one that fails is only left out.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from bench.gpu.cases import PRECISIONS, GpuCase
from bench.gpu.peers import Layer, Sets, layers

__all__ = ["OTHERS", "others_of"]

NARROW = ("f16", "bf16")


@dataclass(frozen=True)
class Other:
    """`package` must be importable; `make` gives the layer with the row's weights."""

    package: str
    precisions: tuple[str, ...]
    cells: tuple[str, ...]
    modes: tuple[str, ...]
    make: Callable[[GpuCase, str, Sets], Layer]

    def takes(self, row: GpuCase) -> bool:
        sizes = (row.precision in self.precisions, row.case.cell in self.cells, row.case.mode in self.modes)
        return all(sizes) and importlib.util.find_spec(self.package) is not None


def _autocast(row: GpuCase, device: str, given: Sets) -> Layer:
    """Parameters and input in float32."""
    x = [t.detach().float().requires_grad_(row.case.trains) for t in given.x]
    dtype = getattr(torch, PRECISIONS[row.precision].dtype)
    return Layer(layers(row, device, torch.float32), row, replace(given, x=x), autocast=(device, dtype))


class FlashLstm(torch.nn.Module):
    """FlashRNN's LSTM with one head: it takes the projected input [B, T, gates, heads, H], recurrent weights
    [gates, heads, H, H before], biases [gates, heads, H], and gives states [states, B, T, heads, H], h first.
    Its gates are in torch's order (flashrnn/vanilla/lstm.py).
    """

    def __init__(self, lstm: torch.nn.Module, precision: str) -> None:
        super().__init__()
        for name, parameter in lstm.named_parameters():
            self.register_parameter(name, parameter)
        self._flashrnn = importlib.import_module("flashrnn").flashrnn
        self._dtype = PRECISIONS[precision].dtype

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        steps, batch, _ = x.shape
        hidden = self.weight_hh_l0.shape[1]
        projected = linear(x, self.weight_ih_l0, self.bias_ih_l0).view(steps, batch, 4, 1, hidden)
        states, _ = self._flashrnn(
            projected.transpose(0, 1).contiguous(),
            self.weight_hh_l0.view(4, 1, hidden, hidden),
            self.bias_hh_l0.view(4, 1, hidden),
            function="lstm",
            dtype=self._dtype,
        )
        return states[0].squeeze(2).transpose(0, 1), None


def _flashrnn(row: GpuCase, device: str, given: Sets) -> Layer:
    return Layer(FlashLstm(layers(row, device), row.precision), row, given)


def _haste(row: GpuCase, device: str, given: Sets) -> Layer:
    kind = getattr(importlib.import_module("haste_pytorch"), row.case.cell.upper())
    module = kind(row.case.hidden, row.case.hidden).to(device)
    module.from_native_weights(*layers(row, device).parameters())
    return Layer(module, row, given)


OTHERS = {
    "autocast": Other(
        "torch",
        NARROW,
        ("rnn", "lstm", "gru"),
        ("inference", "training", "ragged", "stacked"),
        _autocast,
    ),
    "flashrnn": Other("flashrnn", NARROW, ("lstm",), ("inference", "training"), _flashrnn),
    "haste": Other("haste_pytorch", ("f32",), ("lstm", "gru"), ("inference", "training"), _haste),
}


def others_of(row: GpuCase) -> dict[str, Other]:
    return {name: other for name, other in OTHERS.items() if other.takes(row)}
