"""The NumPy reference's options, alone and in pairs: every gradient against finite differences and against
autograd of the same equations in torch, which are written here on their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import DIFFERENCE_ATOL, DIFFERENCE_RTOL, DIFFERENCE_STEP, FLOAT64
from torch import Tensor
from torch.nn.functional import linear

from rnnfused import reference
from rnnfused.reference import Gradients, Options, Weights

TIME, B, INPUTS, H, P = 3, 3, 2, 4, 2
RAGGED = (3, 2, 1)
STATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 2, "gru": 1}
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


@dataclass(frozen=True)
class Case:
    """A layer: its cell, options, and what is drawn or chosen beside them."""

    cell: str
    options: dict[str, Any] = field(default_factory=dict)
    projected: bool = False
    masks: bool = False
    dropout: bool = False
    layout: str = "padded"  # or "ragged", which runs in reverse

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in self.options.items()]
        words += [name for name in ("projected", "masks", "dropout") if getattr(self, name)]
        return "-".join([self.cell, *words, self.layout])

    @property
    def heads(self) -> int:
        return self.options.get("num_heads", 1)

    @property
    def gates(self) -> int:
        return GATES[self.cell] - self.options.get("coupled_gates", False)


class Problem:
    """The arguments of a case: what has a gradient is in `leaves`, by name."""

    def __init__(self, case: Case) -> None:
        self.case, rng = case, np.random.default_rng(1)
        ragged = case.layout == "ragged"
        rows, width, gates = (sum(RAGGED),) if ragged else (TIME, B), P if case.projected else H, case.gates

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape)

        self.leaves = {"x": normal(*rows, INPUTS)}
        widths = [width, *[H] * (STATES[case.cell] - 1)]
        self.leaves |= {f"states[{index}]": normal(B, size) for index, size in enumerate(widths)}
        k = case.heads
        self.leaves["w_ih"] = normal(gates * H, INPUTS)
        self.leaves["w_hh"] = normal(k, gates * H // k, width // k) if k > 1 else normal(gates * H, width)
        norm = case.options.get("layer_norm")
        if norm != "joint":
            self.leaves |= {"b_ih": normal(gates * H), "b_hh": normal(gates * H)}
        if case.projected:
            self.leaves["w_hr"] = normal(P, H)
        norms = dict.fromkeys(
            {"separate": ("norm_ih", "norm_hh"), "joint": ("norm",)}.get(norm, ()), gates * H
        )
        if "cell_norm" in case.options:
            norms["norm_c"] = H
        self.leaves |= {
            f"{name}_{part}": normal(n) for name, n in norms.items() for part in ("weight", "bias")
        }
        if case.options.get("peephole"):
            self.leaves["weight_peephole"] = normal(2 if case.options.get("coupled_gates") else 3, H)
        self.masks = tuple((normal(*rows, n) > 0).astype(float) for n in widths) if case.masks else None
        self.dropout = (normal(B, width) > 0) / 0.5 if case.dropout else None
        self.dy, self.dstates = normal(*rows, width), tuple(normal(B, n) for n in widths)

    def states(self, leaves: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(leaves[f"states[{index}]"] for index in range(STATES[self.case.cell]))

    def forward(self) -> reference.Forward:
        ragged = self.case.layout == "ragged"
        weights = {name: self.leaves.get(name) for name in Weights._fields}
        beside = {"x", *Weights._fields}
        return reference.forward(
            self.case.cell,
            self.leaves["x"],
            self.states(self.leaves),
            Weights(**weights),
            batch_sizes=RAGGED if ragged else None,
            reverse=ragged,
            options=Options(**self.case.options),
            parameters={
                name: value
                for name, value in self.leaves.items()
                if name not in beside and not name.startswith("states")
            },
            zoneout_masks=self.masks,
            recurrent_dropout=self.dropout,
        )

    def backward(self) -> dict[str, np.ndarray]:
        found: Gradients = reference.backward(self.case.cell, self.forward().tape, self.dy, self.dstates)
        named = {"x": found.x} | {f"states[{i}]": state for i, state in enumerate(found.states)}
        named |= {name: getattr(found, name) for name in Weights._fields} | found.parameters
        return {name: value for name, value in named.items() if value is not None}

    def loss(self) -> float:
        result = self.forward()
        pairs = zip((result.y, *result.states), (self.dy, *self.dstates), strict=True)
        return sum(float(np.sum(value * gradient)) for value, gradient in pairs)


# --- the equations again, in torch -------------------------------------------------------------------------

Leaves = dict[str, Tensor]


def normalised(rows: Tensor, leaves: Leaves, name: str) -> Tensor:
    weight, bias = leaves[f"{name}_weight"], leaves[f"{name}_bias"]
    return torch.nn.functional.layer_norm(rows, weight.shape, weight, bias, 1e-5)


def clipped(x: Tensor, limit: float | None) -> Tensor:
    return x if limit is None else x.clamp(-limit, limit)


def matrix(case: Case, w_hh: Tensor) -> Tensor:
    """W_hh with the zeros that the heads leave out."""
    if case.heads == 1:
        return w_hh
    k, units, width = case.heads, H // case.heads, w_hh.shape[-1]
    full = torch.zeros(case.gates, H, k * width, dtype=w_hh.dtype)
    for j in range(k):
        block = w_hh[j].reshape(case.gates, units, width)
        full[:, j * units : (j + 1) * units, j * width : (j + 1) * width] = block
    return full.reshape(case.gates * H, k * width)


def products(case: Case, x: Tensor, h: Tensor, leaves: Leaves) -> tuple[list[Tensor], list[Tensor]]:
    """What x and what h give to each gate; with a joint norm the first is all, and the second zero."""
    from_x = linear(x, leaves["w_ih"], leaves.get("b_ih"))
    from_h = linear(h, matrix(case, leaves["w_hh"]), leaves.get("b_hh"))
    norm = case.options.get("layer_norm")
    if norm == "joint":
        from_x, from_h = normalised(from_x + from_h, leaves, "norm"), torch.zeros_like(from_h)
    if norm == "separate":
        from_x, from_h = normalised(from_x, leaves, "norm_ih"), normalised(from_h, leaves, "norm_hh")
    return list(from_x.chunk(case.gates, 1)), list(from_h.chunk(case.gates, 1))


Step = Callable[[Case, Tensor, list[Tensor], Tensor, Leaves], list[Tensor]]


def rnn_step(case: Case, x: Tensor, prev: list[Tensor], h: Tensor, leaves: Leaves) -> list[Tensor]:
    (a,), (b,) = products(case, x, h, leaves)
    a = clipped(a + b, case.options.get("gate_clip"))
    return [torch.tanh(a) if case.cell == "rnn_tanh" else torch.relu(a)]


def lstm_step(case: Case, x: Tensor, prev: list[Tensor], h: Tensor, leaves: Leaves) -> list[Tensor]:
    limit, c = case.options.get("gate_clip"), prev[1]
    a = [one + other for one, other in zip(*products(case, x, h, leaves), strict=True)]
    coupled, peephole = case.options.get("coupled_gates"), leaves.get("weight_peephole")
    if peephole is not None:
        a[0] = a[0] + peephole[0] * c
        if not coupled:
            a[1] = a[1] + peephole[1] * c
    i = torch.sigmoid(clipped(a[0], limit))
    f = 1 - i if coupled else torch.sigmoid(clipped(a[1], limit))
    c = f * c + i * torch.tanh(clipped(a[-2], limit))
    if case.options.get("cell_norm") == "carried":
        c = normalised(c, leaves, "norm_c")
    c = clipped(c, case.options.get("cell_clip"))
    a_o = a[-1] if peephole is None else a[-1] + peephole[-1] * c
    out = normalised(c, leaves, "norm_c") if case.options.get("cell_norm") == "output" else c
    h = torch.sigmoid(clipped(a_o, limit)) * torch.tanh(out)
    return [h if "w_hr" not in leaves else h @ leaves["w_hr"].T, c]


def gru_step(case: Case, x: Tensor, prev: list[Tensor], h: Tensor, leaves: Leaves) -> list[Tensor]:
    limit = case.options.get("gate_clip")
    from_x, from_h = products(case, x, h, leaves)
    r = torch.sigmoid(clipped(from_x[0] + from_h[0], limit))
    if case.options.get("layer_norm") == "joint":
        n = torch.tanh(clipped(r * from_x[1], limit))
        u = torch.sigmoid(clipped(from_x[2] + case.options.get("update_bias", 0.0), limit))
        return [u * n + (1 - u) * prev[0]]
    z = torch.sigmoid(clipped(from_x[1] + from_h[1], limit))
    if case.options.get("reset_after", True):
        a = from_x[2] + r * from_h[2]
    else:
        a = from_x[2] + products(case, x, r * h, leaves)[1][2]
    return [(1 - z) * torch.tanh(clipped(a, limit)) + z * prev[0]]


STEPS: dict[str, Step] = {"rnn_tanh": rnn_step, "rnn_relu": rnn_step, "lstm": lstm_step, "gru": gru_step}


def run_torch(problem: Problem) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """y, final states and gradients by name."""
    case = problem.case
    leaves = {name: torch.from_numpy(leaf).requires_grad_() for name, leaf in problem.leaves.items()}
    ragged, x = case.layout == "ragged", leaves["x"].reshape(-1, INPUTS)
    sizes = RAGGED if ragged else (B,) * TIME
    stops = list(itertools.accumulate(sizes))
    steps = [slice(stop - n, stop) for stop, n in zip(stops, sizes, strict=True)]
    states, y = list(problem.states(leaves)), {}
    for rows in reversed(steps) if ragged else steps:
        n = rows.stop - rows.start
        prev = [state[:n] for state in states]
        if limit := case.options.get("grad_clip"):
            for state in prev:
                state.register_hook(lambda d: d.clamp(-limit, limit))
        h = prev[0] if problem.dropout is None else prev[0] * torch.from_numpy(problem.dropout)[:n]
        new = STEPS[case.cell](case, x[rows], prev, h, leaves)
        if chance := case.options.get("zoneout"):
            keeps = [chance] * len(new) if isinstance(chance, float) else chance
            if problem.masks is not None:
                keeps = [torch.from_numpy(mask.reshape(-1, mask.shape[-1]))[rows] for mask in problem.masks]
            new = [p * old + (1 - p) * value for p, old, value in zip(keeps, prev, new, strict=True)]
        states = [torch.cat([value, state[n:]]) for value, state in zip(new, states, strict=True)]
        y[rows.start] = new[0]
    out = torch.cat([y[start] for start in sorted(y)]).reshape(problem.dy.shape)
    outer = [torch.from_numpy(d) for d in (problem.dy, *problem.dstates)]
    gradients = torch.autograd.grad([out, *states], list(leaves.values()), outer)
    return out, states, dict(zip(leaves, gradients, strict=True))


# --- every option and every pair ---------------------------------------------------------------------------

# What each cell can be asked for, as changes to its plain case.
COMMON: list[dict[str, Any]] = [
    {"options": {"zoneout": 0.3}},
    {"options": {"zoneout": 0.5}, "masks": True},
    {"dropout": True},
    {"options": {"gate_clip": 0.8}},
    {"options": {"grad_clip": 0.4}},
    {"options": {"num_heads": 2}},
    {"options": {"layer_norm": "separate"}},
]
CHOICES: dict[str, list[dict[str, Any]]] = {
    "rnn_tanh": COMMON,
    "rnn_relu": COMMON,
    "lstm": [
        *COMMON,
        {"options": {"peephole": True}},
        {"options": {"coupled_gates": True}},
        {"options": {"layer_norm": "joint"}},
        {"options": {"layer_norm": "separate", "cell_norm": "carried"}},
        {"options": {"layer_norm": "joint", "cell_norm": "output"}},
        {"options": {"zoneout": (0.2, 0.0)}},
        {"options": {"cell_clip": 0.5}},
        {"projected": True},
    ],
    "gru": [
        *COMMON,
        {"options": {"reset_after": False}},
        {"options": {"layer_norm": "joint"}},
        {"options": {"layer_norm": "joint", "update_bias": -1.0}},
    ],
}


def go_together(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both changes can be made: no option has two values, and reset_after=False has no norm."""
    first, second = one.get("options", {}), other.get("options", {})
    both = first | second
    return all(both[name] == value for name, value in first.items()) and not (
        "reset_after" in both and "layer_norm" in both
    )


def merged(cell: str, *changes: dict[str, Any]) -> Case:
    case = Case(cell)
    for change in changes:
        others = {name: value for name, value in change.items() if name != "options"}
        case = replace(case, options=case.options | change.get("options", {}), **others)
    return case


def alone() -> list[Case]:
    return [merged(cell, change) for cell, changes in CHOICES.items() for change in changes]


def pairs() -> list[Case]:
    return [
        merged(cell, one, other)
        for cell, changes in CHOICES.items()
        for one, other in itertools.combinations(changes, 2)
        if go_together(one, other)
    ]


EVERY = [
    *(replace(case, layout=layout) for case in alone() for layout in ("padded", "ragged")),
    *(replace(case, layout="ragged") for case in pairs()),
]


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_matches_the_equations_in_torch(case: Case) -> None:
    problem = Problem(case)
    result, gradients = problem.forward(), problem.backward()
    y, states, expected = run_torch(problem)
    assert gradients.keys() == expected.keys()
    for name, ours, theirs in [
        ("y", result.y, y),
        *((f"final states[{i}]", *both) for i, both in enumerate(zip(result.states, states, strict=True))),
        *((f"gradient of {name}", gradients[name], expected[name]) for name in expected),
    ]:
        # Clips and norms make gradients of unlike sizes: the error is that of the largest of an array.
        theirs = theirs.detach().numpy()
        bound = FLOAT64 * max(1, np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound, err_msg=name, strict=True)


@pytest.mark.parametrize("case", [case for case in EVERY if "grad_clip" not in case.options], ids=str)
def test_gradients_match_finite_differences(case: Case) -> None:
    """Along a random direction of each array; a clip of gradients is no derivative of the result."""
    problem, rng = Problem(case), np.random.default_rng(2)
    for name, gradient in problem.backward().items():
        leaf, direction = problem.leaves[name], rng.standard_normal(gradient.shape)
        kept, losses = leaf.copy(), []
        for sign in (1, -1):
            leaf[:] = kept + sign * DIFFERENCE_STEP * direction
            losses.append(problem.loss())
        leaf[:] = kept
        slope = (losses[0] - losses[1]) / (2 * DIFFERENCE_STEP)
        bound = DIFFERENCE_ATOL + DIFFERENCE_RTOL * max(1, np.abs(gradient * direction).sum())
        assert abs(np.sum(gradient * direction) - slope) <= bound, name


@pytest.mark.parametrize("case", [case for case in alone() if not case.projected], ids=str)
def test_every_option_changes_the_result(case: Case) -> None:
    """So that the sizes above reach the clips, and no option is the plain layer under another name."""
    problem, plain = Problem(case), Problem(Case(case.cell))
    if "grad_clip" in case.options:
        np.testing.assert_array_equal(problem.forward().y, plain.forward().y)
        assert np.abs(problem.backward()["w_hh"] - plain.backward()["w_hh"]).max() > 1e-3
    else:
        assert np.abs(problem.forward().y - plain.forward().y).max() > 1e-3


def test_clipped_states_are_within_the_clip() -> None:
    result = Problem(Case("lstm", {"cell_clip": 0.25})).forward()
    assert np.abs(result.states[1]).max() == 0.25


def test_a_unit_that_keeps_its_value_sees_no_nan_of_the_new_one() -> None:
    problem = Problem(Case("lstm", {"zoneout": 0.5}, masks=True))
    problem.leaves["x"][0] = np.nan
    for mask in problem.masks or ():
        mask[:] = 0
        mask[0] = 1
    result = problem.forward()
    np.testing.assert_array_equal(result.y[0], problem.leaves["states[0]"])
    assert np.isfinite(result.y).all()


@pytest.mark.parametrize("cell", CHOICES)
@pytest.mark.parametrize("keep", [0, 1])
def test_zoneout_of_nothing_and_of_all(cell: str, keep: int) -> None:
    problem = Problem(Case(cell, {"zoneout": 0.5}, masks=True))
    for mask in problem.masks or ():
        mask[:] = keep
    y = problem.forward().y
    plain = Problem(Case(cell)).forward().y
    expected = np.broadcast_to(problem.leaves["states[0]"], y.shape) if keep else plain
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("norm", ["separate", "joint"])
def test_norms_do_not_see_the_scale_of_what_they_normalise(norm: str) -> None:
    """Small weights would show an eps in the wrong place: here all are large, and eps is nothing."""
    problem = Problem(Case("lstm", {"layer_norm": norm}))
    for name in ("b_ih", "b_hh"):
        problem.leaves.pop(name, None)
    for name in ("w_ih", "w_hh"):
        problem.leaves[name] *= 1e5
    y = problem.forward().y
    for name in ("w_ih", "w_hh"):
        problem.leaves[name] *= 8
    np.testing.assert_allclose(problem.forward().y, y, rtol=1e-7)


def test_the_tape_owns_what_it_keeps() -> None:
    case = Case(
        "lstm", {"peephole": True, "layer_norm": "separate", "zoneout": 0.5}, masks=True, dropout=True
    )
    problem, expected = Problem(case), Problem(case).backward()
    result = problem.forward()
    for array in (*problem.leaves.values(), *(problem.masks or ()), problem.dropout, result.y):
        assert array is not None
        array[:] = np.nan
    for _ in range(2):
        found = reference.backward("lstm", result.tape, problem.dy, problem.dstates)
        np.testing.assert_array_equal(found.w_hh, expected["w_hh"])
        assert found.parameters.keys() == result.tape.extras.parameters.keys()
        for name, gradient in found.parameters.items():
            np.testing.assert_array_equal(gradient, expected[name], err_msg=name)


# A cell, its options, and how the message begins.
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "peephole of a GRU": (
        "gru",
        {"peephole": True},
        "peephole: expected nothing for cell 'gru', which has no such option",
    ),
    "reset_after of an LSTM": (
        "lstm",
        {"reset_after": False},
        "reset_after: expected nothing for cell 'lstm', which has no such option",
    ),
    "cell_clip of an RNN": (
        "rnn_tanh",
        {"cell_clip": 1.0},
        "cell_clip: expected nothing for cell 'rnn_tanh', which has no such option",
    ),
    "unknown norm": ("lstm", {"layer_norm": "batch"}, r"layer_norm: expected one of .*, got 'batch'"),
    "joint norm of an RNN": ("rnn_relu", {"layer_norm": "joint"}, "layer_norm: expected one of .*'joint'"),
    "norm before the reset": (
        "gru",
        {"reset_after": False, "layer_norm": "separate"},
        "layer_norm: expected None with reset_after=False, got 'separate'",
    ),
    "unknown cell_norm": (
        "lstm",
        {"layer_norm": "joint", "cell_norm": "inner"},
        r"cell_norm: expected one of .*, got 'inner'",
    ),
    "cell_norm alone": ("lstm", {"cell_norm": "carried"}, "cell_norm: expected a layer_norm beside it"),
    "update_bias alone": ("gru", {"update_bias": 1.0}, "update_bias: expected layer_norm='joint' beside it"),
    "update_bias beside separate": (
        "gru",
        {"update_bias": 1.0, "layer_norm": "separate"},
        "update_bias: expected layer_norm='joint' beside it",
    ),
    "cell_clip": ("lstm", {"cell_clip": 0.0}, "cell_clip: expected a number above 0, got 0.0"),
    "gate_clip": ("gru", {"gate_clip": -1.0}, "gate_clip: expected a number above 0, got -1.0"),
    "grad_clip": ("gru", {"grad_clip": -1.0}, "grad_clip: expected a number above 0, got -1.0"),
    "zoneout": ("lstm", {"zoneout": 1.5}, "zoneout: expected a probability or one for each of h, c, got 1.5"),
    "zoneout of c in a GRU": ("gru", {"zoneout": (0.1, 0.1)}, "zoneout: expected a probability"),
    "num_heads of none": ("gru", {"num_heads": 0}, "num_heads: expected at least 1, got 0"),
}


@pytest.mark.parametrize("cell, options, message", WRONG.values(), ids=WRONG)
def test_wrong_options_are_named(cell: str, options: dict[str, Any], message: str) -> None:
    problem = Problem(Case(cell))
    weights = Weights(*map(problem.leaves.get, Weights._fields))
    with pytest.raises(ValueError, match=f"^{message}"):
        reference.forward(
            cell, problem.leaves["x"], problem.states(problem.leaves), weights, options=Options(**options)
        )


def test_heads_must_divide_the_units() -> None:
    problem = Problem(Case("gru"))
    weights = Weights(*map(problem.leaves.get, Weights._fields))
    with pytest.raises(ValueError, match=r"^num_heads: expected a divisor of 4 units and of 4.*, got 3$"):
        reference.forward(
            "gru", problem.leaves["x"], problem.states(problem.leaves), weights, options=Options(num_heads=3)
        )


def test_what_comes_beside_the_options_is_named() -> None:
    peephole = Problem(Case("lstm", {"peephole": True}))
    del peephole.leaves["weight_peephole"]
    with pytest.raises(ValueError, match=r"^parameters: expected \['weight_peephole'\], got \[\]$"):
        peephole.forward()
    peephole.leaves["weight_peephole"] = np.zeros((2, H))
    with pytest.raises(ValueError, match=r"^parameters\['weight_peephole'\]: expected shape \[3, 4\]"):
        peephole.forward()

    joint = Problem(Case("gru", {"layer_norm": "joint"}))
    joint.leaves["b_hh"] = np.zeros(3 * H)
    with pytest.raises(ValueError, match=r"^weights\.b_hh: expected None with layer_norm='joint'"):
        joint.forward()

    with pytest.raises(ValueError, match=r"^zoneout_masks: expected None, as the option zoneout is 0"):
        Problem(Case("gru", masks=True)).forward()
    masked = Problem(Case("gru", {"zoneout": 0.5}, masks=True))
    masked.masks = (np.full((TIME, B, H), 0.5),)
    with pytest.raises(ValueError, match=r"^zoneout_masks\[0\]: expected 0 and 1, got other numbers$"):
        masked.forward()
    masked.masks = (np.zeros((B, H)),)
    with pytest.raises(ValueError, match=r"^zoneout_masks\[0\]: expected shape \[3, 3, 4\]"):
        masked.forward()

    dropped = Problem(Case("gru", dropout=True))
    dropped.dropout = np.ones((TIME, B, H))
    with pytest.raises(ValueError, match=r"^recurrent_dropout: expected shape \[3, 4\], got \[3, 3, 4\]$"):
        dropped.forward()
