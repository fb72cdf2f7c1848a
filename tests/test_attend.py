"""A layer that attends while it runs: the operator against the same steps in plain torch, and the decoder
that runs on it against its own steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from decoders import by_steps
from results import assert_same_bits
from tolerances import FLOAT64, FLOAT64_DERIVATIVES, FLOOR_ULPS, TORCH_ERRORS
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import rnnfused
from rnnfused import _attend
from rnnfused._layer import LayerConfig
from rnnfused._load import _C
from rnnfused.attention import AdditiveAttention, Memory
from rnnfused.cells import CELLS
from rnnfused.seq2seq import AttentionDecoder, Decoded, DecoderState

ATTEND = "rnnfused::attend"
STEP = {
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
}
EVERY_CELL = pytest.mark.parametrize("cell", STEP)
MASKS = ("none", "prefix", "empty", "scattered")


@dataclasses.dataclass(frozen=True)
class Sizes:
    T: int = 4
    B: int = 3
    E: int = 5
    V: int = 6
    H: int = 7
    S: int = 9
    A: int = 5


# ---- The operator


@dataclasses.dataclass
class Case:
    """Arguments of one call, by name."""

    config: LayerConfig
    tensors: dict[str, Tensor]
    mask: Tensor | None

    @staticmethod
    def drawn(
        cell: str = "lstm",
        sizes: Sizes | None = None,
        mask: str = "prefix",
        bias: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> Case:
        n = sizes or Sizes()
        spec = CELLS[cell]
        gates = len(spec.gates) * n.H
        shapes = {"input": (n.T, n.B, n.E)}
        shapes |= {f"{state}_0": (1, n.B, n.H) for state in spec.states}
        shapes |= {"weight_ih": (gates, n.E + n.V), "weight_hh": (gates, n.H)}
        shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)} if bias else {}
        shapes |= {"keys": (n.B, n.S, n.A), "values": (n.B, n.S, n.V), "query": (n.A, n.H), "score": (n.A,)}
        tensors = {}
        for name, shape in shapes.items():
            scale = shape[-1] ** -0.5 if name in ("weight_ih", "weight_hh", "query") else 1
            tensors[name] = (torch.randn(shape, dtype=torch.float64) * scale).to(dtype).requires_grad_()
        return Case(LayerConfig(cell, bias=bias), tensors, drawn_mask(mask, n.B, n.S))

    def to(self, dtype: torch.dtype) -> Case:
        tensors = {name: t.detach().to(dtype).requires_grad_() for name, t in self.tensors.items()}
        return Case(self.config, tensors, self.mask)

    def arguments(self) -> tuple[Any, ...]:
        """As `attend` takes them."""
        t = self.tensors
        hx = [t[name] for name in t if name.endswith("_0")]
        params = [t[name] for name in t if name.startswith(("weight", "bias"))]
        return self.config, t["input"], hx, params, t["keys"], t["values"], t["query"], t["score"], self.mask

    def operands(self, save: bool = True) -> tuple[Any, ...]:
        """As the operator takes them."""
        config, input, hx, params, *attention, mask = self.arguments()
        return input, hx, params, attention, mask, config.text, save

    def run(self) -> dict[str, Tensor]:
        y, states, entered, weights = _attend.attend(*self.arguments())
        return self._named([y, *states, entered, weights])

    def by_steps(self) -> dict[str, Tensor]:
        config, input, hx, params, *attention, mask = self.arguments()
        return self._named(_attend._by_steps(config, input, hx, params, attention, mask))

    def by_torch(self) -> dict[str, Tensor]:
        """The same by torch's own operations."""
        config, input, hx, params, keys, values, query, score, mask = self.arguments()
        states = [state[0] for state in hx]
        outputs, entered, weighed = [], [], []
        for given in input:
            scores = torch.tanh((states[0] @ query.T).unsqueeze(1) + keys) @ score
            if mask is not None:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            weights = scores.softmax(-1)
            if mask is not None:
                weights = weights.masked_fill(~mask, 0)
            entering = torch.cat((given, torch.einsum("bs,bsv->bv", weights, values)), -1)
            after = STEP[config.cell](entering, states if len(states) > 1 else states[0], *params)
            states = list(after) if isinstance(after, tuple) else [after]
            outputs.append(states[0])
            entered.append(entering)
            weighed.append(weights)
        finals = [state.unsqueeze(0) for state in states]
        return self._named([torch.stack(outputs), *finals, torch.stack(entered), torch.stack(weighed)])

    def result_names(self) -> list[str]:
        return ["output", *(f"{state}_n" for state in self.config.spec.states), "entered", "weights"]

    def _named(self, results: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.result_names(), results, strict=True))


def drawn_mask(kind: str, batch: int, source: int) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "scattered":
        return torch.rand(batch, source) < 0.6
    lengths = torch.randint(1, source + 1, (batch, 1))
    if kind == "empty":
        lengths[::2] = 0
    return torch.arange(source) < lengths


def outer_of(results: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.randn_like(t) for name, t in results.items()}


def gradients(
    results: dict[str, Tensor], of: dict[str, Tensor], outer: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What `outer`, of some of the results, makes of `of`; zeros where nothing gets there."""
    found = torch.autograd.grad(
        [results[name] for name in outer],
        list(of.values()),
        [g.to(results[name].dtype) for name, g in outer.items()],
        allow_unused=True,
        retain_graph=True,
    )
    pairs = zip(of.items(), found, strict=True)
    return {f"d{name}": torch.zeros_like(t) if g is None else g for (name, t), g in pairs}


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """By name, in units of each tensor's largest value."""
    assert got.keys() == want.keys()
    for name, t in want.items():
        largest = max(1.0, float(t.detach().abs().max())) if t.numel() else 1.0
        difference = (got[name] - t).detach().abs()
        assert not difference.numel() or float(difference.max()) <= tolerance * largest, name


def check(case: Case, wanted: list[str] | None = None, used: list[str] | None = None) -> None:
    """Values and gradients against plain torch."""
    of = {name: case.tensors[name] for name in wanted or case.tensors}
    for name, t in case.tensors.items():
        t.requires_grad_(name in of)
    got, want = case.run(), case.by_torch()
    assert_close(got, want, 10 * FLOAT64)
    outer = outer_of(want)
    outer = {name: outer[name] for name in used or outer if want[name].requires_grad}
    if outer:
        assert_close(gradients(got, of, outer), gradients(want, of, outer), FLOAT64_DERIVATIVES)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@EVERY_CELL
def test_values_and_gradients(cell: str, mask: str, bias: bool) -> None:
    check(Case.drawn(cell, mask=mask, bias=bias))
    check(Case.drawn(cell, Sizes(T=6, B=5, E=17, V=34, H=40, S=19, A=33), mask=mask, bias=bias))


@pytest.mark.parametrize("name", ["T", "B", "E", "V", "H", "S", "A"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_sizes_around_vectors_and_tiles(cell: str, name: str) -> None:
    for size in (1, 2, 7, 8, 9, 16, 17, 33, 130):
        check(Case.drawn(cell, dataclasses.replace(Sizes(), **{name: size})))


@pytest.mark.parametrize("name", ["E", "B", "S"])
@EVERY_CELL
def test_sizes_of_nothing(cell: str, name: str) -> None:
    check(Case.drawn(cell, dataclasses.replace(Sizes(), **{name: 0}), mask="none"))


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(T=3, B=3, H=1100),
        Sizes(T=3, B=3, A=1100),
        Sizes(T=3, B=3, V=1100),
        Sizes(T=50, B=40, E=3, V=4, H=5, S=3, A=2),
        Sizes(T=300, B=2, H=9),
        Sizes(T=3, B=300, H=9),
        Sizes(T=1, B=1, H=130, S=1, A=1),
    ],
    ids=str,
)
def test_beyond_the_blocking(sizes: Sizes) -> None:
    check(Case.drawn("gru", sizes))


@pytest.mark.parametrize("seed", range(6))
def test_a_walk_over_sizes_masks_and_what_is_wanted(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(8):
        sizes = Sizes(*(draw.choice((1, 2, 3, 5, 8, 12, 17, 30, 48)) for _ in range(7)))
        case = Case.drawn(draw.choice(list(STEP)), sizes, draw.choice(MASKS), draw.random() < 0.7)
        names, results = list(case.tensors), case.result_names()
        wanted = draw.sample(names, draw.randint(1, len(names)))
        used = draw.sample(results, draw.randint(1, len(results)))
        check(case, wanted, used)


@EVERY_CELL
def test_errors_in_float32_are_at_most_twice_those_of_torch(cell: str) -> None:
    worst: dict[str, list[float]] = {}
    largest: dict[str, float] = {}
    for mask in ("none", "prefix", "scattered"):
        narrow = Case.drawn(cell, Sizes(T=8, B=6, E=12, V=20, H=24, S=15, A=18), mask, dtype=torch.float32)
        exact = narrow.to(torch.float64)
        want = exact.by_torch()
        outer = {name: g.float() for name, g in outer_of(want).items()}
        truth = want | gradients(want, exact.tensors, outer)
        for place, run in enumerate((narrow.run, narrow.by_torch)):
            results = run()
            results |= gradients(results, narrow.tensors, outer)
            for name, t in results.items():
                error = float((t.detach().double() - truth[name].detach()).abs().max())
                errors = worst.setdefault(name, [0.0, 0.0])
                errors[place] = max(errors[place], error)
        for name, t in truth.items():
            largest[name] = max(largest.get(name, 0.0), float(t.detach().abs().max()))
    for name, (own, torchs) in worst.items():
        floor = FLOOR_ULPS * torch.finfo(torch.float32).eps * largest[name]
        assert own <= max(TORCH_ERRORS * torchs, floor), name


# Of values and query the gradients are products by torch.
BY_TORCH = ("dvalues", "dquery")


@contextlib.contextmanager
def with_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "sizes", [Sizes(9, 16, 20, 24, 65, 12, 40), Sizes(5, 2, 9, 70, 300, 33, 100)], ids=str
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_same_bits_for_any_number_of_threads(cell: str, sizes: Sizes, dtype: torch.dtype) -> None:
    case = Case.drawn(cell, sizes, "scattered", dtype=dtype)
    outer = outer_of(case.run())
    seen = []
    for threads in (1, 1, 2, 3, 4):
        with with_threads(threads):
            results = case.run()
            found = results | gradients(results, case.tensors, outer)
            seen.append([t for name, t in found.items() if name not in BY_TORCH])
    for other in seen[1:]:
        assert_same_bits(other, seen[0])


# ---- Derivatives of derivatives


@pytest.mark.parametrize("mask", ["none", "scattered"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_gradcheck_and_gradgradcheck(cell: str, mask: str) -> None:
    case = Case.drawn(cell, Sizes(T=2, B=1, E=1, V=2, H=2, S=2, A=1), mask)
    names = list(case.tensors)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = Case(case.config, dict(zip(names, tensors, strict=True)), case.mask)
        return tuple(given.run().values())

    assert torch.autograd.gradcheck(run, tuple(case.tensors.values()))
    assert torch.autograd.gradgradcheck(run, tuple(case.tensors.values()), fast_mode=True)


@EVERY_CELL
def test_gradients_that_can_be_differentiated(cell: str) -> None:
    """The values of those that cannot, and as derivatives those of plain torch."""
    case = Case.drawn(cell, mask="scattered")
    names = list(case.tensors)
    found = []
    for run in (case.run, case.by_steps, case.by_torch):
        total = sum(t.sin().sum() for t in run().values())
        once = torch.autograd.grad(total, list(case.tensors.values()), create_graph=True)
        twice = torch.autograd.grad(sum(g.cos().sum() for g in once), list(case.tensors.values()))
        found.append(
            {f"d{n}": g for n, g in zip(names, once, strict=True)}
            | {f"dd{n}": g for n, g in zip(names, twice, strict=True)}
        )
    assert_close(found[0], found[2], FLOAT64_DERIVATIVES)
    assert_close(found[1], found[2], FLOAT64_DERIVATIVES)
    results = case.run()
    plain = gradients(results, case.tensors, {name: t.cos().detach() for name, t in results.items()})
    assert_close({n: found[0][n] for n in plain}, plain, FLOAT64_DERIVATIVES)


# ---- What is not finite


def assert_as_torchs(case: Case) -> None:
    """The same values, NaN where torch's operations have it."""
    got, want = case.run(), case.by_torch()
    outer = outer_of(want)
    got |= gradients(got, case.tensors, outer)
    want |= gradients(want, case.tensors, outer)
    for name in want:
        torch.testing.assert_close(
            got[name],
            want[name],
            rtol=FLOAT64_DERIVATIVES,
            atol=FLOAT64_DERIVATIVES,
            equal_nan=True,
            msg=name,
        )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["keys", "values"])
def test_what_is_not_finite_in_one_sequence_is_in_no_other(name: str, value: float) -> None:
    case = Case.drawn("gru", mask="none")
    with torch.no_grad():
        case.tensors[name][1, 2, 3] = value
    got, want = case.run(), case.by_torch()
    for result in got:
        torch.testing.assert_close(got[result], want[result], equal_nan=True, msg=result)
    others = [0, 2]
    assert got["output"][:, others].isfinite().all()
    for gradient in (name, "input"):
        of = {gradient: case.tensors[gradient]}
        along = {"output": torch.ones_like(got["output"])}
        own = gradients(got, of, along)[f"d{gradient}"]
        assert own.index_select(1 if gradient == "input" else 0, torch.tensor(others)).isfinite().all()


def test_nan_keys_beyond_the_mask_reach_nothing() -> None:
    case = Case.drawn("lstm", mask="prefix")
    want = case.run()
    outer = outer_of(want)
    want |= gradients(want, case.tensors, outer)
    assert case.mask is not None
    with torch.no_grad():
        case.tensors["keys"][~case.mask] = torch.nan
    got = case.run()
    got |= gradients(got, case.tensors, outer)
    assert_same_bits(got.values(), want.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_gradients_of_weights_beyond_the_mask_reach_nothing(value: float) -> None:
    """As those of torch.special.entr, which are infinite at zero."""
    case = Case.drawn("lstm", mask="prefix")
    assert case.mask is not None
    results = case.run()
    outer = outer_of(results)
    want = gradients(results, case.tensors, outer)
    outer["weights"][:, ~case.mask] = value
    assert_close(gradients(results, case.tensors, outer), want, FLOAT64)


@pytest.mark.parametrize("mask", ["none", "all"])
def test_scores_of_minus_infinity_alone(mask: str) -> None:
    """The softmax of them is NaN, as torch's is."""
    case = Case.drawn("lstm", mask="none")
    if mask == "all":
        case.mask = torch.ones(Sizes().B, Sizes().S, dtype=torch.bool)
    with torch.no_grad():
        case.tensors["score"].fill_(-torch.inf)
        case.tensors["query"].zero_()
        case.tensors["keys"].abs_()
    assert_as_torchs(case)


# ---- Errors


def changed(case: Case, name: str, change: Callable[[Tensor], Tensor]) -> Case:
    return Case(case.config, case.tensors | {name: change(case.tensors[name].detach())}, case.mask)


# In what the message says. A size that several share may be held against any of them.
NAMES = {
    "input": "input",
    "h_0": r"hidden\[0\]|h0|hx",
    "c_0": r"hidden\[1\]|c0|cx",
    "weight_ih": r"weight|input\.size\(-1\)",
    "weight_hh": "weight_hh",
    "bias_ih": "bias_ih",
    "bias_hh": "bias_hh",
    "keys": r"keys|values|attention\[0\]",
    "values": r"values|attention\[1\]|input\.size\(-1\)",
    "query": r"query|attention\[2\]|keys",
    "score": r"score|attention\[3\]",
}
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "wider": lambda t: torch.cat((t, t[..., :1]), -1),
    "longer": lambda t: torch.cat((t, t[:1])),
    "of another type": lambda t: t.float(),
    "of fewer dimensions": lambda t: t[0],
}


# The others are held against the steps and the type of the input.
@pytest.mark.parametrize(
    "name, change",
    [(n, c) for n in NAMES for c in CHANGES if n != "input" or c in ("wider", "of fewer dimensions")],
)
def test_wrong_arguments_are_named(name: str, change: str) -> None:
    case = Case.drawn("lstm")
    before = {n: t.detach().clone() for n, t in case.tensors.items()}
    given = changed(case, name, CHANGES[change])
    with pytest.raises((RuntimeError, ValueError), match=NAMES[name]):
        given.run()
    for n, t in case.tensors.items():
        assert torch.equal(t, before[n])


@pytest.mark.parametrize(
    "mask",
    [torch.ones(3, 8, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool), torch.ones(3, 9)],
    ids=["short", "few", "float"],
)
def test_wrong_masks_are_named(mask: Tensor) -> None:
    case = Case.drawn("lstm")
    case.mask = mask
    with pytest.raises(RuntimeError, match="mask"):
        case.run()


def test_what_backward_has_kept_may_lie_otherwise_but_has_to_be_there() -> None:
    case = Case.drawn("lstm")

    def gradients(pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> list[Tensor]:
        for t in case.tensors.values():
            t.grad = None
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            outputs = case.run()
        torch.autograd.backward([t.sum() for t in outputs.values()])
        return [t.grad for t in case.tensors.values() if t.grad is not None]

    want = gradients(lambda t: t, lambda t: t)
    got = gradients(lambda t: torch.stack((t, t.logical_not()), -1), lambda both: both[..., 0])
    assert len(got) == len(want) > 0
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)

    def emptied(t: Tensor) -> Tensor:
        empty = t.clone()
        empty.untyped_storage().resize_(0)
        return empty

    with pytest.raises(RuntimeError, match="expected a tensor with memory of its own size"):
        gradients(emptied, lambda t: t)


@pytest.mark.parametrize("place", range(5))
def test_no_attention_and_nothing_kept(place: int) -> None:
    h = torch.zeros(1, 2, 6)
    params = [torch.zeros(18, 9), torch.zeros(18, 6)]
    kept = [torch.zeros(3, 2, 9), torch.zeros(3, 2, 5), torch.zeros(3, 2, 7), torch.zeros(3, 2, 6)]
    attention = [torch.zeros(2, 5, 7), torch.zeros(2, 5, 4), torch.zeros(7, 6), torch.zeros(7)]
    run = torch.ops.rnnfused.attend_backward
    with pytest.raises(RuntimeError, match="attention: expected keys, values, query and score, got 0"):
        run([None] * 4, [*kept, torch.zeros(1, 1)], [h], params, [], None, "gru no_biases")
    with pytest.raises(RuntimeError, match="kept: expected 5 tensors, got"):
        run([None] * 4, kept[:place], [h], params, attention, None, "gru no_biases")


@pytest.mark.parametrize("option", ["num_layers", "bidirectional", "batch_first", "recompute", "cells"])
def test_other_layers_are_refused(option: str) -> None:
    case = Case.drawn("lstm")
    case.config = dataclasses.replace(case.config, **{option: 2 if option == "num_layers" else True})
    with pytest.raises(ValueError, match="layer: expected one layer in one direction"):
        case.run()


# ---- As torch's tools see it


@pytest.mark.long
@EVERY_CELL
def test_opcheck(cell: str) -> None:
    # Units of whole vectors: what lies beside others in a tape is not written, and opcheck compares it.
    case = Case.drawn(cell, Sizes(T=2, B=2, E=2, V=3, H=8, S=4, A=2))
    operands = case.operands()
    torch.library.opcheck(torch.ops.rnnfused.attend.default, operands)
    plain = torch.utils._pytree.tree_map_only(Tensor, torch.Tensor.detach, operands)
    torch.library.opcheck(torch.ops.rnnfused.attend.default, (*plain[:-1], False))
    y, *rest = torch.ops.rnnfused.attend(*plain)
    states = len(case.config.spec.states)
    finals, (x, weights, queries, tape) = rest[:states], rest[states:]
    grads = [torch.randn_like(t) for t in (y, *finals, x, weights)]
    kept = [x, weights, queries, y, tape]
    for given in (grads, [grads[0], *[None] * (2 + states)]):
        operands_of_backward = (given, kept, *plain[1:-1])
        torch.library.opcheck(torch.ops.rnnfused.attend_backward.default, operands_of_backward)


def test_under_fake_tensors_sizes_are_those_of_real_ones() -> None:
    case = Case.drawn("lstm")
    real = case.run()
    grads = gradients(real, case.tensors, {"output": torch.ones_like(real["output"])})
    with torch._subclasses.FakeTensorMode() as mode:
        tensors = {name: mode.from_tensor(t) for name, t in case.tensors.items()}
        assert case.mask is not None
        fake = Case(case.config, tensors, mode.from_tensor(case.mask))
        results = fake.run()
        found = gradients(results, tensors, {"output": torch.ones_like(results["output"])})
    for name, t in (real | grads).items():
        other = (results | found)[name]
        assert (other.shape, other.stride(), other.dtype) == (t.shape, t.stride(), t.dtype), name


@torch.no_grad()
def test_a_trace_holds_no_tensors_of_its_own() -> None:
    case, other = Case.drawn("gru"), Case.drawn("gru")
    names = list(case.tensors)

    def run(*tensors: Tensor) -> dict[str, Tensor]:
        return Case(case.config, dict(zip(names, tensors, strict=True)), case.mask).run()

    traced = make_fx(run)(*case.tensors.values())
    nodes = [node for node in traced.graph.nodes if node.op == "call_function"]
    assert torch.ops.rnnfused.attend.default in [node.target for node in nodes]
    held = [getattr(traced, node.target) for node in traced.graph.nodes if node.op == "get_attr"]
    assert all(t is case.mask or torch.equal(t, case.mask) for t in held)  # the mask is no argument
    assert_same_bits(traced(*other.tensors.values()).values(), run(*other.tensors.values()).values())


# ---- The decoder

VOCABULARY, SOURCE, HIDDEN, MEMORY, STEPS, BATCH = 7, 6, 8, 10, 4, 3
LENGTHS = torch.tensor([6, 2, 0])


def decoder_of(cell: str = "lstm", layers: int = 1, **options: Any) -> AttentionDecoder:
    return AttentionDecoder(VOCABULARY, 5, HIDDEN, MEMORY, layers, cell, **options).double()


def started(decoder: AttentionDecoder, dtype: torch.dtype = torch.float64) -> tuple[Memory, DecoderState]:
    torch.manual_seed(2)
    outputs = torch.randn(SOURCE, BATCH, MEMORY, dtype=dtype)
    layers = decoder.recurrent.num_layers
    final = [torch.randn(layers, BATCH, MEMORY, dtype=dtype) for _ in decoder.bridges]
    return decoder.prepare(outputs, final, LENGTHS)


def target(steps: int = STEPS) -> Tensor:
    return torch.randint(VOCABULARY, (steps, BATCH), generator=torch.Generator().manual_seed(3))


class Watch(TorchDispatchMode):
    """How often each operator was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[op._schema.name] = self.calls.get(op._schema.name, 0) + 1
        return op(*args, **(kwargs or {}))


def trained(decoder: AttentionDecoder, run: Callable[..., Decoded]) -> dict[str, Tensor]:
    """Results and gradients by name."""
    decoder.zero_grad()
    memory, state = started(decoder)
    decoded = run(target(), memory, state)
    results = {"scores": decoded.scores, "weights": decoded.weights}
    results |= {f"state {i}": t for i, t in enumerate(decoded.state.hx)}
    sum(t.sin().sum() for t in results.values()).backward()  # type: ignore[union-attr]
    gradients_of = {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}
    return results | gradients_of


def assert_the_steps(decoder: AttentionDecoder, calls: int, tolerance: float = FLOAT64_DERIVATIVES) -> None:
    """The decoder gives what its steps give, in so many calls of the operator."""
    with Watch() as watch:
        got = trained(decoder, decoder)
    assert watch.calls.get(ATTEND, 0) == calls
    assert watch.calls.get(f"{ATTEND}_backward", 0) == calls
    assert_close(got, trained(decoder, lambda *args: by_steps(decoder, *args)), tolerance)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_decoder_runs_in_one_call(cell: str, training: bool) -> None:
    assert_the_steps(decoder_of(cell).train(training), calls=1)


def test_a_decoder_infers_in_one_call() -> None:
    decoder = decoder_of().eval()
    memory, state = started(decoder)
    with torch.inference_mode(), Watch() as watch:
        got = decoder(target(), memory, state)
    assert watch.calls[ATTEND] == 1
    torch.testing.assert_close(got.scores, by_steps(decoder, target(), memory, state).scores)


def test_layers_over_one_another_run_step_by_step() -> None:
    assert_the_steps(decoder_of(layers=2), calls=0)


def test_scheduled_sampling_runs_step_by_step() -> None:
    decoder = decoder_of()
    memory, state = started(decoder)
    with Watch() as watch:
        got = decoder(target(), memory, state, teacher_forcing=0.0)
    assert ATTEND not in watch.calls
    fed = torch.cat((target()[:1], got.scores.argmax(-1)[:-1]))
    torch.testing.assert_close(got.scores, by_steps(decoder, fed, memory, state).scores)


def test_autocast_runs_step_by_step() -> None:
    decoder = decoder_of().float()
    memory, state = started(decoder, torch.float32)
    with torch.autocast("cpu", torch.bfloat16), Watch() as watch:
        got = decoder(target(), memory, state)
        want = by_steps(decoder, target(), memory, state)
    assert ATTEND not in watch.calls and got.scores.dtype == torch.bfloat16
    assert_same_bits([got.scores, got.weights], [want.scores, want.weights])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_run_step_by_step(dtype: torch.dtype) -> None:
    decoder = decoder_of().to(dtype)
    memory, state = started(decoder, dtype)
    with Watch() as watch:
        got = decoder(target(), memory, state)
    want = by_steps(decoder, target(), memory, state)
    assert ATTEND not in watch.calls
    assert_same_bits([got.scores, got.weights], [want.scores, want.weights])


def of_keys(decoder: AttentionDecoder) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    (memory, state), tokens = started(decoder), target()

    def run(keys: Tensor) -> Tensor:
        return decoder(tokens, memory._replace(keys=keys), state).scores.sin()

    return run, memory.keys.detach()


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]] = {
    "grad": lambda run: func.grad(lambda keys: run(keys).sum()),
    "vmap": lambda run: lambda keys: func.vmap(run)(torch.stack((keys, 2 * keys))),
    "jvp": lambda run: lambda keys: func.jvp(run, (keys,), (torch.ones_like(keys),))[1],
    "functionalize": func.functionalize,
}


def plainly(run: Callable[[Tensor], Tensor], transform: str, keys: Tensor) -> Tensor:
    """What the transform gives, without it."""
    if transform == "vmap":
        return torch.stack((run(keys), run(2 * keys)))
    if transform == "functionalize":
        return run(keys)
    keys = keys.clone().requires_grad_()
    if transform == "grad":
        return torch.autograd.grad(run(keys).sum(), keys)[0]
    outer = torch.zeros_like(run(keys), requires_grad=True)
    (back,) = torch.autograd.grad(run(keys), keys, outer, create_graph=True)
    return torch.autograd.grad(back.sum(), outer)[0]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_under_transforms(transform: str) -> None:
    run, keys = of_keys(decoder_of())
    torch.testing.assert_close(TRANSFORMS[transform](run)(keys), plainly(run, transform, keys))


@pytest.mark.long
@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_under_compiled_transforms(transform: str) -> None:
    torch._dynamo.reset()
    run, keys = of_keys(decoder_of())
    compiled = torch.compile(TRANSFORMS[transform](run), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(keys), plainly(run, transform, keys))


def test_forward_mode() -> None:
    run, keys = of_keys(decoder_of())
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(run(forward_ad.make_dual(keys, torch.ones_like(keys)))).tangent
    torch.testing.assert_close(tangent, plainly(run, "jvp", keys))


@pytest.mark.long
def test_compiled_with_sizes_as_symbols() -> None:
    torch._dynamo.reset()
    decoder = decoder_of()
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (4, 7):
        found = []
        for run in (compiled, decoder):
            decoder.zero_grad()
            memory, state = started(decoder)
            decoded = run(target(steps), memory, state)
            decoded.scores.sin().sum().backward()
            found.append([decoded.scores, decoded.weights, *(p.grad for p in decoder.parameters())])
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_lies_beyond_a_source_reaches_nothing(value: float) -> None:
    decoder = decoder_of()
    found = []
    for beyond in (0.0, value):
        torch.manual_seed(2)
        outputs = torch.randn(SOURCE, BATCH, MEMORY).double()
        outputs[~(torch.arange(SOURCE).unsqueeze(1) < LENGTHS)] = beyond
        final = [torch.randn(1, BATCH, MEMORY).double() for _ in decoder.bridges]
        decoder.zero_grad()
        decoded = decoder(target(), *decoder.prepare(outputs, final, LENGTHS))
        decoded.scores.sin().sum().backward()
        found.append([decoded.scores, decoded.weights, *(p.grad for p in decoder.parameters())])
    assert_same_bits(found[1], found[0])


def test_the_entropy_of_the_weights_can_be_trained() -> None:
    """Its slope is infinite where a weight is zero, as all beyond a source's end are."""
    decoder, found = decoder_of(), []
    for run in (decoder, lambda *args: by_steps(decoder, *args)):
        decoder.zero_grad()
        torch.special.entr(run(target(), *started(decoder)).weights).sum().backward()
        found.append(decoder.attention.query.weight.grad)
    torch.testing.assert_close(found[0], found[1])


# What replaces, wraps or watches a decoder's modules: the steps call them, and so must the whole.


def prune_states(decoder: AttentionDecoder) -> None:
    prune.random_unstructured(decoder.recurrent, "weight_hh_l0", 0.5)
    with torch.no_grad():
        decoder.recurrent.weight_hh_l0_orig.mul_(2)  # as an optimizer's step changes it


def hook_layer(decoder: AttentionDecoder) -> None:
    decoder.recurrent.register_forward_hook(lambda module, args, result: (2 * result[0], result[1]))


def hook_query(decoder: AttentionDecoder) -> None:
    decoder.attention.query.register_forward_hook(lambda module, args, result: 2 * result)


def hook_attention(decoder: AttentionDecoder) -> None:
    decoder.attention.score.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def recompute(decoder: AttentionDecoder) -> None:
    decoder.recurrent.recompute = True


def torchs_layer(decoder: AttentionDecoder) -> None:
    decoder.recurrent = torch.nn.LSTM(5 + MEMORY, HIDDEN).double()


class OfTheFirstKey(AdditiveAttention):
    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        weights = torch.zeros(*query.shape[:-1], memory.keys.size(1), dtype=query.dtype)
        weights[..., 0] = 1
        return memory.values[:, 0], weights


class Sharpened(AdditiveAttention):
    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return 3 * super()._scores(query, keys)


def another_attention(decoder: AttentionDecoder) -> None:
    decoder.attention.__class__ = OfTheFirstKey


def other_scores(decoder: AttentionDecoder) -> None:
    decoder.attention.__class__ = Sharpened


def another_attend(decoder: AttentionDecoder) -> None:
    attend = decoder.attention.attend
    decoder.attention.attend = lambda query, memory: attend(2 * query, memory)


class Doubled(AttentionDecoder):
    def step(self, tokens: Tensor, memory: Memory, state: Any) -> Any:
        decoded = super().step(tokens, memory, state)
        return decoded._replace(scores=2 * decoded.scores)


def another_step(decoder: AttentionDecoder) -> None:
    decoder.__class__ = Doubled


def bias_of_the_query(decoder: AttentionDecoder) -> None:
    decoder.attention.query = torch.nn.Linear(HIDDEN, HIDDEN).double()


@pytest.mark.parametrize(
    "change",
    [
        *(prune_states, hook_layer, hook_query, hook_attention, recompute, torchs_layer, bias_of_the_query),
        *(another_attention, other_scores, another_attend, another_step),
    ],
)
def test_a_decoder_whose_modules_are_not_plain(change: Callable[[AttentionDecoder], None]) -> None:
    decoder = decoder_of()
    change(decoder)
    got = decoder(target(), *started(decoder))
    want = by_steps(decoder, target(), *started(decoder))
    torch.testing.assert_close(got.scores, want.scores)
    torch.testing.assert_close(got.weights, want.weights)


def test_operations_are_counted() -> None:
    """As the steps count them."""
    decoder, counts = decoder_of(), []
    for run in (decoder, lambda *args: by_steps(decoder, *args)):
        memory, state = started(decoder)
        with FlopCounterMode(display=False) as counter:
            run(target(), memory, state)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


# ---- Memory


def test_nothing_but_results_is_kept() -> None:
    case = Case.drawn("lstm")
    given = [weakref.ref(t) for t in case.tensors.values()]
    results = case.run()
    node = weakref.ref(results["output"])
    sum(t.sum() for t in results.values()).backward()  # type: ignore[union-attr]
    del results, case
    gc.collect()
    assert node() is None
    assert all(ref() is None for ref in given)


def test_training_takes_no_new_memory() -> None:
    rnnfused.empty_cache()
    case = Case.drawn("lstm", Sizes(T=64, B=32, H=128), dtype=torch.float32)
    kept = []
    for _ in range(4):
        sum(t.sum() for t in case.run().values()).backward()  # type: ignore[union-attr]
        kept.append(_C.kept_bytes())
    rnnfused.empty_cache()
    assert kept[0] > 0 and kept[1:] == kept[:-1]
