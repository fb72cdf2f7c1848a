"""Tangents of layers and of their gradients, and the gates' gradients, against layers of torch operations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from one_layer import SLOTS
from results import assert_same_bits
from tolerances import FLOAT64, FLOOR_ULPS, TORCH_ERRORS, eps
from torch import Tensor

from rnnfused import _decomposed
from rnnfused._layer import LayerConfig

Maybe = Tensor | None
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}
VARIANTS = [("rnn_tanh", False), ("rnn_relu", False), ("lstm", False), ("lstm", True), ("gru", False)]


@dataclass
class Case:
    """A layer and what flows through it; lists are in the order of x, h0, c0, weights and of y, h_n, c_n."""

    cell: str
    batch_sizes: Maybe
    inputs: list[Maybe]
    tangents: list[Maybe]
    outer: list[Maybe]
    outer_tangents: list[Maybe]

    @property
    def layer(self) -> LayerConfig:
        weights = self.inputs[3:]
        return LayerConfig(
            self.cell,
            bidirectional=len(weights) > SLOTS,
            bias=weights[2] is not None,
            projected=weights[4] is not None,
        )

    def there(self, of: Sequence[Maybe]) -> list[Maybe]:
        """Of a list in the order of the inputs, or of the outputs, what is of those that there are."""
        like = self.inputs if len(of) == len(self.inputs) else self.inputs[:3]
        return [t for t, given in zip(of, like, strict=True) if given is not None]

    def arguments(self) -> tuple[object, ...]:
        """input, hx, params, batch_sizes, lengths, resets, output, layer, as the operators take them."""
        x, h0, c0, *weights = self.inputs
        assert x is not None
        hx, params = list(present((h0, c0))), list(present(weights))
        y = torch.ops.rnnfused.recurrent(x, hx, params, self.batch_sizes, None, None, self.layer.text, False)[
            0
        ]
        return x, hx, params, self.batch_sizes, None, None, y, self.layer.text

    def run(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The layer as torch operations, of the inputs that there are."""
        states = 2 + (self.inputs[2] is not None)
        return tuple(
            _decomposed.recurrent(
                self.layer, given[0], given[1:states], given[states:], self.batch_sizes, None, None
            )
        )

    def to(self, place: torch.dtype | str) -> Case:
        """On another device, or of another dtype."""
        lists = ("inputs", "tangents", "outer", "outer_tangents")
        return replace(
            self, **{k: [None if t is None else t.to(place) for t in getattr(self, k)] for k in lists}
        )


def make(
    cell: str,
    projected: bool = False,
    directions: int = 1,
    packed: bool = False,
    biases: bool = True,
    sizes: tuple[int, int, int, int] = (4, 3, 2, 5),
) -> Case:
    t, b, i, h = sizes
    p = (h + 1) // 2 if projected else h
    g = GATES[cell] * h
    batch_sizes = torch.tensor([b - s * (b - 1) // (t - 1) for s in range(t)]) if packed else None
    rows = (t, b) if batch_sizes is None else (int(batch_sizes.sum()),)
    shapes: list[tuple[int, ...] | None] = [(*rows, i), (directions, b, p)]
    shapes.append((directions, b, h) if cell == "lstm" else None)
    bias = (g,) if biases else None
    for _ in range(directions):
        shapes += [(g, i), (g, p), bias, bias, (p, h) if projected else None]
    outputs = [(*rows, directions * p), *shapes[1:3]]

    def draw(of: Sequence[tuple[int, ...] | None]) -> list[Maybe]:
        return [None if s is None else torch.randn(s, dtype=torch.float64) for s in of]

    inputs = draw(shapes)
    for k in range(3, len(inputs)):  # so that gates do not saturate
        inputs[k] = None if inputs[k] is None else inputs[k] / h**0.5  # type: ignore[operator]
    return Case(cell, batch_sizes, inputs, draw(shapes), draw(outputs), draw(outputs))


def present(tensors: Sequence[Maybe]) -> tuple[Tensor, ...]:
    return tuple(t for t in tensors if t is not None)


def zeros_for(tensors: Sequence[Maybe], likes: Sequence[Maybe]) -> list[Tensor]:
    """Of those that there are: the tensor, or zeros where it is left out."""
    return [
        torch.zeros_like(like) if t is None else t
        for t, like in zip(tensors, likes, strict=True)
        if like is not None
    ]


def native(case: Case, outputs: bool, wanted: Sequence[int], moved: bool = False) -> list[Tensor]:
    found: list[Tensor] = torch.ops.rnnfused.recurrent_tangent(
        case.there(case.tangents),
        case.there(case.outer),
        case.there(case.outer_tangents) if moved else [],
        *case.arguments(),
        outputs,
        wanted,
    )
    return found


def everything(case: Case) -> list[int]:
    return list(range(len(present(case.inputs))))


def layer_tangent(case: Case) -> list[Tensor]:
    return native(case, True, [])


def expected_tangent(case: Case) -> tuple[Tensor, ...]:
    tangents = zeros_for(case.tangents, case.inputs)
    result: tuple[Tensor, ...] = torch.func.jvp(case.run, present(case.inputs), tuple(tangents))[1]
    return result


def double_backward(case: Case) -> list[Tensor]:
    return native(case, True, everything(case))


def expected_double_backward(case: Case) -> list[Maybe]:
    """In the order of all that there are of y, h_n, c_n and the inputs."""
    inputs = [t.detach().requires_grad_() for t in present(case.inputs)]
    outputs = case.run(*inputs)
    given = [*case.outer[: len(outputs)]]
    outer = [t.detach().requires_grad_() for t in zeros_for(given, outputs)]
    gradients = torch.autograd.grad(outputs, inputs, outer, create_graph=True)
    directions = zeros_for(case.tangents, case.inputs)
    return list(torch.autograd.grad(gradients, [*outer, *inputs], directions, allow_unused=True))


def gradient_tangent(case: Case) -> list[Tensor]:
    return native(case, False, everything(case), moved=True)


def expected_gradient_tangent(case: Case) -> tuple[Tensor, ...]:
    count = len(present(case.inputs))

    def gradients(*given: Tensor) -> tuple[Tensor, ...]:
        _, pull = torch.func.vjp(case.run, *given[:count])
        result: tuple[Tensor, ...] = pull(given[count:])
        return result

    primals = (*present(case.inputs), *present(case.outer))
    along = (*zeros_for(case.tangents, case.inputs), *zeros_for(case.outer_tangents, case.outer))
    result: tuple[Tensor, ...] = torch.func.jvp(gradients, primals, along)[1]
    return result


def assert_close(got: Sequence[Maybe], want: Sequence[Maybe]) -> None:
    for one, other in zip(present(got), want, strict=True):
        expected = torch.zeros_like(one) if other is None else other
        assert one.shape == expected.shape
        scale = max(1.0, float(expected.abs().max()))
        assert float((one - expected).abs().max()) <= FLOAT64 * scale


LAYOUTS = pytest.mark.parametrize(
    "directions, packed, biases", [(1, False, True), (2, False, False), (1, True, False), (2, True, True)]
)


@LAYOUTS
@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_tangents_of_outputs(cell: str, projected: bool, directions: int, packed: bool, biases: bool) -> None:
    case = make(cell, projected, directions, packed, biases)
    assert_close(layer_tangent(case), expected_tangent(case))


def by_the_tape(case: Case, wanted: Sequence[int] = (), tape: Maybe = None) -> list[Tensor]:
    x, hx, params, *layout, y, text = case.arguments()
    if tape is None:
        tape = torch.ops.rnnfused.recurrent(x, hx, params, *layout, text, True)[-1]
    moved: list[Maybe] = []
    along, outer = case.there(case.tangents), case.there(case.outer)
    given = (along, outer, moved, x, hx, params, *layout, y, text, True, wanted, tape)
    found: list[Tensor] = torch.ops.rnnfused.recurrent_tangent(*given)
    return found


@LAYOUTS
@pytest.mark.parametrize("sizes", [(4, 3, 2, 5), (3, 2, 3, 33), (3, 2, 4, 700)], ids=str)
@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_tangents_by_the_tape(
    cell: str, projected: bool, directions: int, packed: bool, biases: bool, sizes: tuple[int, int, int, int]
) -> None:
    case = make(cell, projected, directions, packed, biases, sizes)
    assert_close(by_the_tape(case), expected_tangent(case))
    everything_of = everything(case)
    for one, other in zip(by_the_tape(case, everything_of), native(case, True, everything_of), strict=True):
        assert_same_bits(one, other)


@pytest.mark.skipif("RNNFUSED_TEST_EXTENSION" in os.environ, reason="on a GPU the gates are computed again")
def test_the_tape_is_checked() -> None:
    case = make("lstm")
    with pytest.raises(RuntimeError, match=r"tape: expected size \[1, \d+\], got \[1, 3\]"):
        by_the_tape(case, tape=torch.zeros(1, 3, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="tape: expected"):
        by_the_tape(case, tape=torch.zeros(1, 3))


@LAYOUTS
@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_tangents_of_gradients(
    cell: str, projected: bool, directions: int, packed: bool, biases: bool
) -> None:
    case = make(cell, projected, directions, packed, biases)
    assert_close(gradient_tangent(case), expected_gradient_tangent(case))


@LAYOUTS
@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_double_backward(cell: str, projected: bool, directions: int, packed: bool, biases: bool) -> None:
    case = make(cell, projected, directions, packed, biases)
    assert_close(double_backward(case), expected_double_backward(case))


def only(tensors: Sequence[Maybe], kept: int) -> list[Maybe]:
    return [t if i == kept else None for i, t in enumerate(tensors)]


@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_each_tangent_alone(cell: str, projected: bool) -> None:
    case = make(cell, projected, 2, True)
    for i in range(len(case.inputs)):
        if case.inputs[i] is not None:
            one = replace(case, tangents=only(case.tangents, i))
            assert_close(layer_tangent(one), expected_tangent(one))
            assert_close(double_backward(one), expected_double_backward(one))


@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_each_outer_gradient_alone(cell: str, projected: bool) -> None:
    case = make(cell, projected, 2, True)
    for i in range(3):
        if case.outer[i] is not None:
            one = replace(case, outer=only(case.outer, i))
            assert_close(double_backward(one), expected_double_backward(one))


@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_each_outer_tangent_alone(cell: str, projected: bool) -> None:
    case = make(cell, projected, 2, True)
    nothing: list[Maybe] = [None] * len(case.inputs)
    for i in range(3):
        if case.outer[i] is not None:
            one = replace(case, tangents=nothing, outer_tangents=only(case.outer_tangents, i))
            assert_close(gradient_tangent(one), expected_gradient_tangent(one))


@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_only_what_is_wanted(cell: str, projected: bool) -> None:
    case = make(cell, projected, 2)
    every = gradient_tangent(case)
    for index in everything(case):
        assert_same_bits(native(case, False, [index], moved=True), every[index : index + 1])


def test_nothing_gives_zeros() -> None:
    case = make("gru")
    none: list[Maybe] = [None] * len(case.inputs)
    still = replace(case, tangents=none, outer_tangents=[None] * 3)
    for tensor in (*layer_tangent(still), *gradient_tangent(still), *double_backward(still)):
        assert not tensor.any()
    with pytest.raises(RuntimeError, match=r"wanted: expected indices below 6, got 6"):
        native(case, True, [6])


def test_strided_tensors() -> None:
    case = make("lstm", directions=2)

    def strided(tensors: Sequence[Maybe]) -> list[Maybe]:
        return [None if t is None else t.repeat_interleave(2, -1)[..., ::2] for t in tensors]

    spread = replace(
        case,
        tangents=strided(case.tangents),
        outer=strided(case.outer),
        outer_tangents=strided(case.outer_tangents),
    )
    assert_same_bits(present(gradient_tangent(spread)), present(gradient_tangent(case)))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 4, 3, 17), (3, 1, 1, 16), (9, 2, 3, 33)])
@pytest.mark.parametrize("cell", GATES)
def test_sizes(cell: str, sizes: tuple[int, int, int, int]) -> None:
    case = make(cell, directions=2, sizes=sizes)
    assert_close(layer_tangent(case), expected_tangent(case))
    assert_close(double_backward(case), expected_double_backward(case))


# Their weights outgrow the panels with which a step's kernel multiplies: torch does, backward or both ways.
@pytest.mark.parametrize("cell, sizes", [("lstm", (3, 2, 2, 260)), ("rnn_tanh", (3, 2, 2, 1040))])
def test_large_layers(cell: str, sizes: tuple[int, int, int, int]) -> None:
    case = make(cell, sizes=sizes)
    assert_close(layer_tangent(case), expected_tangent(case))
    assert_close(double_backward(case), expected_double_backward(case))


@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_on_a_gpu(cell: str, projected: bool, gpu: str) -> None:
    case = make(cell, projected, 2, True, sizes=(4, 3, 2, 17)).to(gpu)
    assert_close(layer_tangent(case), expected_tangent(case))
    assert_close(double_backward(case), expected_double_backward(case))
    assert_close(gradient_tangent(case), expected_gradient_tangent(case))


@pytest.mark.parametrize("cell", GATES)
def test_threads(cell: str) -> None:
    # Steps that are large enough to be shared out. The other products are torch's, and so are their bits.
    case = make(cell, sizes=(3, 32, 8, 128))
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(present(double_backward(case)))
    finally:
        torch.set_num_threads(threads)
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])


def errors(got: Sequence[Maybe], exact: Sequence[Maybe]) -> list[tuple[float, float]]:
    """Largest errors, and the largest values."""
    return [
        (float((one.double() - two).abs().max()), float(two.abs().max()))
        for one, two in zip(present(got), present(exact), strict=True)
    ]


@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_errors_in_float32(cell: str, projected: bool) -> None:
    case = make(cell, projected, 2, True, sizes=(20, 5, 7, 33))
    single = case.to(torch.float32)
    double = single.to(torch.float64)
    for ours, theirs in ((layer_tangent, expected_tangent), (double_backward, expected_double_backward)):
        exact = theirs(double)
        for (error, scale), (torchs, _) in zip(
            errors(ours(single), exact), errors(theirs(single), exact), strict=True
        ):
            assert error <= max(TORCH_ERRORS * torchs, FLOOR_ULPS * eps("float32") * scale)


@LAYOUTS
@pytest.mark.parametrize("cell, projected", VARIANTS)
def test_gate_gradients(cell: str, projected: bool, directions: int, packed: bool, biases: bool) -> None:
    case = make(cell, projected, directions, packed, biases)
    *arguments, y, layer = case.arguments()
    gates = torch.ops.rnnfused.recurrent_gate_gradients(case.there(case.outer), *arguments, y, layer)
    each = len(gates) // directions
    inputs = [t.detach().requires_grad_() for t in present(case.inputs)]
    found = iter(torch.autograd.grad(case.run(*inputs), inputs, present(case.outer)))
    want = [None if t is None else next(found) for t in case.inputs]
    x = case.inputs[0]
    assert x is not None
    for d in range(directions):
        dx, dh, h_before, *projection = gates[d * each : (d + 1) * each]
        weights = want[3 + d * SLOTS : 3 + (d + 1) * SLOTS]
        assert_close([dx.t() @ x.flatten(0, -2), dh.t() @ h_before], weights[:2])
        if biases:
            assert_close([dx.sum(0), dh.sum(0)], weights[2:4])
        if projection:
            assert_close([projection[1].t() @ projection[0]], weights[4:])
        assert_close([dx], [rows_of_input_gates(case, d)])


def rows_of_input_gates(case: Case, direction: int) -> Tensor:
    """The gradient of every row's input product: of numbers that are added to it, by way of more inputs."""
    x, *rest = case.inputs
    assert x is not None
    for d in range(len(rest[2:]) // SLOTS):
        w = rest[2 + d * SLOTS]
        assert w is not None
        added = torch.eye(len(w), dtype=w.dtype) * (d == direction)
        rest[2 + d * SLOTS] = torch.cat((w, added), 1)
    w = rest[2]
    assert w is not None
    more = x.new_zeros(*x.shape[:-1], len(w)).requires_grad_()
    wide = replace(case, inputs=[torch.cat((x, more), -1), *rest])
    outputs = wide.run(*present(wide.inputs))
    return torch.autograd.grad(outputs, more, present(case.outer))[0].flatten(0, -2)
