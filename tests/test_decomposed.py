"""Layers of torch's operations with every option of LayerConfig: outputs and all gradients against the NumPy
reference, which runs each piece of each sequence alone, and second derivatives against finite differences.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import pieces_of
from operator_cases import LAYOUTS, SEED, VARIANTS, Case
from philox import word_of
from tolerances import DIFFERENCE_ATOL, DIFFERENCE_RTOL, DIFFERENCE_STEP, FLOAT64, NARROW_OPERATIONS
from torch import Tensor

from rnnfused import _decomposed, reference
from rnnfused._layer import LayerConfig
from rnnfused.reference import Options, Weights

# The reference does not return c of every step.
LAYOUTS_COMPARED = [layout for layout in LAYOUTS if "cells" not in layout]

Changes = dict[str, Any]

# Values of options that exclude each other, one list for each choice; every cell has the first ones.
COMMON: list[list[Changes]] = [
    [{"recurrent_dropout": 0.4, "drawn": True}],
    [{"gate_clip": 0.6}],
    [{"grad_clip": 0.05}],
    [{"num_heads": 2}],
]
ONE_STATE: list[Changes] = [{"zoneout": (0.3, 0.0)}, {"zoneout": (0.3, 0.0), "drawn": True}]
NORMS: list[Changes] = [{"layer_norm": "separate"}, {"layer_norm": "joint"}]
CHOICES: dict[str, list[list[Changes]]] = {
    "rnn_tanh": [*COMMON, ONE_STATE, NORMS[:1]],
    "rnn_relu": [*COMMON, ONE_STATE, NORMS[:1]],
    "lstm": [
        *COMMON,
        [
            *({"zoneout": p, "drawn": drawn} for p in ((0.3, 0.6), (0.0, 0.5)) for drawn in (False, True)),
            {"zoneout": (1.0, 0.2)},
        ],
        [*NORMS, *(norm | {"cell_norm": place} for norm in NORMS for place in ("carried", "output"))],
        [{"peephole": True}],
        [{"coupled_gates": True}],
        [{"cell_clip": 0.3}],
    ],
    "gru": [*COMMON, ONE_STATE, [*NORMS, NORMS[1] | {"update_bias": -1.0}, {"reset_before": True}]],
}


def case_of(cell: str, changes: Changes, **fields: Any) -> Case:
    biases = fields.pop("biases", True) and changes.get("layer_norm") != "joint"
    return Case(cell, biases=biases, options=tuple(changes.items()), **fields)


def alone() -> list[Case]:
    """Every value of every option by itself."""
    return [
        case_of(cell, change, directions=2, layout=layout, projected=projected)
        for cell, projected in VARIANTS
        for change in itertools.chain.from_iterable(CHOICES[cell])
        for layout in ("padded", "packed")
    ]


def drawn_case(number: int) -> Case:
    """A step of a random walk over options, layouts and sizes."""
    draw = random.Random(number)
    cell, projected = draw.choice(VARIANTS)
    changes: Changes = {}
    for values in CHOICES[cell]:
        if draw.random() < 0.5:
            changes |= draw.choice(values)
    layout = draw.choice(LAYOUTS_COMPARED)
    return case_of(
        cell,
        changes,
        projected=projected,
        layout=layout,
        directions=1 if layout.endswith("step") else draw.choice((1, 2)),
        biases=draw.random() < 0.7,
        steps=draw.choice((1, 4)),
        batch=draw.choice((1, 3)),
        hidden=draw.choice((4, 8)),
    )


def differentiated(case: Case, leaves: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What the layer returns, outer gradients, and those of the leaves."""
    outputs = list(case.twin(*leaves))
    outer = [torch.randn_like(t) for t in outputs]
    return outputs, outer, list(torch.autograd.grad(outputs, leaves, outer, materialize_grads=True))


def names_of(case: Case) -> list[str]:
    """Of the leaves."""
    layer = case.config
    weights = ["w_ih", "w_hh", *["b_ih", "b_hh"] * layer.bias, *["w_hr"] * layer.projected]
    own = [*weights, *layer.own_params]
    return ["input", *layer.spec.states, *(f"{name}[{d}]" for d in range(layer.directions) for name in own)]


def rows_of(case: Case, batch: int) -> list[list[int]]:
    """Of each sequence: which rows of the input are its steps, in time."""
    layer, where = case.config, case.where
    if where.batch_sizes is not None:
        sizes = where.batch_sizes.tolist()
        starts = [0, *itertools.accumulate(sizes)]
        return [[starts[t] + b for t, size in enumerate(sizes) if b < size] for b in range(batch)]
    steps = 1 if case.step else case.steps
    lengths = [steps] * batch if where.lengths is None else where.lengths.tolist()
    if case.concatenated:
        starts = [0, *itertools.accumulate(lengths)]
        return [list(range(starts[b], starts[b + 1])) for b in range(batch)]
    return [
        [b * steps + t if layer.batch_first else t * batch + b for t in range(lengths[b])]
        for b in range(batch)
    ]


class Expected:
    """The reference's outputs and gradients of a case, in the order of `differentiated`'s."""

    def __init__(self, case: Case, leaves: Sequence[Tensor], outer: Sequence[Tensor]) -> None:
        self.case, self.layer = case, case.config
        self.batch = case.batch if case.batched else 1
        arrays = [t.detach().numpy() for t in leaves]
        count = 1 + case.states
        self.x = arrays[0].reshape(-1, case.input)
        directions = self.layer.directions
        self.hx = [s.reshape(directions, self.batch, -1) for s in arrays[1:count]]
        self.params = arrays[count:]
        width = self.hx[0].shape[-1]
        rows = len(self.x)
        given = [t.numpy() for t in outer]
        self.dy = given[0].reshape(rows, -1) if not case.step else np.zeros((rows, width))
        self.dfinal = [t.reshape(s.shape) for t, s in zip(given[-case.states :], self.hx, strict=True)]
        self.y = np.zeros((rows, directions * width))
        self.final = [np.zeros_like(s) for s in self.hx]
        self.dx = np.zeros_like(self.x)
        self.dhx = [np.zeros_like(s) for s in self.hx]
        self.dparams = [np.zeros_like(p) for p in self.params]
        resets = case.where.resets
        cuts = np.zeros(rows, bool) if resets is None else resets.numpy().reshape(-1)
        for direction in range(directions):
            for b, own in enumerate(rows_of(case, self.batch)):
                self._sequence(direction, b, own, cuts[own].tolist())
        if case.step:
            self.outputs = [s[0] for s in self.final]
        else:
            self.outputs = [self.y, *self.final]
        self.gradients = [self.dx, *self.dhx, *self.dparams]

    def _sequence(self, direction: int, b: int, rows: list[int], resets: list[bool]) -> None:
        """A sequence in pieces, each of which runs without the others."""
        pieces = pieces_of(len(rows), resets)
        if not pieces:
            for final, dhx, s, d in zip(self.final, self.dhx, self.hx, self.dfinal, strict=True):
                final[direction, b], dhx[direction, b] = s[direction, b], d[direction, b]
        for index, (start, end) in enumerate(pieces):
            is_first, is_last = index == 0 and not resets[0], index == len(pieces) - 1
            begins, ends = (is_last, is_first) if direction else (is_first, is_last)
            self._piece(direction, b, rows, slice(start, end), begins, ends)

    def _piece(self, direction: int, b: int, rows: list[int], steps: slice, begins: bool, ends: bool) -> None:
        """begins, ends: whether it starts from hx, and whether its states are the final ones."""
        layer, cell, own = self.layer, self.case.cell, rows[steps]
        each = layer.params_each
        fields = ["w_ih", "w_hh", *["b_ih", "b_hh"] * layer.bias, *["w_hr"] * layer.projected]
        names = [*fields, *layer.own_params]
        params = dict(zip(names, self.params[direction * each :][:each], strict=True))
        states = [s[direction, b : b + 1] * begins for s in self.hx]
        masks = self._masks(direction, b, len(rows))
        done = reference.forward(
            cell,
            self.x[own][:, None],
            tuple(states),
            Weights(**{name: params.pop(name) for name in fields}),
            reverse=direction == 1,
            options=options_of(layer),
            parameters=params,
            zoneout_masks=masks and tuple(mask[steps] for mask in masks),
            recurrent_dropout=self._dropout(direction, b),
        )
        width = done.y.shape[-1]
        columns = slice(direction * width, (direction + 1) * width)
        self.y[own, columns] = done.y[:, 0]
        dfinal = [d[direction, b : b + 1] * ends for d in self.dfinal]
        found = reference.backward(cell, done.tape, self.dy[own][:, None, columns], tuple(dfinal))
        self.dx[own] += found.x[:, 0]
        for place, name in enumerate(names, direction * each):
            self.dparams[place] += getattr(found, name) if name in fields else found.parameters[name]
        for k, (state, d) in enumerate(zip(done.states, found.states, strict=True)):
            if ends:
                self.final[k][direction, b] = state[0]
            if begins:
                self.dhx[k][direction, b] = d[0]

    def _masks(self, direction: int, b: int, steps: int) -> tuple[np.ndarray, ...] | None:
        """Of zoneout, at all steps of a sequence: [T, 1, units] for each state."""
        if not self.layer.drawn or not any(self.layer.zoneout):
            return None
        return tuple(
            np.array(
                [
                    [self._is_below(p, state, direction, t * self.batch + b, s.shape[-1])]
                    for t in range(steps)
                ],
                float,
            )
            for state, (p, s) in enumerate(zip(self.layer.zoneout, self.hx, strict=False))
        )

    def _dropout(self, direction: int, b: int) -> np.ndarray | None:
        p = self.layer.recurrent_dropout
        if not self.layer.drawn or not p:
            return None
        dropped = np.array([self._is_below(p, 2, direction, b, self.hx[0].shape[-1])])
        return ~dropped / (1 - p)

    @staticmethod
    def _is_below(p: float, what: int, direction: int, row: int, units: int) -> list[bool]:
        return [word_of(SEED, what, direction, row, unit) < p * 2**32 for unit in range(units)]


def options_of(layer: LayerConfig) -> Options:
    own = layer.zoneout[: len(layer.spec.states)]
    return Options(
        reset_after=not layer.reset_before,
        peephole=layer.peephole,
        coupled_gates=layer.coupled_gates,
        layer_norm=layer.layer_norm,
        update_bias=layer.update_bias,
        cell_norm=layer.cell_norm,
        zoneout=own if any(own) else 0.0,
        cell_clip=layer.cell_clip,
        gate_clip=layer.gate_clip,
        grad_clip=layer.grad_clip,
        num_heads=layer.num_heads,
    )


def compare(case: Case) -> None:
    leaves = case.leaves(requires_grad=True)
    outputs, outer, gradients = differentiated(case, leaves)
    expected = Expected(case, leaves, outer)
    states = case.config.spec.states
    names = [*(["y"] if not case.step else []), *(f"final {state}" for state in states)]
    names += [f"gradient of {name}" for name in names_of(case)]
    ours = [t.detach().numpy() for t in (*outputs, *gradients)]
    for name, got, want in zip(names, ours, [*expected.outputs, *expected.gradients], strict=True):
        # Clips and norms make gradients of unlike sizes: the error is that of the largest of an array.
        bound = FLOAT64 * max(1, np.abs(want).max(initial=0))
        np.testing.assert_allclose(got, want.reshape(got.shape), rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("case", alone(), ids=str)
def test_every_option_alone(case: Case) -> None:
    compare(case)


@pytest.mark.parametrize("number", range(250))
def test_options_together(number: int) -> None:
    compare(drawn_case(number))


REGULARISED: Changes = {"zoneout": (0.3, 0.4), "recurrent_dropout": 0.4, "drawn": True}
LARGE: dict[str, tuple[str, Changes]] = {
    "LSTM, carried": (
        "lstm",
        REGULARISED | {"peephole": True, "layer_norm": "separate", "cell_norm": "carried", "cell_clip": 0.5},
    ),
    "LSTM, output": (
        "lstm",
        {"coupled_gates": True, "layer_norm": "joint", "cell_norm": "output", "zoneout": (0.2, 0.3)},
    ),
    "GRU, joint": ("gru", REGULARISED | {"layer_norm": "joint", "update_bias": -1.0, "gate_clip": 0.7}),
    "GRU, reset before": ("gru", REGULARISED | {"reset_before": True, "num_heads": 2}),
    "RNN": ("rnn_tanh", REGULARISED | {"layer_norm": "separate"}),
}


@pytest.mark.long
@pytest.mark.parametrize("cell, changes", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("layout", ["packed", "batch_first_lengths_resets"])
def test_derivatives_of_gradients(cell: str, changes: Changes, layout: str) -> None:
    case = case_of(cell, changes, layout=layout, directions=2, input=2, steps=2)
    leaves = case.leaves(requires_grad=True)
    assert torch.autograd.gradcheck(case.twin, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(case.twin, leaves, fast_mode=True)


def test_clipped_gradients_are_differentiated_as_those_that_a_hook_clamps() -> None:
    case = case_of("rnn_tanh", {"grad_clip": 0.3}, biases=False, steps=4)
    leaves = case.leaves(requires_grad=True)

    def by_hand(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor) -> tuple[Tensor, ...]:
        outputs, h = [], h[0]
        for x_t in x:
            h = h.view_as(h)  # apart from the output, whose gradient joins unclamped
            h.register_hook(lambda d: d.clamp(-0.3, 0.3))
            h = torch.tanh(x_t @ w_ih.T + h @ w_hh.T)
            outputs.append(h)
        return torch.stack(outputs), h.unsqueeze(0)

    def twice(run: Callable[..., tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        loss = sum(t.square().sum() for t in run(*leaves))
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return [first, torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    for order, (ours, theirs) in enumerate(zip(twice(case.twin), twice(by_hand), strict=True), 1):
        for name, one, other in zip(names_of(case), ours, theirs, strict=True):
            bound = FLOAT64 * max(1.0, other.abs().max().item())
            torch.testing.assert_close(one, other, rtol=0, atol=bound, msg=f"{order}: {name}")


def test_third_derivatives_are_there() -> None:
    case = case_of("lstm", LARGE["LSTM, carried"][1], input=2, steps=2)
    leaves = case.leaves(requires_grad=True)

    def second(*leaves: Tensor) -> Tensor:
        gradients = torch.autograd.grad(sum(t.sum() for t in case.twin(*leaves)), leaves, create_graph=True)
        squares = sum(g.square().sum() for g in gradients)
        return torch.autograd.grad(squares, leaves[0], create_graph=True)[0]

    assert torch.autograd.gradcheck(second, leaves, fast_mode=True)


@pytest.mark.parametrize("layout", ["cells", "batch_first_lengths_cells"])
def test_c_of_every_step_is_the_one_that_is_carried(layout: str) -> None:
    """After zoneout: that which a layer that ends there returns."""
    case = case_of("lstm", {"zoneout": (0.3, 0.4), "drawn": True}, layout=layout, steps=4, batch=3)
    x, hx, params = case.split(case.leaves())
    by_time, lengths = (x.transpose(0, 1) if case.config.batch_first else x), case.where.lengths
    *_, cells = _decomposed.recurrent(case.config, x, hx, params, *case.where)
    cells = cells.transpose(0, 1) if case.config.batch_first else cells
    padded = dataclasses.replace(case.config, batch_first=False, cells=False)
    for t in range(case.steps):
        _, _, c = _decomposed.recurrent(padded, by_time[: t + 1], hx, params, None, None, None)
        running = torch.ones(case.batch, dtype=torch.bool) if lengths is None else lengths > t
        expected = c[0] * running.unsqueeze(1)
        torch.testing.assert_close(cells[t], expected, rtol=0, atol=FLOAT64)


def test_initial_states_of_zeros_may_be_left_out() -> None:
    """Their sizes are then those of W_hh, which heads store otherwise."""
    case = case_of("lstm", {"num_heads": 2, "coupled_gates": True}, projected=True, directions=2)
    x, hx, params = case.split(case.leaves())
    zeros = [torch.zeros_like(s) for s in hx]
    for one, other in zip(
        _decomposed.recurrent(case.config, x, [], params, *case.where),
        _decomposed.recurrent(case.config, x, zeros, params, *case.where),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("drawn", [False, True], ids=["", "drawn"])
def test_a_unit_that_keeps_its_value_sees_no_nan_of_the_new_one(drawn: bool) -> None:
    case = case_of("lstm", {"zoneout": (1.0, 1.0), "drawn": drawn})
    x, hx, params = case.split(case.leaves())
    y, *final = _decomposed.recurrent(case.config, x * torch.nan, hx, params, *case.where)
    assert torch.equal(y, hx[0].expand_as(y))
    assert torch.equal(final[1], hx[1])


EVERYTHING = case_of("gru", LARGE["GRU, joint"][1] | {"grad_clip": 0.05}, directions=2)


def gradients_of(*leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(sum(t.square().sum() for t in EVERYTHING.twin(*leaves)), leaves)


@pytest.mark.long
def test_compiles() -> None:
    """In one graph, the clip of gradients and the generator among it."""
    leaves = EVERYTHING.leaves(requires_grad=True)
    compiled = torch.compile(EVERYTHING.twin, fullgraph=True, backend="aot_eager")
    outputs, expected = compiled(*leaves), EVERYTHING.twin(*leaves)
    gradients = torch.autograd.grad(sum(t.square().sum() for t in outputs), leaves)
    for one, other in zip((*outputs, *gradients), (*expected, *gradients_of(*leaves)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=FLOAT64)


def test_transforms() -> None:
    """torch.func.vmap of gradients over initial states, and a tangent, with the clip of gradients."""
    x, _, *params = EVERYTHING.leaves()
    several = torch.randn(3, *EVERYTHING.shapes[1], dtype=x.dtype)

    def gradient(h: Tensor) -> Tensor:
        return torch.func.grad(lambda h: sum(t.square().sum() for t in EVERYTHING.twin(x, h, *params)))(h)

    each = torch.stack([gradient(h) for h in several])
    torch.testing.assert_close(torch.func.vmap(gradient)(several), each, rtol=0, atol=FLOAT64)

    leaves = (x, several[0], *params)
    along = tuple(map(torch.randn_like, leaves))
    _, tangents = torch.func.jvp(EVERYTHING.twin, leaves, along)
    after, before = (
        EVERYTHING.twin(*(t + sign * DIFFERENCE_STEP * d for t, d in zip(leaves, along, strict=True)))
        for sign in (1, -1)
    )
    for tangent, more, less in zip(tangents, after, before, strict=True):
        slope = (more - less) / (2 * DIFFERENCE_STEP)
        torch.testing.assert_close(tangent, slope, rtol=DIFFERENCE_RTOL, atol=DIFFERENCE_ATOL)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell, changes", LARGE.values(), ids=LARGE)
def test_16_bits(cell: str, changes: Changes, dtype: torch.dtype) -> None:
    """Stay what they are, and draw the same masks: the result is near that of float64."""
    case = case_of(cell, changes, directions=2)
    leaves = [t.to(dtype) for t in case.leaves()]
    outputs = case.twin(*leaves)
    for one, exact in zip(outputs, case.twin(*(t.double() for t in leaves)), strict=True):
        assert one.dtype == dtype
        # A unit with another mask would be off by its own size.
        bound = NARROW_OPERATIONS * torch.finfo(dtype).eps
        torch.testing.assert_close(one.double(), exact, rtol=0, atol=bound)
