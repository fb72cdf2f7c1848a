"""Layers with options in native code, against the same in torch's operations, which test_decomposed.py holds
against the reference: a random walk over all options, layouts and sizes, and what else an operator does.

Every step of the walk is a test of its own, which its number alone decides: RNNFUSED_WALK_CASES says how many
there are.
"""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from operator_cases import SEED, Case
from philox import word_of
from test_decomposed import CHOICES, Changes, case_of
from tolerances import FLOAT64, FLOOR_ULPS, TORCH_ERRORS
from torch import Tensor
from torch.func import jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from rnnfused import _decomposed
from rnnfused._layer import LayerConfig, Layout
from rnnfused._load import _C
from rnnfused._ops import recurrent

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = int(os.environ.get("RNNFUSED_WALK_CASES", "300"))
# One, and below, at and above the vectors of every ISA; 65 and 130 are more than one group of draws.
SIZES = (1, 2, 5, 7, 8, 15, 16, 17, 33, 47, 65, 130)
STEPS = (1, 2, 3, 5, 9, 17)
BATCHES = (0, 1, 2, 3, 5, 8, 13)
FORMS = ("padded", "unbatched", "packed", "lengths", "concatenated", "step", "unbatched_step")
MOST_PRODUCTS = 1_500_000  # rows x gates, so that no step takes long
# Where a gradient is on on one side and off on the other, one rounding decides which: float64 alone tells.
ON_OFF = ("gate_clip", "cell_clip")
TRIES = 8  # of torch's operations on inputs that differ by a rounding, where one try does not tell


@dataclass(frozen=True)
class Walk:
    """One step of the walk. What is no field follows from `index`: values, and what is differentiated."""

    index: int
    layer: LayerConfig
    form: str
    input: int
    hidden: int
    lengths: tuple[int, ...]  # of the sequences; all the same but where the form says where they end
    steps: int
    resets: float  # share of the steps
    given: bool  # whether there are initial states
    dtype: torch.dtype

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def leading(self) -> tuple[int, ...]:
        """The input's sizes without its features."""
        if self.form in ("packed", "concatenated"):
            return (sum(self.lengths),)
        middle = () if self.form.startswith("unbatched") else (self.batch,)
        steps = () if self.layer.step else (self.steps,)
        return middle + steps if self.layer.batch_first else steps + middle

    def there(self) -> Tensor:
        """Which rows of the input are in a sequence."""
        if self.form != "lengths":
            return torch.ones(self.leading, dtype=torch.bool)
        there = torch.arange(self.steps).unsqueeze(1) < torch.tensor(self.lengths, dtype=torch.long)
        return there.t() if self.layer.batch_first else there

    def layout(self, values: torch.Generator) -> Layout:
        if self.form == "packed":
            active = [sum(length > t for length in self.lengths) for t in range(self.steps)]
            return Layout(torch.tensor(active))
        resets = torch.rand(self.leading, generator=values) < self.resets if self.resets else None
        tells = self.form in ("lengths", "concatenated")
        lengths = torch.tensor(self.lengths, dtype=torch.long) if tells else None
        return Layout(None, lengths, resets)


def draw(index: int) -> Walk:
    """The step of a number."""
    pick = random.Random(index)

    def chance(share: float) -> bool:
        return pick.random() < share

    cell = pick.choice((*CHOICES, "lstm"))
    form = pick.choice((*FORMS[:5], *FORMS))
    step = form.endswith("step")
    changes: Changes = {}
    while not changes:
        for values in CHOICES[cell]:
            if chance(0.4):
                changes |= pick.choice(values)
    hidden = pick.choice(SIZES)
    hidden += hidden % changes.get("num_heads", 1)
    layer = LayerConfig(
        cell,
        bias=changes.get("layer_norm") != "joint" and chance(0.8),
        step=step,
        num_layers=1 if step else pick.choice((1, 1, 2, 3)),
        bidirectional=not step and chance(0.5),
        batch_first=form in ("padded", "unbatched", "lengths") and chance(0.4),
        recompute=not step and chance(0.5),
        cells=cell == "lstm" and not step and chance(0.3),
        **changes,
    )
    while True:
        steps = 1 if step else pick.choice(STEPS)
        batch = 1 if form.startswith("unbatched") else pick.choice(BATCHES)
        if steps * batch * layer.num_layers * 4 * hidden * hidden <= MOST_PRODUCTS:
            break
    if form in ("packed", "concatenated"):
        batch = max(batch, 1)
    lengths = [steps] * batch
    if form in ("packed", "lengths", "concatenated"):
        least = 1 if form == "packed" else 0
        lengths = [steps, *(pick.randint(least, steps) for _ in range(batch - 1))][:batch]
        pick.shuffle(lengths)
    if form == "packed":
        lengths.sort(reverse=True)
    return Walk(
        index=index,
        layer=layer,
        form=form,
        input=pick.choice(SIZES),
        hidden=hidden,
        lengths=tuple(lengths),
        steps=steps,
        resets=0.0 if step or form == "packed" else pick.choice((0.0, 0.0, 0.3, 1.0)),
        given=step or chance(0.7),
        dtype=pick.choice((torch.float32, torch.float64)),
    )


@dataclass(frozen=True)
class Made:
    """A step's tensors."""

    x: Tensor
    hx: list[Tensor]
    params: list[Tensor]
    seeds: list[Tensor]
    layout: Layout
    outer: list[Tensor | None]  # of the outputs, None for those that are not differentiated

    def to(self, dtype: torch.dtype, rounded: int | None = None) -> Made:
        """A copy, whose leaves want a gradient or not as before; `rounded` seeds a rounding of each value."""
        values = torch.Generator().manual_seed(rounded or 0)

        def cast(t: Tensor) -> Tensor:
            moved = t.detach().to(dtype, copy=True)
            if rounded is not None:
                moved *= 1 + torch.finfo(dtype).eps * (torch.rand(t.shape, generator=values) - 0.5)
            return moved.requires_grad_(t.requires_grad)

        return dataclasses.replace(
            self,
            x=cast(self.x),
            hx=[cast(t) for t in self.hx],
            params=[cast(t) for t in self.params],
            outer=[None if t is None else cast(t) for t in self.outer],
        )


def make(case: Walk) -> Made:
    """Rows beyond the lengths, and their outer gradients, are NaN."""
    values = torch.Generator().manual_seed(case.index)
    layer, pick = case.layer, random.Random(case.index)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=values, dtype=torch.float64).to(case.dtype)

    there = case.there().unsqueeze(-1)
    x = normal(*case.leading, case.input).masked_fill(~there, torch.nan)
    middle = () if case.form.startswith("unbatched") else (case.batch,)
    parts = () if layer.step else (layer.num_layers * layer.directions,)
    states = [normal(*parts, *middle, case.hidden) for _ in layer.spec.states]
    shapes = layer.shapes(case.input, case.hidden, case.hidden)
    params = [normal(*shape) for own in shapes for shape in own.values()]
    for p in params:
        if p.dim() > 1:
            p /= p.size(-1) ** 0.5  # so that gates do not saturate
    every = pick.random() < 0.6
    for leaf in (x, *states, *params):
        leaf.requires_grad_(every or pick.random() < 0.7)
    seeds = torch.randint(-(2**63), 2**63 - 1, (layer.num_layers,), generator=values)
    rows = (*case.leading, layer.directions * case.hidden)
    shapes = [*([rows] if not layer.step else []), *(tuple(s.shape) for s in states), *[rows] * layer.cells]
    outer: list[Tensor | None] = []
    for index, shape in enumerate(shapes):
        d = normal(*shape)
        outer.append(d.masked_fill(~there, torch.nan) if layer.is_sequence(index) else d)
    if not every:
        outer = [d if pick.random() < 0.6 else None for d in outer]
    hx = states if case.given else []
    return Made(x, hx, params, [seeds] if layer.drawn else [], case.layout(values), outer)


def native(layer: LayerConfig, made: Made) -> list[Tensor]:
    return recurrent(layer, made.x, made.hx, [*made.params, *made.seeds], *made.layout)


def twin(layer: LayerConfig, made: Made) -> list[Tensor]:
    """The same in torch's operations, layer by layer."""
    each, per = layer.params_each * layer.directions, layer.directions
    x, finals = made.x, []
    for k in range(layer.num_layers):
        own = [*made.params[k * each : (k + 1) * each], *(s[k : k + 1] for s in made.seeds)]
        hx = made.hx if layer.step else [s[k * per : (k + 1) * per] for s in made.hx]
        results = _decomposed.recurrent(layer.single, x, hx, own, *made.layout)
        x = results[0]
        finals.append(results[(not layer.step) :][: len(layer.spec.states)])
    if layer.step:
        return results
    joined = [torch.cat(parts) for parts in zip(*finals, strict=True)]
    return [x, *joined, *results[1 + len(joined) :]]


def differentiated(
    run: Callable[[LayerConfig, Made], list[Tensor]], layer: LayerConfig, made: Made
) -> dict[str, Tensor]:
    """Outputs, and gradients of all leaves, by name."""
    outputs = run(layer, made)
    results = {f"output {k}": t for k, t in enumerate(outputs)}
    names = ["x", *layer.spec.states[: len(made.hx)], *(f"param {k}" for k in range(len(made.params)))]
    leaves = dict(zip(names, (made.x, *made.hx, *made.params), strict=True))
    leaves = {name: t for name, t in leaves.items() if t.requires_grad}
    pairs = [(t, d) for t, d in zip(outputs, made.outer, strict=True) if d is not None]
    if pairs and leaves:
        # Where states pass unchanged, torch's operations tie an output to no leaf: its gradients are zero.
        tied = [(t, d) for t, d in pairs if t.requires_grad]
        found: Sequence[Tensor] = [torch.zeros_like(t) for t in leaves.values()]
        if tied:
            of, outer = zip(*tied, strict=True)
            found = torch.autograd.grad(of, list(leaves.values()), outer, materialize_grads=True)
        results |= {f"d {name}": d for name, d in zip(leaves, found, strict=True)}
    return {name: t.detach() for name, t in results.items()}


def errors(got: dict[str, Tensor], want: dict[str, Tensor]) -> dict[str, float]:
    """Relative to the largest value, or to 1."""
    assert got.keys() == want.keys()
    found = {}
    for name, exact in want.items():
        difference, size = (got[name].double() - exact).abs(), exact.abs()
        assert got[name].shape == exact.shape, name
        assert not got[name].isnan().any(), f"{name}: NaN"
        found[name] = float(difference.max() / (size.max() + 1)) if exact.numel() else 0.0
    return found


def reproduction(index: int) -> str:
    return f"RNNFUSED_WALK_CASES={index + 1} python -m pytest 'tests/test_varied.py::test_step[{index}]'"


def check_against_twin(case: Walk, made: Made, got: dict[str, Tensor], words: str) -> None:
    """What the layer gave, against torch's operations in float64; other types within torch's own errors."""
    layer, dtype = case.layer, made.x.dtype
    want = differentiated(twin, layer, made.to(torch.float64))
    terms = max(8, case.steps * case.batch + case.hidden) * layer.num_layers * layer.directions
    ours = errors(got, want)
    bounds = dict.fromkeys(want, FLOAT64)
    if dtype != torch.float64:
        theirs = errors(differentiated(twin, layer, made), want)
        floor = FLOOR_ULPS * terms**0.5 * torch.finfo(dtype).eps
        bounds = {name: max(floor, TORCH_ERRORS * error) for name, error in theirs.items()}
    if dtype != torch.float64 and any(error > bounds[name] for name, error in ours.items()):
        # Chance may spare a single run: a mean of two units cancels what its inputs' roundings leave, or not.
        for seed in range(TRIES):
            theirs = errors(differentiated(twin, layer, made.to(dtype, rounded=seed)), want)
            bounds = {name: max(bound, TORCH_ERRORS * theirs[name]) for name, bound in bounds.items()}
    decides = layer.cell == "rnn_relu" or any(name in layer.text for name in ON_OFF)
    for name, error in ours.items():
        if dtype == torch.float64 or name.startswith("output") or not decides:
            assert error <= bounds[name], f"{name}: {error:.2e} > {bounds[name]:.2e} of {words}"


@pytest.mark.parametrize("index", range(CASES))
def test_step(index: int) -> None:
    """Values and gradients, and the same bits however the layer runs."""
    case = draw(index)
    layer, made = case.layer, make(case)
    words = f"{case}\n{reproduction(index)}"
    got = differentiated(native, layer, made)
    check_against_twin(case, made, got, words)

    torch.set_num_threads(2)
    again = differentiated(native, layer, made)
    assert all(torch.equal(again[name], t) for name, t in got.items()), f"not the same bits: {words}"
    other = dataclasses.replace(layer, recompute=not layer.recompute and not layer.step)
    again = differentiated(native, other, made)
    assert all(torch.equal(again[name], t) for name, t in got.items()), f"recompute changes bits: {words}"
    with torch.no_grad():
        outputs = native(layer, made)
    for k, output in enumerate(outputs):
        assert torch.equal(output, got[f"output {k}"]), f"inference has other bits in {k}: {words}"


def test_the_walk_goes_everywhere() -> None:
    walk = [draw(index) for index in range(300)]
    assert {case.form for case in walk} == set(FORMS)
    assert {case.batch for case in walk} == set(BATCHES)
    assert {case.steps for case in walk} == set(STEPS)
    assert {case.hidden for case in walk} >= set(SIZES)
    for cell, choices in CHOICES.items():
        of_cell = [case.layer for case in walk if case.layer.cell == cell]
        for change in (change for values in choices for change in values):
            assert any(all(getattr(layer, n) == v for n, v in change.items()) for layer in of_cell), change


# ---- The same bits where members share the work

LARGE: dict[str, LayerConfig] = {
    "everything": LayerConfig(
        "lstm",
        peephole=True,
        layer_norm="separate",
        cell_norm="carried",
        zoneout=(0.2, 0.3),
        recurrent_dropout=0.3,
        drawn=True,
        cell_clip=1.0,
        gate_clip=2.0,
        grad_clip=0.5,
    ),
    "shown": LayerConfig("lstm", layer_norm="joint", bias=False, cell_norm="output", coupled_gates=True),
    "update": LayerConfig("gru", layer_norm="joint", bias=False, update_bias=-1.0),
    "drawn": LayerConfig("gru", zoneout=(0.2, 0.0), recurrent_dropout=0.3, drawn=True, bidirectional=True),
    "reset": LayerConfig("gru", reset_before=True, zoneout=(0.2, 0.0), drawn=True),
    "heads": LayerConfig("rnn_tanh", num_heads=4, layer_norm="separate"),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("hidden", [256, 300])
def test_same_bits_for_any_number_of_threads(name: str, hidden: int) -> None:
    """On every run, and whether backward rebuilds the gates or not."""
    layer = LARGE[name]
    case = Walk(3, layer, "padded", 24, hidden, (6,) * 16, 6, 0.0, True, torch.float32)
    made = make(case)
    want = differentiated(native, layer, made)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for recompute in (False, True):
            got = differentiated(native, dataclasses.replace(layer, recompute=recompute), made)
            differing = [key for key in want if not torch.equal(got[key], want[key])]
            assert not differing, (threads, recompute, differing)


@pytest.mark.parametrize("name", LARGE)
def test_layers_over_one_another_have_the_bits_of_each_alone(name: str) -> None:
    """In inference one call runs all of them, on several threads at once where there are."""
    layer = dataclasses.replace(LARGE[name], num_layers=3)
    case = Walk(3, layer, "padded", 24, 256, (12,) * 16, 12, 0.0, True, torch.float32)
    made = make(case)
    want = native(layer, made)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with torch.no_grad():
            assert all(torch.equal(*pair) for pair in zip(native(layer, made), want, strict=True)), threads


@pytest.mark.long
@pytest.mark.skipif("RNNFUSED_ISA" in os.environ, reason="this is such a run")
@pytest.mark.parametrize("isa", _C.available_isas())
def test_every_isa(isa: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", "test_step"],
        env=os.environ | {"RNNFUSED_ISA": isa, "RNNFUSED_WALK_CASES": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]


# ---- Numbers at the ends of their range


@pytest.mark.parametrize("way", [recurrent, _decomposed.recurrent])
@pytest.mark.parametrize("cell, most", [("minlstm", -40.0), ("slstm", 60.0)])
def test_gates_whose_numbers_are_too_small(cell: str, most: float, way: Callable[..., list[Tensor]]) -> None:
    """Float32's result is float64's, whose range they are in. A reset leaves an sLSTM's memory empty."""
    layer, made = LayerConfig(cell), torch.Generator().manual_seed(5)
    gates, resets = len(layer.spec.gates), torch.rand(6, 3, generator=made) < 0.5
    bias = torch.cat([torch.linspace(-120, most, 17), *torch.rand(gates - 1, 17, generator=made)])
    if cell == "minlstm":
        bias[17:34] = bias[:17] + 1.5  # both gates are small
    biases = [bias, bias / 4][: len(layer.spec.biases)]
    weights = [torch.zeros(gates * 17, size) for size in ((1, 17) if layer.spec.recurrent else (1,))]
    units = (17, 51) if cell == "slstm" else (17,)
    found = []
    for dtype in (torch.float32, torch.float64):
        params = [p.to(dtype).requires_grad_() for p in weights + biases]
        hx = [torch.zeros(1, 3, size, dtype=dtype) for size in units]
        output = way(layer, torch.zeros(6, 3, 1, dtype=dtype), hx, params, None, None, resets)[0]
        found.append([output, *torch.autograd.grad(output.sum(), params)])
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("way", [recurrent, _decomposed.recurrent])
def test_an_infinite_c_is_what_it_is_without_options(way: Callable[..., list[Tensor]]) -> None:
    layer = LayerConfig("lstm", gate_clip=100.0)
    params = [torch.randn(4 * 17, size) for size in (3, 17)] + [torch.randn(4 * 17) for _ in range(2)]
    x, hx = torch.randn(4, 2, 3), [torch.zeros(1, 2, 17), torch.full((1, 2, 17), torch.inf)]
    want = recurrent(LayerConfig("lstm"), x, hx, params)
    for got, expected in zip(way(layer, x, hx, params, None, None, None), want, strict=True):
        torch.testing.assert_close(got, expected)


# ---- What is drawn


def kept_initial(layer: LayerConfig, seeds: Tensor, state: int, hidden: int = 70) -> Tensor:
    """Of the first of T = 2 steps of B = 3 sequences (the last one backwards): which units keep their initial
    value, that of no other unit, [L D, B, H]. One step of each is left by lengths.
    """
    shapes = [shape for own in layer.shapes(4, hidden, hidden) for shape in own.values()]
    parts = layer.num_layers * layer.directions
    hx = [torch.full((parts, 3, hidden), 7.0) for _ in layer.spec.states]
    params = [*(0.01 * torch.randn(shape) for shape in shapes), seeds]  # no gate saturates
    results = recurrent(layer, torch.randn(2, 3, 4), hx, params, None, torch.tensor([1, 1, 1]))
    return results[1 + state] == 7


@pytest.mark.parametrize("cell", CHOICES)
def test_each_layer_direction_and_state_has_masks_of_its_own(cell: str) -> None:
    """Those of the generator in plain integers."""
    p = (0.4, 0.7 if cell == "lstm" else 0.0)
    layer = LayerConfig(cell, num_layers=2, bidirectional=True, zoneout=p, drawn=True)
    seeds = torch.tensor([SEED, 11])
    masks = []
    for state in range(len(layer.spec.states)):
        kept = kept_initial(layer, seeds, state)
        for part in range(4):
            seed, direction = int(seeds[part // 2]), part % 2
            for b in range(3):
                words = [word_of(seed, state, direction, b, unit) for unit in range(70)]
                assert kept[part, b].tolist() == [word < p[state] * 2**32 for word in words]
        masks += list(kept.flatten(0, 1))
    assert len({tuple(mask.tolist()) for mask in masks}) == len(masks)


def test_seeds_decide_what_is_drawn() -> None:
    layer = LayerConfig("gru", zoneout=(0.5, 0.0), drawn=True)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return kept_initial(layer, torch.randint(-(2**63), 2**63 - 1, (1,)), 0)

    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_recurrent_dropout_drops_units_and_scales_the_others(p: float) -> None:
    """Of a layer that repeats h: the same units of a sequence at all steps."""
    hidden, batch, steps = 70, 3, 3
    layer = LayerConfig("rnn_relu", bias=False, recurrent_dropout=p, drawn=True, bidirectional=True)
    weights = [torch.zeros(hidden, 2, dtype=torch.float64), torch.eye(hidden, dtype=torch.float64)] * 2
    h = torch.ones(2, batch, hidden, dtype=torch.float64)
    x = torch.zeros(steps, batch, 2, dtype=torch.float64)
    y = recurrent(layer, x, [h], [*weights, torch.tensor([SEED])])[0].unflatten(-1, (2, hidden))
    for direction in range(2):
        for b in range(batch):
            words = [word_of(SEED, 2, direction, b, unit) for unit in range(hidden)]
            factor = torch.tensor([0.0 if word < p * 2**32 else 1 / (1 - p) for word in words])
            for t in range(steps):
                times = steps - t if direction else t + 1
                torch.testing.assert_close(y[t, b, direction], factor.double() ** times)


@pytest.mark.parametrize("cell", CHOICES)
def test_a_state_that_is_always_kept(cell: str) -> None:
    """Its gradient is that of the final state, even where clips and norms have none to give."""
    states = 2 if cell == "lstm" else 1
    for drawn in (False, True):
        layer = LayerConfig(cell, zoneout=(1.0, 1.0 if states == 2 else 0.0), drawn=drawn)
        case = Walk(1, layer, "padded", 3, 19, (4, 4), 4, 0.0, True, torch.float64)
        made = make(case)
        results = recurrent(layer, made.x, made.hx, [*made.params, *made.seeds])
        hx = [t.detach().requires_grad_() for t in made.hx]
        results = recurrent(layer, made.x, hx, [*made.params, *made.seeds])
        for final, initial in zip(results[1:], hx, strict=True):
            assert torch.equal(final, initial)
        outer = [torch.randn_like(t) for t in hx]
        for got, want in zip(torch.autograd.grad(results[1:], hx, outer), outer, strict=True):
            assert torch.equal(got, want)


# ---- What else the operator does

SMALL = [
    case_of(cell, changes, directions=directions, layout=layout, steps=2, hidden=4)
    for cell, changes, directions, layout in (
        (
            "lstm",
            {
                "peephole": True,
                "layer_norm": "separate",
                "cell_norm": "carried",
                "zoneout": (0.2, 0.3),
                "recurrent_dropout": 0.3,
                "drawn": True,
                "gate_clip": 2.0,
            },
            2,
            "padded",
        ),
        ("lstm", {"coupled_gates": True, "layer_norm": "joint", "cell_norm": "output"}, 1, "lengths"),
        ("lstm", {"peephole": True, "cell_clip": 0.7, "grad_clip": 0.4}, 1, "cells"),
        ("gru", {"layer_norm": "joint", "update_bias": -1.0}, 1, "packed"),
        ("gru", {"layer_norm": "separate", "zoneout": (0.3, 0.0), "drawn": True}, 1, "step"),
        ("gru", {"reset_before": True, "recurrent_dropout": 0.3, "drawn": True}, 1, "padded"),
        ("rnn_tanh", {"layer_norm": "separate", "num_heads": 2}, 1, "concatenated_resets"),
    )
]
EACH_SMALL = pytest.mark.parametrize("case", SMALL, ids=str)


def assert_close(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=FLOAT64 * max(1, float(theirs.detach().abs().max()))
        )


@EACH_SMALL
def test_second_derivatives(case: Case) -> None:
    """Against those of torch's operations; where the gradient is not clipped, against differences, too."""
    leaves = case.leaves(requires_grad=True)
    outer = [t.requires_grad_() for t in case.outer()]
    found = []
    for run in (case.run, case.twin):
        outputs = run(*leaves)[: len(outer)]
        first = torch.autograd.grad(outputs, leaves, outer, create_graph=True, materialize_grads=True)
        along = [torch.full_like(t, 0.3) for t in first]
        pairs = [(t, v) for t, v in zip(first, along, strict=True) if t.requires_grad]
        of, by = zip(*pairs, strict=True)
        found.append(torch.autograd.grad(of, [*leaves, *outer], by, materialize_grads=True))
    assert_close(*found)


def test_second_derivatives_against_differences() -> None:
    changes = {"layer_norm": "separate", "zoneout": (0.3, 0.0), "drawn": True}
    case = case_of("gru", changes, layout="step", batch=1, input=1, hidden=2)
    assert torch.autograd.gradgradcheck(case.run, case.leaves(requires_grad=True))


@EACH_SMALL
def test_forward_mode(case: Case) -> None:
    leaves = tuple(case.leaves())
    tangents = tuple(torch.randn_like(t) for t in leaves)
    outputs = len(case.outer())
    ours, theirs = (jvp(run, leaves, tangents) for run in (case.run, case.twin))
    for got, want in zip(ours, theirs, strict=True):
        assert_close(got[:outputs], want)


@EACH_SMALL
@pytest.mark.parametrize("what", ["data", "weights"])
def test_vmap(case: Case, what: str) -> None:
    """Each element is what it is alone: what the seed draws is the same for all."""
    outputs, states = len(case.outer()), 1 + case.states
    leaves = [case.leaves() for _ in range(3)]
    mapped = [(index < states) == (what == "data") for index in range(len(leaves[0]))]
    given = [
        torch.stack([each[index] for each in leaves]) if maps else leaves[0][index]
        for index, maps in enumerate(mapped)
    ]
    got = vmap(case.run, tuple(0 if maps else None for maps in mapped))(*given)
    for k in range(3):
        alone = case.run(*(t[k] if maps else t for t, maps in zip(given, mapped, strict=True)))
        assert_close([t[k] for t in got[:outputs]], alone[:outputs])


@EACH_SMALL
def test_compiled(case: Case) -> None:
    leaves = case.leaves(requires_grad=True)
    config, where, states = case.config, case.where, 1 + case.states
    seeds = case.split(leaves)[2][len(leaves) - states :]

    def run(x: Tensor, *rest: Tensor) -> list[Tensor]:
        return recurrent(config, x, rest[: states - 1], [*rest[states - 1 :], *seeds], *where)

    found = []
    for call in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        outputs = call(*leaves)
        torch.manual_seed(1)
        outer = [torch.randn_like(t) for t in outputs]
        found.append([*outputs, *torch.autograd.grad(outputs, leaves, outer, materialize_grads=True)])
    assert_close(*found)


@EACH_SMALL
def test_traced_and_of_sizes_alone(case: Case) -> None:
    leaves, outputs = case.leaves(), len(case.outer())
    want = case.run(*leaves)[:outputs]
    if case.concatenated:
        return
    traced = make_fx(lambda *given: case.run(*given)[:outputs])(*leaves)
    assert_close(traced(*leaves), want)
    sizes = case.run(*(t.to("meta") for t in leaves))[:outputs]
    assert [(t.shape, t.dtype) for t in sizes] == [(t.shape, t.dtype) for t in want]


@EACH_SMALL
def test_autocast_computes_in_float32(case: Case) -> None:
    case = dataclasses.replace(case, dtype=torch.float32)
    leaves, outputs = case.leaves(), len(case.outer())
    with torch.autocast("cpu", torch.bfloat16):
        got = case.run(*(t.bfloat16() for t in leaves))[:outputs]
    want = case.run(*(t.bfloat16().float() for t in leaves))[:outputs]
    for ours, exact in zip(got, want, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, exact)


# ---- What it refuses

DRAWN = {"zoneout": (0.3, 0.0), "drawn": True}
WRONG: dict[str, tuple[str, Changes, Callable[[list[Tensor]], list[Tensor]], str]] = {
    "no seeds": (
        "gru",
        DRAWN,
        lambda params: params[:-1],
        "params: expected 5 tensors (4 for each of 1, and seeds), got 4",
    ),
    "seeds of another size": (
        "gru",
        DRAWN,
        lambda params: [*params[:-1], torch.tensor([1, 2])],
        "seeds: expected int64 of size [1], one for each layer, got torch.int64 of size [2]",
    ),
    "seeds of another type": (
        "gru",
        DRAWN,
        lambda params: [*params[:-1], torch.tensor([1.0])],
        "seeds: expected int64 of size [1], one for each layer, got torch.float32 of size [1]",
    ),
    "peepholes": (
        "lstm",
        {"peephole": True},
        lambda params: [*params[:-1], params[-1][:2]],
        "weight_peephole_l0: expected size [3, 4], got [2, 4]",
    ),
    "coupled peepholes": (
        "lstm",
        {"peephole": True, "coupled_gates": True},
        lambda params: [*params[:-1], params[-1][:1]],
        "weight_peephole_l0: expected size [2, 4], got [1, 4]",
    ),
    "a norm": (
        "gru",
        {"layer_norm": "separate"},
        lambda params: [*params[:-1], params[-1][:4]],
        "norm_hh_bias_l0: expected size [12], got [4]",
    ),
    "a norm's type": (
        "lstm",
        {"layer_norm": "separate", "cell_norm": "carried"},
        lambda params: [*params[:-2], params[-2].float(), params[-1]],
        "norm_c_weight_l0: expected dtype Double, got Float",
    ),
    "a joint norm": (
        "lstm",
        {"layer_norm": "joint"},
        lambda params: [*params[:-1], params[-1][:3]],
        "norm_bias_l0: expected size [16], got [3]",
    ),
    "heads": (
        "rnn_tanh",
        {"num_heads": 2},
        lambda params: [params[0], params[1].flatten(0, 1), *params[2:]],
        "weight_hh: expected size [2, 1 * head_size, head_size], got [4, 2]",
    ),
}


@pytest.mark.parametrize("cell, changes, change, message", WRONG.values(), ids=WRONG)
def test_wrong_params(
    cell: str, changes: Changes, change: Callable[[list[Tensor]], list[Tensor]], message: str
) -> None:
    case = case_of(cell, changes)
    x, hx, params = case.split(case.leaves())
    with pytest.raises((RuntimeError, ValueError)) as caught:
        recurrent(case.config, x, hx, change(params))
    assert str(caught.value).splitlines()[0] == message


REFUSED = {
    "gru peephole": "peephole, coupled_gates, cell_norm and zoneout of c need an LSTM",
    "gru zoneout=0.1,0.2": "peephole, coupled_gates, cell_norm and zoneout of c need an LSTM",
    "rnn_tanh cell_clip=1.0": "cell_clip needs an LSTM",
    "lstm reset_before": "reset_before needs a GRU without norms",
    "lstm cell_norm=carried": "cell_norm needs a layer_norm",
    "lstm layer_norm=joint": "a joint norm needs an LSTM or a GRU without biases",
    "rnn_relu no_biases layer_norm=joint": "a joint norm needs an LSTM or a GRU without biases",
    "gru update_bias=1.0": "update_bias needs a GRU with a joint norm",
    "gru zoneout=1.5,0.0": "zoneout and recurrent_dropout are probabilities",
    "gru recurrent_dropout=-0.1": "zoneout and recurrent_dropout are probabilities",
    "gru gate_clip=-1.0": "a clip is no negative number",
}


@pytest.mark.parametrize("text", REFUSED)
def test_options_that_do_not_go_together(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        torch.ops.rnnfused.recurrent(torch.zeros(1, 1, 1), [], [], None, None, None, text, False)
    assert str(caught.value).splitlines()[0] == f"layer: {REFUSED[text]}, got '{text}'"


@pytest.mark.parametrize(
    "word", ["zoneout=1", "zoneout=a,b", "layer_norm=both", "cell_norm=", "num_heads=0", "grad_clip=x"]
)
def test_words_that_are_none(word: str) -> None:
    with pytest.raises(ValueError) as caught:
        torch.ops.rnnfused.recurrent(torch.zeros(1, 1, 1), [], [], None, None, None, f"lstm {word}", False)
    assert str(caught.value).splitlines()[0] == f"layer: unknown word '{word}' in 'lstm {word}'"
