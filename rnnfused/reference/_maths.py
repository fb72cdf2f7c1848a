"""Functions of arrays and their gradients; shared by cells and stages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = tuple[Array, ...]

# Inside the root of a layer norm, as in torch.nn.LayerNorm.
EPS = 1e-5


def sigmoid(x: Array) -> Array:
    # Neither exponential can overflow, and the numerator keeps full relative accuracy far below zero.
    y: Array = np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))
    return y


def sigmoid_slope(y: Array) -> Array:
    slope: Array = y * (1 - y)
    return slope


def tanh_slope(y: Array) -> Array:
    # 1 - y is exact near saturation, where 1 - y * y would keep only the rounding error of the square.
    slope: Array = (1 - y) * (1 + y)
    return slope


def clamp(x: Array | float, limit: float | None) -> Array:
    """x within [-limit, limit]; NaN stays NaN."""
    return np.asarray(x) if limit is None else np.clip(x, -limit, limit)


def clamp_backward(d: Array, x: Array, limit: float | None) -> Array:
    """Zero where x was beyond the limit or NaN, as in torch.clamp."""
    return d if limit is None else np.where(np.abs(x) <= limit, d, 0)


def layer_norm(rows: Array, weight: Array, bias: Array) -> tuple[Array, Arrays]:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, and its tape.

    Source: Ba, Kiros and Hinton, "Layer normalization", 2016; the variance is the biased one.
    """
    centred = rows - rows.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + EPS)
    normal = centred * inverse
    return normal * weight + bias, (normal, inverse)


def layer_norm_backward(d: Array, tape: Arrays, weight: Array) -> tuple[Array, Array, Array]:
    """Gradients of the rows, the weight and the bias; mean and variance depend on all of a row."""
    normal, inverse = tape
    dnormal = d * weight
    along = (dnormal * normal).mean(axis=-1, keepdims=True)
    drows = inverse * (dnormal - dnormal.mean(axis=-1, keepdims=True) - normal * along)
    return drows, (d * normal).sum(axis=0), d.sum(axis=0)


def require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")
