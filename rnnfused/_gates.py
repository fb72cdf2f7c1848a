"""Where others keep the gates of a cell within its weights: the one table of `onnx` and `interop`."""

from __future__ import annotations

from rnnfused.cells import CELLS

__all__ = ["from_torch", "to_torch"]

# Row (or column) blocks, in the letters of CellSpec.gates. A cell with one gate has one order.
_ORDERS = {
    "haste": {"lstm": "igfo", "gru": "zrn"},
    "keras": {"lstm": "ifgo", "gru": "zrn"},
    "onnx": {"lstm": "iofg", "gru": "zrn"},
}


def from_torch(framework: str, cell: str) -> tuple[int, ...]:
    """For each gate in the framework's order, its place in torch's."""
    gates = CELLS[cell].gates
    return tuple(gates.index(gate) for gate in _ORDERS[framework].get(cell, gates))


def to_torch(framework: str, cell: str) -> tuple[int, ...]:
    """For each gate in torch's order, its place in the framework's."""
    places = from_torch(framework, cell)
    return tuple(places.index(place) for place in range(len(places)))
