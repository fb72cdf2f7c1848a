"""The checks of what `forward` and `backward` are given; each names the argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rnnfused.reference._cells import Cell
from rnnfused.reference._maths import Array, Arrays, require
from rnnfused.reference._options import Options
from rnnfused.reference._types import Weights
from rnnfused.reference._zoneout import Zoneout


def check_x(x: Array, packed: bool) -> None:
    require(bool(np.issubdtype(x.dtype, np.floating)), "x", "a float dtype", x.dtype)
    expected = "[N, I], as batch_sizes is given" if packed else "[T, B, I], as batch_sizes is not given"
    require(x.ndim == (2 if packed else 3), "x", f"shape {expected}", list(x.shape))


def check_batch_sizes(batch_sizes: Sequence[int], packed_rows: int) -> list[int]:
    sizes = [int(size) for size in batch_sizes]
    falling = bool(sizes) and sizes[-1] > 0 and sizes == sorted(sizes, reverse=True)
    require(falling, "batch_sizes", "at least one, all positive and never growing", sizes)
    require(sum(sizes) == packed_rows, "batch_sizes", f"a sum of {packed_rows}, the rows of x", sum(sizes))
    return sizes


def check_weights(name: str, cell: Cell, weights: Weights, options: Options, x: Array) -> Weights:
    """The weights in the dtype of x; w_ih states H, and w_hr, where there is one, P."""
    require(weights.w_hr is None or cell.projects, "weights.w_hr", f"None for cell {name!r}", "an array")
    gates, hidden = len(cell.x_to), _rows("weights.w_ih", weights.w_ih) // len(cell.x_to)
    width = hidden if weights.w_hr is None else _rows("weights.w_hr", weights.w_hr)
    for bias in ("b_ih", "b_hh") if options.layer_norm == "joint" else ():
        absent = getattr(weights, bias) is None
        require(absent, f"weights.{bias}", "None with layer_norm='joint', whose shift it is", "an array")
    heads = options.num_heads
    divides = hidden % heads == 0 and width % heads == 0
    require(divides, "num_heads", f"a divisor of {hidden} units and of {width}, which h has", heads)
    w_hh: tuple[int, ...] = (gates * hidden, width)
    if heads > 1:
        w_hh = (heads, gates * hidden // heads, width // heads)
    if cell.elementwise:
        w_hh = (hidden,)
    if not cell.h_to:
        require(weights.w_hh is None, "weights.w_hh", f"None for cell {name!r}", "an array")
    if cell.elementwise or not cell.h_to:
        require(weights.b_hh is None, "weights.b_hh", f"None for cell {name!r}", "an array")

    def check(name: str, weight: Array | None, *shape: int) -> Array:
        return check_array(f"weights.{name}", weight, shape, x.dtype)

    return Weights(
        w_ih=check("w_ih", weights.w_ih, gates * hidden, x.shape[-1]),
        w_hh=None if not cell.h_to else check("w_hh", weights.w_hh, *w_hh),
        b_ih=None if weights.b_ih is None else check("b_ih", weights.b_ih, gates * hidden),
        b_hh=None if weights.b_hh is None else check("b_hh", weights.b_hh, gates * hidden),
        w_hr=None if weights.w_hr is None else check("w_hr", weights.w_hr, width, hidden),
    )


def check_parameters(
    cell: Cell, parameters: Mapping[str, ArrayLike], options: Options, hidden: int, dtype: np.dtype[Any]
) -> dict[str, Array]:
    """What the options bring, and nothing else."""
    shapes: dict[str, tuple[int, ...]] = {}
    if options.peephole:
        shapes["weight_peephole"] = (2 if options.coupled_gates else 3, hidden)
    norms = {"separate": ("norm_ih", "norm_hh"), "input": ("norm_ih",), "joint": ("norm",), None: ()}
    sizes = dict.fromkeys(norms[options.layer_norm], len(cell.x_to) * hidden)
    if options.cell_norm is not None:
        sizes["norm_c"] = hidden
    shapes |= {f"{name}_{part}": (size,) for name, size in sizes.items() for part in ("weight", "bias")}
    require(parameters.keys() == shapes.keys(), "parameters", f"{sorted(shapes)}", sorted(parameters))
    return {
        name: check_array(f"parameters[{name!r}]", parameters[name], shape, dtype)
        for name, shape in shapes.items()
    }


def check_zoneout(
    cell: Cell,
    masks: tuple[ArrayLike, ...] | None,
    options: Options,
    shapes: list[tuple[int, ...]],
    dtype: np.dtype[Any],
) -> Zoneout | None:
    """shapes: of each state at all steps, in the layout of y."""
    if not options.zoneout:
        require(masks is None, "zoneout_masks", "None, as the option zoneout is 0", "masks")
        return None
    if masks is None:
        return Zoneout(tuple(np.full((1, 1), p, dtype) for p in options.keeps(len(cell.states))))
    checked = check_arrays("zoneout_masks", masks, shapes, dtype)
    for index, mask in enumerate(checked):
        require(
            bool(((mask == 0) | (mask == 1)).all()), f"zoneout_masks[{index}]", "0 and 1", "other numbers"
        )
    return Zoneout(
        tuple(mask.reshape(np.prod(mask.shape[:-1], dtype=int), mask.shape[-1]) for mask in checked)
    )


def check_arrays(
    name: str, values: Sequence[ArrayLike], shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]
) -> Arrays:
    require(len(values) == len(shapes), name, f"{len(shapes)} arrays", len(values))
    named = zip(values, shapes, strict=True)
    return tuple(check_array(f"{name}[{i}]", value, shape, dtype) for i, (value, shape) in enumerate(named))


def check_dropout(
    name: str, cell: Cell, factors: ArrayLike | None, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array | None:
    if factors is None:
        return None
    require(bool(cell.h_to), "recurrent_dropout", f"None for cell {name!r}", "an array")
    return check_array("recurrent_dropout", factors, shape, dtype)


def check_attention(name: str, cell: Cell, attention: ArrayLike | None, x: Array) -> Array | None:
    """[N]: of each packed row."""
    if not cell.attends:
        require(attention is None, "attention", f"None for cell {name!r}", "an array")
        return None
    return check_array("attention", attention, x.shape[:-1], x.dtype).reshape(-1)


def check_array(name: str, value: ArrayLike | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A copy of the value in the dtype, so that neither the caller nor a tape sees later changes."""
    array = np.array(value, dtype)
    require(array.shape == shape, name, f"shape {list(shape)}", list(array.shape))
    return array


def _rows(name: str, weight: Array) -> int:
    shape = np.shape(weight)
    require(len(shape) == 2, name, "two dimensions", f"shape {list(shape)}")
    rows: int = shape[0]
    return rows
