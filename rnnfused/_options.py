"""Options of the cells: what layers and cells take that changes torch.nn's equations (docs/cells.md)."""

from __future__ import annotations

import operator
from typing import Any, TypedDict

from rnnfused.cells import EVERY_CELL

__all__ = ["DEFAULTS", "CellOptions", "as_number", "asked", "layer_fields"]


class CellOptions(TypedDict, total=False):
    """What changes a cell's equations; docs/cells.md has them. Each stands for torch.nn's cell by default.

    layer_norm: "separate" (or True), "joint" (LSTM, GRU) or "input" (LiGRU). cell_norm: of the LSTM with a
    layer norm, "carried" or "output". peephole, coupled_gates: of the LSTM. reset_after: of the GRU (True).
    update_bias: of the GRU with the joint norm. zoneout: the probability for all states or for each (h, c).
    recurrent_dropout: a probability. cell_clip (LSTM), gate_clip, grad_clip: numbers above 0. num_heads: W_hh
    is block-diagonal.
    """

    peephole: bool
    coupled_gates: bool
    reset_after: bool
    layer_norm: str | bool | None
    cell_norm: str | None
    update_bias: float
    zoneout: float | tuple[float, ...]
    recurrent_dropout: float
    cell_clip: float | None
    gate_clip: float | None
    grad_clip: float | None
    num_heads: int


DEFAULTS: dict[str, Any] = {
    "peephole": False,
    "coupled_gates": False,
    "reset_after": True,
    "layer_norm": None,
    "cell_norm": None,
    "update_bias": 0.0,
    "zoneout": 0.0,
    "recurrent_dropout": 0.0,
    "cell_clip": None,
    "gate_clip": None,
    "grad_clip": None,
    "num_heads": 1,
}
_ALWAYS = ("zoneout", "grad_clip")
_NUMBERS = (
    *("update_bias", "zoneout", "recurrent_dropout", "cell_clip", "gate_clip", "grad_clip", "num_heads"),
)


def asked(options: dict[str, Any]) -> dict[str, Any]:
    """The options that differ from torch.nn's cells, layer_norm by its name and numbers as Python's own.

    Raises TypeError, naming the option, for what is no number.
    """
    named = {"layer_norm": {True: "separate", False: None}}
    found = {}
    for name, value in options.items():
        if name in _NUMBERS:
            value = _as_numbers(name, value)
        elif isinstance(value, bool):
            value = named.get(name, {}).get(value, value)
        if value != DEFAULTS[name]:
            found[name] = value
    return found


def layer_fields(cell: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options as fields of a LayerConfig, those left out that torch.nn's cell has.

    Raises TypeError for an unknown option and for what is no number, and ValueError, naming the option, for
    what the cell has not, what does not go together, and wrong values.
    """
    if unknown := options.keys() - DEFAULTS.keys():
        raise TypeError(f"{min(unknown)}: expected no such argument")
    fields = {name: _constant(value) for name, value in asked(options).items()}
    if not fields:
        return {}
    _check(cell, DEFAULTS | fields, fields)
    if "reset_after" in fields:
        fields["reset_before"] = not fields.pop("reset_after")
    if "zoneout" in fields:
        fields["zoneout"] = (*_each_state(cell, fields["zoneout"]), 0.0)[:2]
    return fields


def _constant(value: Any) -> Any:
    """With dynamic=True compilers have a float stand for any, until they are asked for its digits."""
    if isinstance(value, tuple):
        return tuple(_constant(each) for each in value)
    return float.fromhex(value.hex()) if isinstance(value, float) else value


def _as_numbers(name: str, value: Any) -> Any:
    """`as_number` of what an option takes: one, for zoneout perhaps several, for what can be off None."""
    if name == "zoneout" and isinstance(value, (tuple, list)):
        return tuple(as_number(name, each) for each in value)
    return None if value is None and DEFAULTS[name] is None else as_number(name, value)


def as_number(name: str, value: Any) -> float:
    """Python's own, of NumPy's and torch's numbers, too; an int for num_heads. Raises TypeError."""
    if type(value) is (int if name == "num_heads" else float):
        return value  # all that compilers see, which cannot ask it for a dtype
    try:
        # float takes what has one element, and truth values of any library.
        is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
        if is_bool or isinstance(value, str) or getattr(value, "ndim", 0) > 0:
            raise TypeError
        return operator.index(value) if name == "num_heads" else float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: torch's, of complex numbers
        kind = "an integer" if name == "num_heads" else "a number"
        raise TypeError(f"{name}: expected {kind}, got {value!r}") from None


def _each_state(cell: str, zoneout: Any) -> tuple[float, ...]:
    """The probability of each state's zoneout; raises ValueError for what is none."""
    spec = EVERY_CELL[cell]
    states = spec.states[:1] if spec.memory else spec.states
    each = zoneout if isinstance(zoneout, tuple) else (zoneout,) * len(states)
    right = len(each) == len(states) and all(0 <= p <= 1 for p in each)
    _require(right, "zoneout", f"a probability or one for each of {', '.join(states)}", zoneout)
    return each


def _check(cell: str, options: dict[str, Any], changed: dict[str, Any]) -> None:
    """That the cell has what was changed, and that the options go together."""
    spec = EVERY_CELL[cell]
    takes = (*spec.takes, *_ALWAYS, *(["recurrent_dropout"] if spec.recurrent else []))
    for name, value in changed.items():
        allowed = name in takes
        _require(allowed, name, f"nothing for cell {cell!r}, which has no such option", repr(value))
    norm, cell_norm = options["layer_norm"], options["cell_norm"]
    norms, cell_norms = (None, *spec.norms), (None, "carried", "output")
    _require(norm in norms, "layer_norm", f"one of {norms}", repr(norm))
    _require(cell_norm in cell_norms, "cell_norm", f"one of {cell_norms}", repr(cell_norm))
    _require(cell_norm is None or norm is not None, "cell_norm", "a layer_norm beside it", "none")
    # Each norm is over the products of all gates, and that of n is not there before r is known.
    after = options["reset_after"] or norm is None
    _require(after, "layer_norm", "None with reset_after=False", repr(norm))
    joint = norm == "joint" or not options["update_bias"]
    _require(joint, "update_bias", "layer_norm='joint' beside it", repr(norm))
    for name in ("cell_clip", "gate_clip", "grad_clip"):
        limit = options[name]
        _require(limit is None or limit > 0, name, "a number above 0", limit)
    p = options["recurrent_dropout"]
    _require(0 <= p <= 1, "recurrent_dropout", "a probability in [0, 1]", p)
    heads = options["num_heads"]
    _require(heads >= 1, "num_heads", "at least 1", heads)


def _require(right: bool, name: str, expected: str, got: object) -> None:
    if not right:
        raise ValueError(f"{name}: expected {expected}, got {got}")
