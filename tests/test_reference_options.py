"""The NumPy reference's options, alone and in pairs, and the cells that torch.nn has not: every gradient
against finite differences and against autograd of the same equations in torch, written here on their own.
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
# Of each cell: how many gates and how many states.
SIZES = {
    **{"rnn_tanh": (1, 1), "rnn_relu": (1, 1), "lstm": (4, 2), "gru": (3, 1)},
    **{"indrnn": (1, 1), "ligru": (2, 1), "augru": (3, 1), "agru": (2, 1), "slstm": (4, 4)},
    **{"mingru": (2, 1), "minlstm": (3, 1)},
}
PARALLEL = ("mingru", "minlstm")
ATTENDING = ("augru", "agru")


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
        return SIZES[self.cell][0] - self.options.get("coupled_gates", False)


class Problem:
    """The arguments of a case: what has a gradient is in `leaves`, by name."""

    def __init__(self, case: Case) -> None:
        self.case, rng = case, np.random.default_rng(1)
        ragged = case.layout == "ragged"
        rows, width, gates = (sum(RAGGED),) if ragged else (TIME, B), P if case.projected else H, case.gates

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape)

        self.leaves = {"x": normal(*rows, INPUTS)}
        widths = [width, *[H] * (SIZES[case.cell][1] - 1)]
        self.leaves |= {f"states[{index}]": normal(B, size) for index, size in enumerate(widths)}
        if case.cell == "slstm":
            # What h is divided by: a sum of exponentials.
            self.leaves["states[2]"] = np.abs(self.leaves["states[2]"]) + 0.5
        if case.cell in ATTENDING:
            self.leaves["attention"] = rng.random(rows)
        k = case.heads
        self.leaves["w_ih"] = normal(gates * H, INPUTS)
        if case.cell not in PARALLEL:
            dense = (k, gates * H // k, width // k) if k > 1 else (gates * H, width)
            self.leaves["w_hh"] = normal(*((H,) if case.cell == "indrnn" else dense))
        norm = case.options.get("layer_norm")
        if norm != "joint":
            self.leaves["b_ih"] = normal(gates * H)
        if norm != "joint" and case.cell not in (*PARALLEL, "indrnn"):
            self.leaves["b_hh"] = normal(gates * H)
        if case.projected:
            self.leaves["w_hr"] = normal(P, H)
        norms = dict.fromkeys(
            {"separate": ("norm_ih", "norm_hh"), "joint": ("norm",), "input": ("norm_ih",)}.get(norm, ()),
            gates * H,
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
        return tuple(leaves[f"states[{index}]"] for index in range(SIZES[self.case.cell][1]))

    def forward(self) -> reference.Forward:
        ragged = self.case.layout == "ragged"
        weights = {name: self.leaves.get(name) for name in Weights._fields}
        beside = {"x", "attention", *Weights._fields}
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
            attention=self.leaves.get("attention"),
        )

    def backward(self) -> dict[str, np.ndarray]:
        found: Gradients = reference.backward(self.case.cell, self.forward().tape, self.dy, self.dstates)
        named = {"x": found.x, "attention": found.attention} | {
            f"states[{i}]": state for i, state in enumerate(found.states)
        }
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
    if case.cell in PARALLEL:
        from_h = torch.zeros_like(from_x)
    elif case.cell == "indrnn":
        from_h = leaves["w_hh"] * h
    else:
        from_h = linear(h, matrix(case, leaves["w_hh"]), leaves.get("b_hh"))
    norm = case.options.get("layer_norm")
    if norm == "joint":
        from_x, from_h = normalised(from_x + from_h, leaves, "norm"), torch.zeros_like(from_h)
    if norm in ("separate", "input"):
        from_x = normalised(from_x, leaves, "norm_ih")
    if norm == "separate":
        from_h = normalised(from_h, leaves, "norm_hh")
    return list(from_x.chunk(case.gates, 1)), list(from_h.chunk(case.gates, 1))


def sums(case: Case, x: Tensor, h: Tensor, leaves: Leaves) -> list[Tensor]:
    return [one + other for one, other in zip(*products(case, x, h, leaves), strict=True)]


# Of a case: the rows of x, previous states, h as it enters W_hh, leaves -> the next states.
Step = Callable[[Case, Tensor, list[Tensor], Tensor, Leaves], list[Tensor]]


def rnn_step(case: Case, x: Tensor, prev: list[Tensor], h: Tensor, leaves: Leaves) -> list[Tensor]:
    (a,) = sums(case, x, h, leaves)
    a = clipped(a, case.options.get("gate_clip"))
    return [torch.tanh(a) if case.cell == "rnn_tanh" else torch.relu(a)]


def lstm_step(case: Case, x: Tensor, prev: list[Tensor], h: Tensor, leaves: Leaves) -> list[Tensor]:
    limit, c = case.options.get("gate_clip"), prev[1]
    a = sums(case, x, h, leaves)
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


def ligru_step(case: Case, x: Tensor, prev: list[Tensor], h: Tensor, leaves: Leaves) -> list[Tensor]:
    limit = case.options.get("gate_clip")
    z, n = (clipped(a, limit) for a in sums(case, x, h, leaves))
    z = torch.sigmoid(z)
    return [z * prev[0] + (1 - z) * torch.relu(n)]


def attending_step(case: Case, x: Tensor, prev: list[Tensor], h: Tensor, leaves: Leaves) -> list[Tensor]:
    limit = case.options.get("gate_clip")
    from_x, from_h = products(case, x, h, leaves)
    r = torch.sigmoid(clipped(from_x[0] + from_h[0], limit))
    n = torch.tanh(clipped(from_x[-1] + r * from_h[-1], limit))
    u = leaves["attention of the step"][:, None]
    if case.cell == "augru":
        u = u * torch.sigmoid(clipped(from_x[1] + from_h[1], limit))
    return [prev[0] + u * (n - prev[0])]


def slstm_step(case: Case, x: Tensor, prev: list[Tensor], h: Tensor, leaves: Leaves) -> list[Tensor]:
    a_i, a_f, a_z, a_o = sums(case, x, h, leaves)
    _, c, n, m = prev
    log_f = torch.nn.functional.logsigmoid(a_f)
    m_new = torch.maximum(log_f + m, a_i)
    i, f = torch.exp(a_i - m_new), torch.exp(log_f + m - m_new)
    c, n = f * c + i * torch.tanh(a_z), f * n + i
    return [torch.sigmoid(a_o) * (c / n), c, n, m_new]


def mingru_step(case: Case, x: Tensor, prev: list[Tensor], h: Tensor, leaves: Leaves) -> list[Tensor]:
    z, n = sums(case, x, h, leaves)
    return [torch.lerp(prev[0], n, torch.sigmoid(z))]


def minlstm_step(case: Case, x: Tensor, prev: list[Tensor], h: Tensor, leaves: Leaves) -> list[Tensor]:
    f, i, n = sums(case, x, h, leaves)
    f, i = torch.sigmoid(f), torch.sigmoid(i)
    return [f / (f + i) * prev[0] + i / (f + i) * n]


STEPS: dict[str, Step] = {
    **{"rnn_tanh": rnn_step, "rnn_relu": rnn_step, "indrnn": rnn_step, "lstm": lstm_step, "gru": gru_step},
    **{"ligru": ligru_step, "augru": attending_step, "agru": attending_step, "slstm": slstm_step},
    **{"mingru": mingru_step, "minlstm": minlstm_step},
}


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
        at_step = dict(leaves)
        if "attention" in leaves:
            at_step["attention of the step"] = leaves["attention"].reshape(-1)[rows]
        new = STEPS[case.cell](case, x[rows], prev, h, at_step)
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
ZONEOUT: list[dict[str, Any]] = [{"options": {"zoneout": 0.3}}, {"options": {"zoneout": 0.5}, "masks": True}]
RECURRENT: list[dict[str, Any]] = [{"dropout": True}, {"options": {"grad_clip": 0.1}}]
GATED: list[dict[str, Any]] = [
    *(*ZONEOUT, *RECURRENT),
    {"options": {"gate_clip": 0.8}},
    {"options": {"num_heads": 2}},
]
COMMON: list[dict[str, Any]] = [*GATED, {"options": {"layer_norm": "separate"}}]
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
    "indrnn": [*ZONEOUT, *RECURRENT, {"options": {"gate_clip": 0.8}}],
    "ligru": [*COMMON, {"options": {"layer_norm": "input"}}],
    "augru": GATED,
    "agru": GATED,
    "slstm": [
        {"options": {"zoneout": (0.3, 0.0, 0.0, 0.0)}},
        *RECURRENT,
        {"options": {"num_heads": 2}},
    ],
    "mingru": ZONEOUT,
    "minlstm": ZONEOUT,
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
    *(Case(cell, layout=layout) for cell in CHOICES for layout in ("padded", "ragged")),
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
        assert np.abs(problem.backward()["w_ih"] - plain.backward()["w_ih"]).max() > 1e-3
    else:
        assert np.abs(problem.forward().y - plain.forward().y).max() > 1e-3


@pytest.mark.parametrize("case", [*alone(), *map(Case, CHOICES)], ids=str)
def test_runs_in_the_dtype_of_x(case: Case) -> None:
    exact, problem = Problem(case).backward(), Problem(case)
    problem.leaves["x"] = problem.leaves["x"].astype(np.float32)
    result, gradients = problem.forward(), problem.backward()
    taped = [array for step in result.tape.steps for array in (*step.prev, *step.new, *step.gates)]
    for array in (result.y, *result.states, *taped, *gradients.values()):
        assert array.dtype == np.float32
    for name, gradient in gradients.items():
        # The error grows over a few steps of products of order 1.
        bound = 100 * np.finfo(np.float32).eps * max(1, np.abs(exact[name]).max())
        np.testing.assert_allclose(gradient, exact[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("case", [*alone(), *map(Case, CHOICES)], ids=str)
def test_no_steps_keep_the_states_and_give_no_gradients(case: Case) -> None:
    problem = Problem(case)
    for name in {"x", "attention"} & problem.leaves.keys():
        problem.leaves[name] = problem.leaves[name][:0]
    problem.dy = problem.dy[:0]
    problem.masks = problem.masks and tuple(mask[:0] for mask in problem.masks)
    result, gradients = problem.forward(), problem.backward()
    for index, state in enumerate(result.states):
        np.testing.assert_array_equal(state, problem.leaves[f"states[{index}]"])
        np.testing.assert_array_equal(gradients.pop(f"states[{index}]"), problem.dstates[index])
    assert not any(gradient.any() for gradient in gradients.values())


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


@pytest.mark.parametrize("cell", [cell for cell in CHOICES if cell != "slstm"])
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
    """With weights as large as these eps is nothing, and a common factor cancels."""
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
    "zoneout of half a memory": ("slstm", {"zoneout": 0.1}, "zoneout: expected 0 for c, n and m"),
    "gate_clip of an sLSTM": ("slstm", {"gate_clip": 1.0}, "gate_clip: expected nothing for cell 'slstm'"),
    "heads of an IndRNN": ("indrnn", {"num_heads": 2}, "num_heads: expected nothing for cell 'indrnn'"),
    "heads without recurrence": ("mingru", {"num_heads": 2}, "num_heads: expected nothing for cell 'mingru'"),
    "joint norm of a LiGRU": ("ligru", {"layer_norm": "joint"}, "layer_norm: expected one of .*'joint'"),
    "input norm of a GRU": ("gru", {"layer_norm": "input"}, "layer_norm: expected one of .*'input'"),
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


@pytest.mark.parametrize("cell, name", [("indrnn", "b_hh"), ("mingru", "b_hh"), ("minlstm", "w_hh")])
def test_weights_that_a_cell_has_not_are_named(cell: str, name: str) -> None:
    problem = Problem(Case(cell))
    problem.leaves[name] = np.zeros(H)
    with pytest.raises(
        ValueError, match=rf"^weights\.{name}: expected None for cell '{cell}', got an array$"
    ):
        problem.forward()


def test_attention_and_dropout_are_named_where_they_do_not_belong() -> None:
    attending = Problem(Case("augru"))
    del attending.leaves["attention"]
    with pytest.raises(ValueError, match=r"^attention: expected shape \[3, 3\], got \[\]$"):
        attending.forward()
    plain = Problem(Case("gru"))
    plain.leaves["attention"] = np.zeros((TIME, B))
    with pytest.raises(ValueError, match=r"^attention: expected None for cell 'gru', got an array$"):
        plain.forward()
    with pytest.raises(
        ValueError, match=r"^recurrent_dropout: expected None for cell 'mingru', got an array$"
    ):
        Problem(Case("mingru", dropout=True)).forward()


def test_the_memory_of_an_slstm_may_be_empty_and_its_gates_far_beyond_exp() -> None:
    """At the first step i cancels in c' / n', also where exp(a_i) would overflow."""
    problem = Problem(Case("slstm"))
    problem.leaves["states[1]"][:] = problem.leaves["states[2]"][:] = 0
    problem.leaves["states[3]"][:] = -np.inf
    first = problem.forward().y[0]
    problem.leaves["b_ih"][:H] += 2000
    far = problem.forward()
    np.testing.assert_allclose(far.y[0], first, rtol=0, atol=FLOAT64)
    assert np.isfinite(far.y).all()
    assert all(np.isfinite(gradient).all() for gradient in problem.backward().values())


@pytest.mark.parametrize("attention, expected", [(0.0, "states[0]"), (1.0, "gru")])
def test_attention_of_nothing_and_of_all(attention: float, expected: str) -> None:
    """Without attention h stays; with all of it AUGRU is the GRU whose z has the other sign."""
    problem = Problem(Case("augru"))
    problem.leaves["attention"][:] = attention
    y = problem.forward().y
    if expected == "states[0]":
        np.testing.assert_array_equal(y, np.broadcast_to(problem.leaves["states[0]"], y.shape))
        return
    plain = Problem(Case("gru"))
    for name in ("x", "states[0]", "w_ih", "w_hh", "b_ih", "b_hh"):
        plain.leaves[name] = problem.leaves[name].copy()
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        plain.leaves[name][H : 2 * H] *= -1
    np.testing.assert_allclose(y, plain.forward().y, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("cell", CHOICES)
def test_packed_rows_equal_each_row_alone(cell: str) -> None:
    problem = Problem(Case(cell, layout="ragged"))
    packed = problem.forward()
    weights = Weights(*map(problem.leaves.get, Weights._fields))
    starts = [0, *itertools.accumulate(RAGGED)]
    for row in range(B):
        rows = [start + row for start, size in zip(starts, RAGGED, strict=False) if row < size]
        attention = problem.leaves.get("attention")
        alone = reference.forward(
            cell,
            problem.leaves["x"][rows][:, None],
            tuple(state[row : row + 1] for state in problem.states(problem.leaves)),
            weights,
            reverse=True,
            attention=None if attention is None else attention[rows][:, None],
        )
        np.testing.assert_allclose(packed.y[rows], alone.y[:, 0], rtol=0, atol=FLOAT64)
