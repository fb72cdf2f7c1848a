"""What tests of other frameworks' layers share: steps in NumPy over time and layers, and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tolerances import FLOAT64, ONNX_ULPS

import rnnfused

Array = NDArray[Any]
B, T, INPUT, H = 2, 6, 3, 4
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}
CELLS = list(GATES)
LAYOUTS: list[tuple[int, bool]] = [(1, False), (1, True), (2, False), (2, True)]  # num_layers, bidirectional

draw = np.random.default_rng(0).standard_normal


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def relu(a: Array) -> Array:
    return np.maximum(a, 0)


# A step of a cell: (x [B, I], h, c) to the next (h, c), c being left alone where there is none.
Step = Callable[[Array, Array, Array], tuple[Array, Array]]


def over_time(step: Step, x: Array, reverse: bool = False) -> Array:
    """x [B, T, I] to h of every step [B, T, H]."""
    h = c = np.zeros((len(x), H))
    outputs = np.zeros((*x.shape[:2], H))
    for t in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
        h, c = step(x[:, t], h, c)
        outputs[:, t] = h
    return outputs


def over_layers(steps: Sequence[Sequence[Step]], x: Array) -> Array:
    for directions in steps:
        x = np.concatenate([over_time(step, x, bool(k)) for k, step in enumerate(directions)], axis=-1)
    return x


def make(cell: str, *sizes: Any, **options: Any) -> Any:
    kinds = {"lstm": rnnfused.LSTM, "gru": rnnfused.GRU}
    if cell in kinds:
        return kinds[cell](*sizes, **options)
    return rnnfused.RNN(*sizes, nonlinearity=cell.removeprefix("rnn_"), **options)


def output(layer: Any, x: Array) -> Array:
    """In evaluation."""
    with torch.no_grad():
        found: Array = layer.eval()(torch.from_numpy(x))[0].numpy()
    return found


def assert_close(got: Array, want: Array) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=FLOAT64)


def assert_float32_close(got: Array, want: Array) -> None:
    """Of two frameworks' layers: either may be off as ONNX Runtime's may."""
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= ONNX_ULPS * np.finfo(np.float32).eps * np.abs(want).max()


def assert_same_arrays(got: Sequence[Array], want: Sequence[Array]) -> None:
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def features(num_layers: int, bidirectional: bool) -> list[int]:
    return [INPUT, *[H * (1 + bidirectional)] * (num_layers - 1)]


def with_one_bias(layer: Any) -> Any:
    """The same without b_hh, as from frameworks that have one bias."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("bias_hh"):
                parameter.zero_()
    return layer
