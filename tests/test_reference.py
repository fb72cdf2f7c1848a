"""The NumPy reference against finite differences and against torch.nn, every gradient by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import DIFFERENCE_ATOL, DIFFERENCE_RTOL, DIFFERENCE_STEP, FLOAT64
from torch.nn.utils.rnn import PackedSequence

from rnnfused import reference
from rnnfused.reference import CELLS, Forward, Gradients, Weights

RAGGED = (4, 4, 2, 1)


@dataclass(frozen=True)
class Case:
    """One layer and its input: padded [T, B, I], or packed if batch_sizes is given (it states T and B)."""

    cell: str
    bias: bool = True
    reverse: bool = False
    batch_sizes: tuple[int, ...] | None = None
    steps: int = 4
    batch: int = 3
    inputs: int = 3
    hidden: int = 4
    projected: int = 0

    def __str__(self) -> str:
        parts = [
            self.cell,
            "bias" if self.bias else "no_bias",
            "reverse" if self.reverse else "forward",
            f"T{self.steps}_B{self.batch}" if self.batch_sizes is None else f"packed{list(self.batch_sizes)}",
            f"I{self.inputs}_H{self.hidden}_P{self.projected}",
        ]
        return "-".join(parts)

    @property
    def width(self) -> int:
        return self.projected or self.hidden


@dataclass(frozen=True)
class Layer:
    """The arguments of one forward and one backward."""

    case: Case
    x: np.ndarray
    states: tuple[np.ndarray, ...]
    weights: Weights
    dy: np.ndarray
    dstates: tuple[np.ndarray, ...]

    def forward(self) -> Forward:
        case = self.case
        return reference.forward(
            case.cell,
            self.x,
            self.states,
            self.weights,
            batch_sizes=case.batch_sizes,
            reverse=case.reverse,
        )

    def backward(self) -> Gradients:
        return reference.backward(self.case.cell, self.forward().tape, self.dy, self.dstates)

    def loss(self) -> float:
        result = self.forward()
        pairs = [(result.y, self.dy), *zip(result.states, self.dstates, strict=True)]
        return sum(float(np.sum(value * gradient)) for value, gradient in pairs)

    def leaves(self) -> dict[str, np.ndarray]:
        return named(self.x, self.states, self.weights)


def named(x: Any, states: tuple[Any, ...], weights: Any) -> dict[str, Any]:
    """Flattens what `Layer` and `Gradients` both have: x, every state, and the weights that are there."""
    arrays = {"x": x} | {f"states[{index}]": state for index, state in enumerate(states)}
    return arrays | {
        name: getattr(weights, name) for name in Weights._fields if getattr(weights, name) is not None
    }


def gradients_by_name(gradients: Gradients) -> dict[str, np.ndarray]:
    return named(gradients.x, gradients.states, gradients)


def make_layer(case: Case, dtype: type = np.float64) -> Layer:
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(dtype)

    gates, states = len(CELLS[case.cell].x_to), len(CELLS[case.cell].states)
    rows = (case.steps, case.batch) if case.batch_sizes is None else (sum(case.batch_sizes),)
    batch = case.batch if case.batch_sizes is None else case.batch_sizes[0]
    state_shapes = [(batch, case.width), (batch, case.hidden)][:states]
    weights = Weights(
        w_ih=normal(gates * case.hidden, case.inputs, scale=0.5),
        w_hh=normal(gates * case.hidden, case.width, scale=0.5),
        b_ih=normal(gates * case.hidden, scale=0.5) if case.bias else None,
        b_hh=normal(gates * case.hidden, scale=0.5) if case.bias else None,
        w_hr=normal(case.projected, case.hidden, scale=0.5) if case.projected else None,
    )
    return Layer(
        case=case,
        x=normal(*rows, case.inputs),
        states=tuple(normal(*shape) for shape in state_shapes),
        weights=weights,
        dy=normal(*rows, case.width),
        dstates=tuple(normal(*shape) for shape in state_shapes),
    )


def all_cases() -> Iterator[Case]:
    for cell, spec in CELLS.items():
        for projected in (0, 2) if spec.projects else (0,):
            for bias in (True, False):
                for reverse in (False, True):
                    for batch_sizes in (None, RAGGED):
                        yield Case(cell, bias, reverse, batch_sizes, projected=projected)


def small_cases() -> Iterator[Case]:
    for cell in CELLS:
        for reverse in (False, True):
            yield Case(cell, reverse=reverse, steps=1)
            yield Case(cell, reverse=reverse, batch=1)
            yield Case(cell, reverse=reverse, inputs=1, hidden=1)
            yield Case(cell, reverse=reverse, steps=1, batch=1, inputs=1, hidden=1)
            yield Case(cell, reverse=reverse, batch_sizes=(1,))
            yield Case(cell, reverse=reverse, batch_sizes=(3, 3))
    yield Case("lstm", projected=1, hidden=2)
    yield Case("lstm", projected=1, hidden=2, steps=1, batch=1)


TORCH_CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")
EVERY_CELL = pytest.mark.parametrize("cell", CELLS)
EVERY_TORCH_CELL = pytest.mark.parametrize("cell", TORCH_CELLS)
BOTH_WAYS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@pytest.mark.parametrize("case", list(all_cases()), ids=str)
def test_gradients_match_finite_differences(case: Case) -> None:
    layer = make_layer(case)
    gradients = gradients_by_name(layer.backward())
    assert gradients.keys() == layer.leaves().keys()
    for name, leaf in layer.leaves().items():
        np.testing.assert_allclose(
            gradients[name],
            finite_difference(layer, leaf),
            rtol=DIFFERENCE_RTOL,
            atol=DIFFERENCE_ATOL,
            err_msg=name,
        )


def finite_difference(layer: Layer, leaf: np.ndarray) -> np.ndarray:
    """The gradient of the layer's loss in one of its own arrays, which is changed in place and put back."""
    gradient = np.empty_like(leaf)
    for index in np.ndindex(leaf.shape):
        value = leaf[index]
        leaf[index] = value + DIFFERENCE_STEP
        above = layer.loss()
        leaf[index] = value - DIFFERENCE_STEP
        below = layer.loss()
        leaf[index] = value
        gradient[index] = (above - below) / (2 * DIFFERENCE_STEP)
    return gradient


@pytest.mark.parametrize(
    "case", [case for case in (*all_cases(), *small_cases()) if case.cell in TORCH_CELLS], ids=str
)
def test_matches_torch(case: Case) -> None:
    assert_matches_torch(make_layer(case))


def assert_matches_torch(layer: Layer) -> None:
    """Compares the output, every final state and every gradient; NaN must lie in the same places."""
    result, gradients = layer.forward(), gradients_by_name(layer.backward())
    y, states, torch_gradients = run_torch(layer)
    assert_close("y", result.y, y)
    for index, (ours, theirs) in enumerate(zip(result.states, states, strict=True)):
        assert_close(f"final states[{index}]", ours, theirs)
    assert gradients.keys() == torch_gradients.keys()
    for name, gradient in gradients.items():
        assert_close(f"gradient of {name}", gradient, torch_gradients[name])


def assert_close(name: str, ours: np.ndarray, theirs: torch.Tensor) -> None:
    np.testing.assert_allclose(
        ours, theirs.detach().numpy(), rtol=FLOAT64, atol=FLOAT64, err_msg=name, strict=True
    )


def run_torch(layer: Layer) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """torch.nn's output, final states and gradients by name, of the direction that the case asks for.

    torch.nn has no reversed layer alone, so a reversed case is the second half of a bidirectional one.
    """
    case = layer.case
    module = torch_module(case)
    suffix = "_l0_reverse" if case.reverse else "_l0"
    parameters = {
        name: getattr(module, torch_name + suffix)
        for name, torch_name in zip(
            Weights._fields, ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"), strict=True
        )
        if getattr(layer.weights, name) is not None
    }
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(getattr(layer.weights, name)))

    x = torch.from_numpy(layer.x).requires_grad_()
    states = tuple(torch.from_numpy(state).requires_grad_() for state in layer.states)
    both = tuple(torch.stack([state] * (2 if case.reverse else 1)) for state in states)
    packed = x if case.batch_sizes is None else PackedSequence(x, torch.tensor(case.batch_sizes))
    y, final = module(packed, both if len(both) > 1 else both[0])
    y = (y if case.batch_sizes is None else y.data)[..., -case.width :]
    finals = tuple(state[-1] for state in (final if len(both) > 1 else (final,)))

    leaves = named(x, states, Weights(**parameters))
    outputs, gradients = (y, *finals), (layer.dy, *layer.dstates)
    results = torch.autograd.grad(
        outputs, list(leaves.values()), [torch.from_numpy(value) for value in gradients]
    )
    return y, finals, dict(zip(leaves, results, strict=True))


def torch_module(case: Case) -> torch.nn.RNNBase:
    common = {"bias": case.bias, "bidirectional": case.reverse, "dtype": torch.float64}
    sizes = (case.inputs, case.hidden)
    match case.cell:
        case "rnn_tanh" | "rnn_relu":
            return torch.nn.RNN(*sizes, nonlinearity=case.cell.removeprefix("rnn_"), **common)
        case "lstm":
            return torch.nn.LSTM(*sizes, proj_size=case.projected, **common)
        case "gru":
            return torch.nn.GRU(*sizes, **common)
    raise AssertionError(f"torch.nn has no {case.cell}")


@EVERY_TORCH_CELL
@BOTH_WAYS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch_sizes", [None, RAGGED], ids=["padded", "packed"])
def test_non_finite_values_spread_as_in_torch(
    cell: str, reverse: bool, value: float, batch_sizes: tuple[int, ...] | None
) -> None:
    for leaf in ("x", "states[0]", "w_ih", "w_hh", "b_hh"):
        layer = make_layer(Case(cell, reverse=reverse, batch_sizes=batch_sizes))
        layer.leaves()[leaf][(1,) * layer.leaves()[leaf].ndim] = value
        assert_matches_torch(layer)


@EVERY_CELL
@BOTH_WAYS
def test_nan_stays_in_its_row_and_after_its_step(cell: str, reverse: bool) -> None:
    layer = make_layer(Case(cell, reverse=reverse))
    step, row = 2, 1
    layer.x[step, row, 0] = np.nan
    expected = np.zeros((layer.case.steps, layer.case.batch), bool)
    expected[slice(step + 1) if reverse else slice(step, None), row] = True
    np.testing.assert_array_equal(np.isnan(layer.forward().y).all(axis=-1), expected)
    np.testing.assert_array_equal(np.isnan(layer.forward().y).any(axis=-1), expected)


@EVERY_TORCH_CELL
@pytest.mark.parametrize("size", [1e3, -1e3, 1e300, -1e300])
def test_saturated_gates_match_torch(cell: str, size: float) -> None:
    layer = make_layer(Case(cell, steps=1))
    layer.weights.w_ih[:] = size
    layer.x[:] = 1
    layer.dy[:], layer.dstates[0][:] = 1, 1
    assert_matches_torch(layer)


def test_gates_keep_relative_accuracy_far_below_zero() -> None:
    # With every weight zero the LSTM's next c is sigmoid(b_f) c: here e^-200, where 1 - sigmoid(200) is 0.
    bias = np.array([0.0, -200.0, 0.0, 0.0])
    weights = Weights(np.zeros((4, 1)), np.zeros((4, 1)), bias)
    _, (_, c), _ = reference.forward(
        "lstm", np.zeros((1, 1, 1)), (np.zeros((1, 1)), np.ones((1, 1))), weights
    )
    np.testing.assert_allclose(c, np.exp(-200.0), rtol=FLOAT64)


def test_relu_gradient_at_zero_is_zero() -> None:
    layer = make_layer(Case("rnn_relu", bias=False))
    layer.weights.w_ih[:] = 0
    layer.weights.w_hh[:] = 0
    assert not layer.backward().w_ih.any()
    assert_matches_torch(layer)


@EVERY_CELL
@BOTH_WAYS
def test_packed_rows_equal_each_row_alone(cell: str, reverse: bool) -> None:
    layer = make_layer(Case(cell, reverse=reverse, batch_sizes=RAGGED))
    packed = layer.forward()
    starts = np.cumsum((0, *RAGGED[:-1]))
    for row in range(RAGGED[0]):
        rows = [start + row for start, size in zip(starts, RAGGED, strict=True) if row < size]
        states = tuple(state[row : row + 1] for state in layer.states)
        alone = reference.forward(cell, layer.x[rows][:, None], states, layer.weights, reverse=reverse)
        np.testing.assert_allclose(packed.y[rows], alone.y[:, 0], rtol=FLOAT64)
        for ours, expected in zip(packed.states, alone.states, strict=True):
            np.testing.assert_allclose(ours[row], expected[0], rtol=FLOAT64)


@EVERY_CELL
def test_one_absent_bias_counts_as_zero(cell: str) -> None:
    layer = make_layer(Case(cell))
    weights = layer.weights._replace(b_hh=None)
    zeros = layer.weights._replace(b_hh=np.zeros_like(layer.weights.b_hh))
    absent = reference.forward(cell, layer.x, layer.states, weights)
    np.testing.assert_array_equal(absent.y, reference.forward(cell, layer.x, layer.states, zeros).y)
    gradients = reference.backward(cell, absent.tape, layer.dy, layer.dstates)
    assert gradients.b_ih is not None
    assert gradients.b_hh is None


@pytest.mark.parametrize("case", list(all_cases()), ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble])
def test_runs_in_the_dtype_of_x(case: Case, dtype: type) -> None:
    exact, layer = make_layer(case), make_layer(case, dtype)
    result, gradients = layer.forward(), gradients_by_name(layer.backward())
    taped = [array for step in result.tape.steps for array in (*step.prev, *step.new, *step.gates)]
    for array in (result.y, *result.states, *taped, *gradients.values()):
        assert array.dtype == dtype
    # The inputs are rounded to the dtype, and the error grows by a few steps of products of order 1.
    tolerance = 20 * max(np.finfo(dtype).eps, np.finfo(np.float64).eps)
    for name, gradient in gradients_by_name(exact.backward()).items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradients[name], gradient, rtol=0, atol=tolerance * scale, err_msg=name)


def test_weights_and_states_are_cast_to_the_dtype_of_x() -> None:
    layer = make_layer(Case("lstm"))
    result = reference.forward("lstm", layer.x.astype(np.float32), layer.states, layer.weights)
    assert {array.dtype for array in (result.y, *result.states)} == {np.dtype(np.float32)}


@EVERY_CELL
def test_tape_and_arguments_are_independent(cell: str) -> None:
    layer, untouched = make_layer(Case(cell)), make_layer(Case(cell))
    result = layer.forward()
    for name, leaf in layer.leaves().items():
        np.testing.assert_array_equal(leaf, untouched.leaves()[name], err_msg=name)
        leaf[:] = np.nan
    result.y[:], result.states[0][:] = np.nan, np.nan
    gradients = reference.backward(cell, result.tape, layer.dy, layer.dstates)
    again = reference.backward(cell, result.tape, layer.dy, layer.dstates)
    expected = gradients_by_name(untouched.backward())
    for name, gradient in gradients_by_name(gradients).items():
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)
        np.testing.assert_array_equal(gradient, gradients_by_name(again)[name], err_msg=name)


@EVERY_CELL
@pytest.mark.parametrize("shape", [{"steps": 0}, {"batch": 0}], ids=str)
def test_empty_input_keeps_the_states_and_has_no_gradients(cell: str, shape: dict[str, int]) -> None:
    layer = make_layer(Case(cell, **shape))
    result, gradients = layer.forward(), layer.backward()
    assert result.y.shape == layer.dy.shape
    for ours, initial in zip(result.states, layer.states, strict=True):
        np.testing.assert_array_equal(ours, initial)
    for name, gradient in gradients_by_name(gradients).items():
        assert gradient.shape == layer.leaves()[name].shape
    for ours, given in zip(gradients.states, layer.dstates, strict=True):
        np.testing.assert_array_equal(ours, given)
    assert not gradients.w_ih.any()
    assert not gradients.w_hh.any()


# A change to the arguments of a right call of the LSTM with projection (T=4 B=3 I=3 H=4 P=2), and the words.
WRONG_FORWARD = {
    "cell": ({"cell": "LSTM"}, r"cell: expected one of rnn_tanh, rnn_relu, lstm, gru, .*, got 'LSTM'"),
    "x dtype": ({"x": np.zeros((4, 3, 3), int)}, r"x: expected a float dtype, got int64"),
    "x dimensions": ({"x": np.zeros((12, 3))}, r"x: expected shape \[T, B, I\].*, got \[12, 3\]"),
    "x packed dimensions": ({"batch_sizes": (3,)}, r"x: expected shape \[N, I\].*, got \[4, 3, 3\]"),
    "number of states": ({"states": (np.zeros((3, 2)),)}, r"states: expected 2 arrays, got 1"),
    "h0": (
        {"states": (np.zeros((3, 4)), np.zeros((3, 4)))},
        r"states\[0\]: expected shape \[3, 2\], got \[3, 4\]",
    ),
    "c0": (
        {"states": (np.zeros((3, 2)), np.zeros((3, 2)))},
        r"states\[1\]: expected shape \[3, 4\], got \[3, 2\]",
    ),
    "w_ih dimensions": ({"w_ih": np.zeros(16)}, r"weights\.w_ih: expected two dimensions, got shape \[16\]"),
    "w_ih rows": ({"w_ih": np.zeros((17, 3))}, r"weights\.w_ih: expected shape \[16, 3\], got \[17, 3\]"),
    "w_ih columns": ({"w_ih": np.zeros((16, 5))}, r"weights\.w_ih: expected shape \[16, 3\], got \[16, 5\]"),
    "w_hh": ({"w_hh": np.zeros((16, 4))}, r"weights\.w_hh: expected shape \[16, 2\], got \[16, 4\]"),
    "b_ih": ({"b_ih": np.zeros(4)}, r"weights\.b_ih: expected shape \[16\], got \[4\]"),
    "b_hh": ({"b_hh": np.zeros((1, 16))}, r"weights\.b_hh: expected shape \[16\], got \[1, 16\]"),
    "w_hr dimensions": ({"w_hr": np.zeros(4)}, r"weights\.w_hr: expected two dimensions, got shape \[4\]"),
    "w_hr": ({"w_hr": np.zeros((2, 3))}, r"weights\.w_hr: expected shape \[2, 4\], got \[2, 3\]"),
}


@pytest.mark.parametrize("change, message", WRONG_FORWARD.values(), ids=WRONG_FORWARD)
def test_forward_names_the_wrong_argument(change: dict[str, Any], message: str) -> None:
    layer = make_layer(Case("lstm", projected=2))
    weights = layer.weights._replace(**{name: change[name] for name in Weights._fields if name in change})
    arguments = {"cell": "lstm", "x": layer.x, "states": layer.states, "weights": weights}
    others = {name: value for name, value in change.items() if name not in Weights._fields}
    with pytest.raises(ValueError, match=f"^{message}$"):
        reference.forward(**(arguments | others))


@pytest.mark.parametrize("cell", [name for name, spec in CELLS.items() if not spec.projects])
def test_projection_is_refused_where_the_cell_has_none(cell: str) -> None:
    layer = make_layer(Case(cell))
    weights = layer.weights._replace(w_hr=np.zeros((2, 4)))
    with pytest.raises(ValueError, match=rf"^weights\.w_hr: expected None for cell '{cell}', got an array$"):
        reference.forward(cell, layer.x, layer.states, weights)


@pytest.mark.parametrize(
    "batch_sizes, message",
    [
        ((), r"at least one, all positive and never growing, got \[\]"),
        ((4, 4, 3, 0), r"at least one, all positive and never growing, got \[4, 4, 3, 0\]"),
        ((3, 4, 4), r"at least one, all positive and never growing, got \[3, 4, 4\]"),
        ((4, 4, 2), r"a sum of 11, the rows of x, got 10"),
    ],
    ids=["none", "zero", "growing", "sum"],
)
def test_wrong_batch_sizes_are_named(batch_sizes: tuple[int, ...], message: str) -> None:
    layer = make_layer(Case("gru", batch_sizes=RAGGED))
    with pytest.raises(ValueError, match=f"^batch_sizes: expected {message}$"):
        reference.forward("gru", layer.x, layer.states, layer.weights, batch_sizes=batch_sizes)


WRONG_BACKWARD = {
    "unknown cell": ({"cell": "lstm2"}, r"cell: expected one of .*, got 'lstm2'"),
    "other cell": ({"cell": "gru"}, r"cell: expected 'lstm', which made the tape, got 'gru'"),
    "dy": ({"dy": np.zeros((4, 3, 3))}, r"dy: expected shape \[4, 3, 4\], got \[4, 3, 3\]"),
    "number of dstates": ({"dstates": (np.zeros((3, 4)),)}, r"dstates: expected 2 arrays, got 1"),
    "dstates": (
        {"dstates": (np.zeros((3, 4)), np.zeros((4, 4)))},
        r"dstates\[1\]: expected shape \[3, 4\], got \[4, 4\]",
    ),
}


@pytest.mark.parametrize("change, message", WRONG_BACKWARD.values(), ids=WRONG_BACKWARD)
def test_backward_names_the_wrong_argument(change: dict[str, Any], message: str) -> None:
    layer = make_layer(Case("lstm"))
    right = {"cell": "lstm", "tape": layer.forward().tape, "dy": layer.dy, "dstates": layer.dstates}
    with pytest.raises(ValueError, match=f"^{message}$"):
        reference.backward(**(right | change))
