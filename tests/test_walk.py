"""A random walk over all options at once, through the public API, against torch.nn in float64.

Every step is a test of its own, which its number alone decides: RNNFUSED_WALK_CASES says how many there are.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import torch_on_pieces
from results import tensors
from test_low_precision import Watching
from test_sequence import check_errors
from tolerances import FLOAT64, FLOOR_ULPS, NARROW_ROUNDINGS, eps
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfused
from rnnfused._quantized import to_int8

CASES = int(os.environ.get("RNNFUSED_WALK_CASES", "300"))
LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
# One, and below, at and above the vectors of every ISA and what a tile takes of them.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 64, 65)
STEPS = (1, 2, 3, 4, 7, 12, 25, 64)
BATCHES = (1, 2, 3, 4, 5, 7, 8, 13, 16, 33)
MOST_ROWS = 640
MOST_PRODUCTS = 2_000_000  # rows x gates, so that no case takes long
OUTPUTS = ("y", "h_n", "c_n")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# An emulated GPU takes the CPU's place, and weights of 8 bits are for the CPU.
ON_CPU = "RNNFUSED_TEST_EXTENSION" not in os.environ


@dataclass(frozen=True)
class Case:
    """One step of the walk. What is no field follows from `index`: values, and which weights are frozen."""

    index: int
    kind: str
    input: int
    hidden: int
    steps: int
    batch: int
    dtype: torch.dtype
    # padded, unbatched, sorted or unsorted (packed), lengths, concatenated; cells: padded or unbatched
    form: str
    strided: bool  # whether input and states are no contiguous tensors
    lengths: tuple[int, ...]  # of packed, padded or concatenated input; () if all are the same
    resets: float  # share of the steps
    states: str  # none, given, or followed: whether gradients of the initial states are wanted
    followed: bool  # whether that of the input is
    frozen: float  # share of the parameters that need no gradient
    outputs: tuple[str, ...]  # what is differentiated
    summed: bool  # whether the outer gradients are expanded ones
    mode: str  # grad, no_grad or inference
    threads: int
    recompute: bool
    int8: bool  # whether weights are of 8 bits: for inference, so that nothing is differentiated
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_cell(self) -> bool:
        return self.kind in CELLS

    @property
    def is_layout(self) -> bool:
        """Whether lengths or resets say where the sequences are."""
        return self.form in ("lengths", "concatenated") or self.resets > 0

    @property
    def layers(self) -> int:
        return self.options.get("num_layers", 1) * (2 if self.options.get("bidirectional") else 1)


def draw(index: int) -> Case:
    """The case of a number."""
    pick = random.Random(index)

    def chance(share: float) -> bool:
        return pick.random() < share

    kind = pick.choice(3 * LAYERS + CELLS)
    hidden = pick.choice(SIZES)
    options: dict[str, Any] = {"bias": chance(0.8)}
    if kind.startswith("RNN"):
        options["nonlinearity"] = pick.choice(("tanh", "relu"))
    dtype = pick.choice((torch.float32, *DTYPES))
    form = pick.choice(("padded", "unbatched"))
    if kind in LAYERS:
        options |= {
            "num_layers": pick.choice((1, 1, 2, 3)),
            "bidirectional": chance(0.65),
            "batch_first": chance(0.4),
        }
        form = pick.choice(
            ("padded", "unbatched", "sorted", "sorted", "unsorted", "lengths", "lengths", "concatenated")
        )
        if kind == "LSTM" and hidden > 1 and chance(0.3):
            options["proj_size"] = pick.randint(1, hidden - 1)
        # Which elements are dropped depends on the dtype, and on where rows lie.
        if dtype == torch.float64 and form in ("padded", "sorted", "unsorted") and chance(0.2):
            options["dropout"] = 0.3 if options["num_layers"] > 1 else 0.0
    resets = 0.0
    if kind in LAYERS and "sorted" not in form and "dropout" not in options:
        resets = pick.choice((0.0, 0.0, 0.05, 0.3, 1.0))
    while True:
        steps, batch = pick.choice(STEPS), 1 if form == "unbatched" else pick.choice(BATCHES)
        rows = steps * batch * options.get("num_layers", 1)
        if steps * batch <= MOST_ROWS and rows * 4 * hidden * hidden <= 8 * MOST_PRODUCTS:
            break
    shortest = pick.choice((1, 1 + steps // 2))
    lengths = [pick.randint(min(shortest, steps), steps) for _ in range(batch)]
    lengths[0] = steps
    if form in ("lengths", "concatenated"):
        lengths = [0 if chance(0.1) else length for length in lengths]
    if form == "sorted":
        lengths.sort(reverse=True)
    outputs = OUTPUTS if kind.startswith("LSTM") else OUTPUTS[:2]
    case = Case(
        index=index,
        kind=kind,
        input=pick.choice(SIZES),
        hidden=hidden,
        steps=min(steps, 4) if kind in CELLS else steps,
        batch=batch,
        dtype=dtype,
        form=form,
        strided=chance(0.3),
        lengths=() if form in ("padded", "unbatched") else tuple(lengths),
        resets=resets,
        states=pick.choice(("none", "given", "followed", "followed")),
        followed=chance(0.6),
        frozen=pick.choice((0.0, 0.0, 0.3, 1.0)),
        outputs=tuple(name for name in outputs if chance(0.6)),
        summed=chance(0.4),
        mode=pick.choice(("grad",) * 8 + ("no_grad", "inference")),
        threads=pick.choice((1, 2)),
        recompute=kind in LAYERS and chance(0.65),
        int8=False,
        options=options,
    )
    # Drawn last: the numbers of other cases stay theirs.
    int8 = ON_CPU and dtype == torch.float32 and chance(0.2)
    return replace(case, int8=True, outputs=()) if int8 else case


@contextmanager
def settings(case: Case) -> Iterator[None]:
    """The case's number of threads and its grad mode."""
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    mode = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
    try:
        with mode[case.mode]():
            yield
    finally:
        torch.set_num_threads(before)


def leaf(case: Case, value: Tensor, dtype: torch.dtype, followed: bool) -> Tensor:
    """A copy, every other element of which lies in memory if the case is strided."""
    value = value.to(dtype)
    if case.strided:
        value = torch.stack((value, torch.full_like(value, torch.nan)), -1)[..., 0]
    return value.requires_grad_(followed and case.mode == "grad")


def run(case: Case, module: Any, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Every output and every gradient of what is differentiated, by name, in float64."""
    random_values = torch.Generator().manual_seed(case.index)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random_values, dtype=case.dtype)

    if case.is_layout:
        return run_layout(case, module, dtype, values)
    batch_first = case.options.get("batch_first", False)
    middle = () if case.form == "unbatched" else (case.batch,)
    sizes = (*middle, case.steps) if batch_first else (case.steps, *middle)
    leaves = {"x": leaf(case, values(*sizes, case.input), dtype, case.followed)}
    first = () if case.is_cell else (case.layers,)
    for name, size in {"h_0": case.options.get("proj_size") or case.hidden, "c_0": case.hidden}.items():
        leaves[name] = leaf(case, values(*first, *middle, size), dtype, case.states == "followed")
    if not case.kind.startswith("LSTM"):
        del leaves["c_0"]
    hx: Any = tuple(leaves[name] for name in leaves if name != "x") if case.states != "none" else None
    if hx is not None and len(hx) == 1:
        (hx,) = hx

    torch.manual_seed(case.index)  # of dropout
    with settings(case):
        if case.is_cell:
            steps = []
            for x in leaves["x"]:
                hx = module(x, hx)
                steps.append(tensors(hx)[0])
            found = [torch.stack(steps), *tensors(hx)]
        elif case.lengths:
            packed = pack_padded_sequence(leaves["x"], case.lengths, batch_first, case.form == "sorted")
            found = tensors(module(packed, hx))
        else:
            found = tensors(module(leaves["x"], hx))
        return results_of(case, module, leaves, found, values)


def results_of(
    case: Case, module: Any, leaves: dict[str, Tensor], found: list[Tensor], values: Any
) -> dict[str, np.ndarray]:
    """What was found, and the gradients of what is differentiated, by name."""
    results = dict(zip(OUTPUTS, found, strict=False))
    targets = leaves | (dict(module.named_parameters()) if isinstance(module, torch.nn.Module) else {})
    targets = {name: t for name, t in targets.items() if t.requires_grad}
    outer = {name: values(*results[name].shape).to(results[name].dtype) for name in results}
    chosen = [name for name in case.outputs if results[name].requires_grad]
    if chosen and targets:
        loss = sum(results[n].sum() if case.summed else (results[n] * outer[n]).sum() for n in chosen)
        gradients = torch.autograd.grad(loss, list(targets.values()), allow_unused=True)
        for (name, target), gradient in zip(targets.items(), gradients, strict=True):
            # What the loss does not depend on: torch gives nothing, or zeros where a kernel is at work.
            results[f"d{name}"] = torch.zeros_like(target) if gradient is None else gradient
    return {name: t.detach().to(torch.float64).numpy() for name, t in results.items()}


def run_layout(case: Case, module: Any, dtype: torch.dtype, values: Any) -> dict[str, np.ndarray]:
    """As `run`; values are drawn for every step of every sequence, whatever the form."""
    sizes = (case.options.get("proj_size") or case.hidden, case.hidden)
    states = {"h_0": sizes[0], "c_0": sizes[1]} if case.kind == "LSTM" else {"h_0": sizes[0]}
    leaves = {"x": leaf(case, values(case.steps, case.batch, case.input), dtype, case.followed)}
    for name, size in states.items():
        leaves[name] = leaf(case, values(case.layers, case.batch, size), dtype, case.states == "followed")
    hx = [leaves[name] for name in states] if case.states != "none" else None
    lengths = case.lengths or (case.steps,) * case.batch
    resets = torch.rand(case.steps, case.batch, generator=torch.Generator().manual_seed(case.index))
    cuts = resets < case.resets
    with settings(case):
        if type(module).__module__.startswith("torch."):
            found = torch_on_pieces(module, leaves["x"], hx, lengths, cuts)
        else:
            found = called(case, module, leaves["x"], hx, lengths, cuts)
        return results_of(case, module, leaves, found, values)


def called(
    case: Case, module: Any, x: Tensor, hx: list[Tensor] | None, lengths: tuple[int, ...], cuts: Tensor
) -> list[Tensor]:
    """Of the case's form, the output as padded [T, B, D P] and the final states."""
    options: dict[str, Any] = {"resets": cuts} if case.resets else {}
    if case.form == "unbatched":
        given = None if hx is None else [s[:, 0] for s in hx]
        if options:
            options["resets"] = cuts[:, 0]
        y, *final = tensors(module(x[:, 0], _as_hx(given), **options))
        return [y.unsqueeze(1), *(s.unsqueeze(1) for s in final)]
    if case.form == "concatenated":
        rows = torch.cat([x[:length, b] for b, length in enumerate(lengths)])
        if options:
            options["resets"] = torch.cat([cuts[:length, b] for b, length in enumerate(lengths)])
        ends = torch.tensor([0, *lengths]).cumsum(0)
        y, *final = tensors(module(rows, _as_hx(hx), cu_seqlens=ends, **options))
        parts = [y[ends[b] : ends[b + 1]] for b in range(case.batch)]
        padded = [torch.cat((part, y.new_zeros(case.steps - len(part), y.size(1)))) for part in parts]
        return [torch.stack(padded, 1), *final]
    if case.form == "lengths":
        options["lengths"] = torch.tensor(lengths)
    batch_first = case.options["batch_first"]
    if batch_first:
        x = x.transpose(0, 1)
        options = {name: t.t() if name == "resets" else t for name, t in options.items()}
    y, *final = tensors(module(x, _as_hx(hx), **options))
    return [y.transpose(0, 1) if batch_first else y, *final]


def _as_hx(states: list[Tensor] | None) -> Any:
    return None if states is None else tuple(states) if len(states) > 1 else states[0]


def modules(case: Case) -> tuple[Any, Any]:
    """The layer, and torch's with the same weights in float64."""
    torch.manual_seed(case.index)
    more = {"recompute": True} if case.recompute else {}
    ours = getattr(rnnfused, case.kind)(case.input, case.hidden, dtype=case.dtype, **case.options, **more)
    pick = random.Random(case.index)
    for parameter in ours.parameters():
        parameter.requires_grad_(pick.random() >= case.frozen)
    theirs = getattr(torch.nn, case.kind)(case.input, case.hidden, dtype=torch.float64, **case.options)
    theirs.load_state_dict(ours.state_dict())
    for parameter, of in zip(theirs.parameters(), ours.parameters(), strict=True):
        parameter.requires_grad_(of.requires_grad)
    if not case.int8:
        return ours, theirs
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.dim() == 2:
                numbers, scale = to_int8(weight.float())
                weight.copy_(numbers * scale.double().unsqueeze(1))
    return ours, theirs


def of_8_bits(case: Case, module: Any) -> dict[str, Any]:
    """Every way to run a layer with weights of 8 bits, by name: all have the same bits."""
    quantized = rnnfused.Quantized(module)

    def watched(*given: Any, **options: Any) -> Any:
        with Watching():
            return quantized(*given, **options)

    def stepped(x: Tensor, hx: Any) -> Any:
        stepper = rnnfused.Stepper(module, case.batch, weights="int8")
        if hx is not None:
            stepper.state = hx
        rows = x.detach().unbind(1 if module.batch_first else 0)
        return torch.stack([stepper(row) for row in rows], 1 if module.batch_first else 0), stepper.state

    ways = {"quantized": quantized, "operator": watched}
    if not case.is_cell:
        ways["frozen"] = rnnfused.Frozen(module, weights="int8")
        if case.form == "padded" and not case.resets and not module.bidirectional:
            ways["stepper"] = stepped
    return ways


@pytest.mark.parametrize("index", range(CASES))
def test_step(index: int) -> None:
    case = draw(index)
    ours, theirs = modules(case)
    words = f"{case}\n{reproduction(index)}"
    want = run(case, theirs, torch.float64)
    if case.int8:
        found = {name: run(case, way, case.dtype) for name, way in of_8_bits(case, ours).items()}
        got = found["quantized"]
        for way, results in found.items():
            assert all(np.array_equal(results[name], got[name]) for name in got), f"{way}: {words}"
    else:
        got = run(case, ours, case.dtype)
    terms = max(8, case.steps * case.batch + case.hidden) * case.layers
    if case.int8:  # the largest number of a row is as far from the next as in bfloat16
        bound = NARROW_ROUNDINGS * np.sqrt(terms) / 127
    elif case.dtype == torch.float64:
        bound = FLOAT64
    elif case.dtype == torch.float32:
        bound = FLOOR_ULPS * np.sqrt(terms) * eps(np.float32)
    else:
        bound = NARROW_ROUNDINGS * np.sqrt(terms) * torch.finfo(case.dtype).eps
        if case.options.get("nonlinearity") == "relu":  # on in the one, off in the other, where near zero
            got, want = ({n: t for n, t in all.items() if n in OUTPUTS} for all in (got, want))
    check_errors(got, want, bound, words)


def reproduction(index: int) -> str:
    return f"RNNFUSED_WALK_CASES={index + 1} python -m pytest 'tests/test_walk.py::test_step[{index}]'"


def test_the_walk_goes_everywhere() -> None:
    """Each value of each option occurs, and the combinations that have failed before."""
    cases = [draw(index) for index in range(300)]
    for name, values in {
        "kind": LAYERS + CELLS,
        "form": ("padded", "unbatched", "sorted", "unsorted", "lengths", "concatenated"),
        "resets": (0.0, 0.05, 0.3, 1.0),
        "states": ("none", "given", "followed"),
        "mode": ("grad", "no_grad", "inference"),
        "hidden": SIZES,
        "input": SIZES,
        "steps": STEPS,
        "batch": BATCHES,
        "threads": (1, 2),
        "dtype": DTYPES,
        "int8": (False, True) if ON_CPU else (False,),
    }.items():
        assert {getattr(case, name) for case in cases} == set(values), name
    for option in ("nonlinearity", "num_layers", "bidirectional", "batch_first", "proj_size", "dropout"):
        assert len({case.options.get(option) for case in cases}) > 1, option
    int8 = [case for case in cases if case.int8]
    assert not ON_CPU or (
        {case.kind for case in int8} == {*LAYERS, *CELLS} and len({case.form for case in int8}) > 4
    )
    assert any(
        c.recompute and c.options["bidirectional"] and "sorted" in c.form and c.outputs and c.kind == "LSTM"
        for c in cases
    )
