"""What comes before the gate maths of a step: products with W_hh and norms, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rnnfused.reference._cells import Cell, Extras
from rnnfused.reference._maths import (
    Array,
    Arrays,
    clamp,
    clamp_backward,
    layer_norm,
    layer_norm_backward,
    sigmoid,
    sigmoid_slope,
)


def split(product: Array, gates: int) -> Array:
    """[n, G*H] -> [G, n, H]."""
    return np.moveaxis(product.reshape(len(product), gates, product.shape[1] // max(gates, 1)), 1, 0)


def join(gates: Array) -> Array:
    """[G, n, H] -> [n, G*H]."""
    count, n, hidden = gates.shape
    return np.moveaxis(gates, 0, 1).reshape(n, count * hidden)


class Recurred(NamedTuple):
    """What the backward of a step's recurrence needs."""

    operands: Arrays  # of each phase, [n, P|H]: what W_hh was multiplied with
    reset: Arrays  # of each phase with a reset: its accumulator and the sigmoid of that, each [n, H]
    norm: Arrays


@dataclass(frozen=True)
class Recurrence:
    """The products of a layer's steps with W_hh, in the phases of its cell.

    W_hh is [k, G, H/k, (P|H)/k] here, whatever it was given as.
    """

    cell: Cell
    extras: Extras
    w_hh: Array
    b_hh: Array | None
    operand: Callable[[Array], Array]

    def forward(self, acc: Array, h: Array) -> tuple[Array, Recurred]:
        """Accumulators that have what x gives -> with what h [n, P|H] gives, all normalised as asked."""
        layer, parameters = self.extras.options.layer_norm, self.extras.parameters
        operands: list[Array] = []
        reset: Arrays = ()
        norm: Arrays = ()
        for gates, index in self.cell.products():
            rows = h
            if index is not None:
                r = sigmoid(clamp(acc[index], self.extras.options.gate_clip))
                reset = (acc[index].copy(), r)
                rows = r * h
            operands.append(self.operand(rows))
            product = self._product(operands[-1], gates)
            if layer == "separate":
                product, norm = _norm(product, parameters, "norm_hh")
            acc[[self.cell.h_to[gate] for gate in gates]] += product
        if layer == "joint":
            acc, norm = _norm(acc, parameters, "norm")
        return acc, Recurred(tuple(operands), reset, norm)

    def backward(
        self, dacc: Array, h: Array, tape: Recurred, dw_hh: Array, parameters: dict[str, Array]
    ) -> tuple[Array, Array, Array]:
        """Gradients of the accumulators after the gate maths -> of them with what x gives alone, of all
        gates' products with W_hh [G, n, H], of h. Those of w_hh and of the norms are added to what is given.
        """
        layer = self.extras.options.layer_norm
        if layer == "joint":
            dacc = self._norm_backward(dacc, tape.norm, parameters, "norm")
        dproduct, dh = np.zeros((len(self.cell.h_to), *dacc.shape[1:]), dacc.dtype), np.zeros_like(h)
        for (gates, index), operand in reversed([*zip(self.cell.products(), tape.operands, strict=True)]):
            d = dacc[[self.cell.h_to[gate] for gate in gates]]
            if layer == "separate":
                d = self._norm_backward(d, tape.norm, parameters, "norm_hh")
            dproduct[list(gates)] = d
            drows = self._product_backward(d, operand, gates, dw_hh)
            if index is not None:
                a, r = tape.reset
                limit = self.extras.options.gate_clip
                dacc[index] += clamp_backward(drows * h * sigmoid_slope(r), a, limit)
                drows = drows * r
            dh += drows
        return dacc, dproduct, dh

    def _product(self, rows: Array, gates: tuple[int, ...]) -> Array:
        """[n, P|H] -> [g, n, H]."""
        heads, _, units, _ = self.w_hh.shape
        by_head = self._by_head(rows) @ self._matrix(gates).swapaxes(1, 2)
        by_gate = by_head.reshape(heads, len(rows), len(gates), units).transpose(2, 1, 0, 3)
        product: Array = by_gate.reshape(len(gates), len(rows), heads * units)
        return product if self.b_hh is None else product + self._bias(gates)

    def _product_backward(self, d: Array, rows: Array, gates: tuple[int, ...], dw_hh: Array) -> Array:
        """Gradient of the rows; that of the gates' part of w_hh is added to dw_hh."""
        heads, _, units, width = self.w_hh.shape
        by_gate = d.reshape(len(gates), len(rows), heads, units)
        by_head = by_gate.transpose(2, 1, 0, 3).reshape(heads, len(rows), len(gates) * units)
        dmatrix = by_head.swapaxes(1, 2) @ self._by_head(rows)
        dw_hh[:, list(gates)] += dmatrix.reshape(heads, len(gates), units, width)
        drows: Array = (by_head @ self._matrix(gates)).swapaxes(0, 1).reshape(rows.shape)
        return drows

    def _by_head(self, rows: Array) -> Array:
        heads, width = self.w_hh.shape[0], self.w_hh.shape[3]
        return rows.reshape(len(rows), heads, width).swapaxes(0, 1)

    def _matrix(self, gates: tuple[int, ...]) -> Array:
        heads, _, units, width = self.w_hh.shape
        return self.w_hh[:, list(gates)].reshape(heads, len(gates) * units, width)

    def _bias(self, gates: tuple[int, ...]) -> Array:
        assert self.b_hh is not None
        return self.b_hh.reshape(len(self.cell.h_to), 1, -1)[list(gates)]

    def _norm_backward(self, d: Array, tape: Arrays, gradients: dict[str, Array], name: str) -> Array:
        rows, dweight, dbias = layer_norm_backward(join(d), tape, self.extras.parameters[f"{name}_weight"])
        gradients[f"{name}_weight"] += dweight
        gradients[f"{name}_bias"] += dbias
        return split(rows, len(d))


def _norm(gates: Array, parameters: dict[str, Array], name: str) -> tuple[Array, Arrays]:
    """Over all gates of a row, [G, n, H]."""
    rows, tape = layer_norm(join(gates), parameters[f"{name}_weight"], parameters[f"{name}_bias"])
    return split(rows, len(gates)), tape
