"""torch.func and batches of gradients: derivatives and maps of every layer, nested in one another, against
the layer in torch operations or a loop, in float64.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from operator_cases import Case, one_of_each
from tolerances import FLOAT64, FLOAT64_DERIVATIVES
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.autograd import functional as autograd_functional
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rnnfused

Function = Callable[..., Any]
EACH = pytest.mark.parametrize("case", one_of_each(), ids=str)
SMALL = pytest.mark.parametrize("case", one_of_each(steps=2)[::2], ids=str)
FEW = pytest.mark.parametrize("case", one_of_each(steps=2)[::5], ids=str)
MAPPED = 3  # how many a map runs over


def assert_close(got: Any, want: Any, tolerance: float = FLOAT64) -> None:
    """Relative to the largest value of each: relu's sums of squares grow without bound."""
    for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        assert float((a - b).detach().abs().max() if a.numel() else 0) <= tolerance * scale


class Problem:
    """A case with its arguments, tangents and outer gradients: the same for `run` and `twin`."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.leaves = tuple(case.leaves())
        self.tangents = tuple(torch.randn_like(t) for t in self.leaves)
        self.outer = case.outer()
        self.all = tuple(range(len(self.leaves)))
        self.data = self.all[: 1 + case.states]
        self.weights = self.all[1 + case.states :]

    def value(self, run: Function, *leaves: Tensor) -> Tensor:
        """A number that depends on all outputs, and not linearly."""
        return sum((y * g).sin().sum() for y, g in zip(run(*leaves), self.outer, strict=True))  # type: ignore

    def of_input(self, run: Function) -> Function:
        return lambda x: self.value(run, x, *self.leaves[1:])

    def gradients(self, run: Function) -> Function:
        return func.grad(partial(self.value, run), self.all)

    def check(self, make: Callable[[Function], Any], tolerance: float = FLOAT64) -> None:
        assert_close(make(self.case.run), make(self.case.twin), tolerance)


# ---- Derivatives


@pytest.mark.long
@EACH
def test_first_derivatives(case: Case) -> None:
    p = Problem(case)
    p.check(lambda run: p.gradients(run)(*p.leaves))
    p.check(lambda run: func.vjp(run, *p.leaves)[1](tuple(p.outer)))
    p.check(lambda run: func.jvp(run, p.leaves, p.tangents))
    if not case.concatenated:  # whose twin asks for numbers that a trace does not have
        p.check(lambda run: func.linearize(run, *p.leaves)[1](*p.tangents))


@EACH
def test_jacobians(case: Case) -> None:
    p = Problem(case)
    p.check(lambda run: func.jacrev(run, p.all)(*p.leaves))
    p.check(lambda run: func.jacfwd(run, p.all)(*p.leaves))
    p.check(lambda run: func.jacrev(run, p.all, chunk_size=2)(*p.leaves))


@EACH
def test_each_tangent_alone(case: Case) -> None:
    p = Problem(case)
    for index in p.all:

        def along_one(run: Function, index: int = index) -> Any:
            def of_one(t: Tensor) -> Any:
                return run(*(t if i == index else u for i, u in enumerate(p.leaves)))

            return func.jvp(of_one, (p.leaves[index],), (p.tangents[index],))

        p.check(along_one)


@pytest.mark.long
@SMALL
def test_hessians(case: Case) -> None:
    p = Problem(case)
    p.check(lambda run: func.hessian(partial(p.value, run), p.all)(*p.leaves))
    for outer in (func.jacrev, func.jacfwd):
        for inner in (func.jacrev, func.jacfwd):
            p.check(
                lambda run, outer=outer, inner=inner: outer(inner(partial(p.value, run), (0, 1)), (1,))(
                    *p.leaves
                )
            )


@SMALL
def test_derivatives_of_derivatives(case: Case) -> None:
    p = Problem(case)

    def along(run: Function, *leaves: Tensor) -> Any:
        return func.jvp(run, leaves, p.tangents)[1]

    def size_along(run: Function, *leaves: Tensor) -> Tensor:
        return sum(t.sin().sum() for t in along(run, *leaves))  # type: ignore[return-value]

    p.check(lambda run: func.jvp(p.gradients(run), p.leaves, p.tangents))
    p.check(lambda run: func.grad(partial(size_along, run), p.all)(*p.leaves))
    p.check(lambda run: func.jvp(partial(along, run), p.leaves, p.tangents))


@pytest.mark.long
@FEW
def test_third_derivatives(case: Case) -> None:
    p = Problem(case)
    x, v = p.leaves[0], p.tangents[0]

    def slope(f: Function) -> Function:
        """Of a number: one that depends on the gradient, and not linearly."""
        return lambda t: func.grad(f)(t).sin().sum()

    def rate(f: Function) -> Function:
        return lambda t: func.jvp(f, (t,), (v,))[1].sin().sum()

    for third in (slope, rate):
        for second in (slope, rate):
            for first in (slope, rate):
                p.check(
                    lambda run, a=third, b=second, c=first: a(b(c(p.of_input(run))))(x), FLOAT64_DERIVATIVES
                )


@SMALL
@pytest.mark.parametrize("create_graph", [False, True])
def test_forward_mode_through_backward(case: Case, create_graph: bool) -> None:
    p = Problem(case)

    def tangents(run: Function) -> list[Tensor]:
        with forward_ad.dual_level():
            pairs = zip(p.leaves, p.tangents, strict=True)
            own = [forward_ad.make_dual(t.clone().requires_grad_(), v) for t, v in pairs]
            gradients = torch.autograd.grad(p.value(run, *own), own, create_graph=create_graph)
            return [forward_ad.unpack_dual(g).tangent.detach() for g in gradients]

    p.check(tangents)


@SMALL
def test_backward_through_forward_mode(case: Case) -> None:
    p = Problem(case)

    def gradients(run: Function) -> Any:
        own = [t.clone().requires_grad_() for t in (*p.leaves, *p.tangents)]
        with forward_ad.dual_level():
            count = len(p.leaves)
            duals = [forward_ad.make_dual(t, v) for t, v in zip(own[:count], own[count:], strict=True)]
            outputs = [forward_ad.unpack_dual(y) for y in run(*duals)]
            total = sum((y.primal.sin() * y.tangent.cos()).sum() for y in outputs)
            return torch.autograd.grad(total, own)

    p.check(gradients)


# ---- Batches of outer gradients, for which torch has maps of their own


def outer_gradients(tensors: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(MAPPED, *t.shape, dtype=t.dtype, generator=generator) for t in tensors]


@EACH
def test_batches_of_outer_gradients(case: Case) -> None:
    p = Problem(case)

    def gradients(run: Function) -> Any:
        own = [t.clone().requires_grad_() for t in p.leaves]
        outputs = run(*own)
        return torch.autograd.grad(outputs, own, outer_gradients(outputs), is_grads_batched=True)

    p.check(gradients)


@SMALL
def test_batches_of_outer_gradients_of_gradients(case: Case) -> None:
    p = Problem(case)

    def gradients(run: Function) -> Any:
        own = [t.clone().requires_grad_() for t in p.leaves]
        first = torch.autograd.grad(p.value(run, *own), own, create_graph=True)
        return torch.autograd.grad(first, own, outer_gradients(first), is_grads_batched=True)

    p.check(gradients)


@SMALL
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_jacobians_of_autograd(case: Case, strategy: str) -> None:
    p = Problem(case)
    options = {"vectorize": True, "strategy": strategy}
    p.check(lambda run: autograd_functional.jacobian(run, p.leaves, **options))


@FEW
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_hessians_of_autograd(case: Case, strategy: str) -> None:
    p = Problem(case)
    options = {"vectorize": True, "outer_jacobian_strategy": strategy}
    p.check(lambda run: autograd_functional.hessian(partial(p.value, run), p.leaves, **options))


@FEW
def test_jacobians_of_autograd_are_differentiated(case: Case) -> None:
    p = Problem(case)

    def gradients(run: Function) -> Any:
        own = [t.clone().requires_grad_() for t in p.leaves]
        jacobian = autograd_functional.jacobian(
            lambda x: run(x, *own[1:])[0], own[0], vectorize=True, create_graph=True
        )
        return torch.autograd.grad(jacobian.sin().sum(), own)

    p.check(gradients)


# ---- Maps


def slices(dims: Sequence[int | None], arguments: Sequence[Tensor], size: int = MAPPED) -> list[list[Tensor]]:
    return [
        [t if d is None else t.select(d, v) for t, d in zip(arguments, dims, strict=True)]
        for v in range(size)
    ]


def in_a_loop(f: Function, dims: Sequence[int | None], arguments: Sequence[Tensor]) -> list[Tensor]:
    """What func.vmap gives, from one call after the other."""
    results = [tree_leaves(f(*own)) for own in slices(dims, arguments)]
    return [torch.stack(list(tensors)) for tensors in zip(*results, strict=True)]


def mapped(p: Problem, which: str) -> tuple[list[int | None], list[Tensor]]:
    """Dimensions, none of them like another, that are mapped over, and the arguments that have them."""
    pick = random.Random(f"{p.case}{which}")
    candidates = {"all": p.all, "data": p.data, "input": (0,), "hx": p.data[1:], "weights": p.weights}[which]
    dims: list[int | None] = [None] * len(p.leaves)
    for index in candidates:
        if index == candidates[0] or pick.random() < 0.7:
            dims[index] = pick.randrange(p.leaves[index].dim() + 1)
    arguments = [
        t if d is None else torch.stack([t + v * torch.randn_like(t) / 4 for v in range(MAPPED)], d)
        for t, d in zip(p.leaves, dims, strict=True)
    ]
    return dims, arguments


WHICH = pytest.mark.parametrize("which", ["all", "data", "input", "hx", "weights"])


@WHICH
@EACH
def test_maps(case: Case, which: str) -> None:
    p = Problem(case)
    dims, arguments = mapped(p, which)
    want = in_a_loop(case.twin, dims, arguments)
    for out in (0, 1, -1):
        found = func.vmap(case.run, tuple(dims), out)(*arguments)
        assert_close([t.movedim(out, 0) for t in found], want)


@WHICH
@EACH
def test_per_sample_gradients(case: Case, which: str) -> None:
    p = Problem(case)
    dims, arguments = mapped(p, which)
    found = func.vmap(p.gradients(case.run), tuple(dims))(*arguments)
    assert_close(found, in_a_loop(p.gradients(case.twin), dims, arguments))


@pytest.mark.long
@WHICH
@SMALL
def test_maps_of_second_derivatives(case: Case, which: str) -> None:
    p = Problem(case)
    dims, arguments = mapped(p, which)

    def products(run: Function, *leaves: Tensor) -> Any:
        return func.jvp(p.gradients(run), leaves, p.tangents)[1]

    def along(run: Function, *leaves: Tensor) -> Any:
        return func.jvp(run, leaves, p.tangents)[1]

    for f in (products, along):
        found = func.vmap(partial(f, case.run), tuple(dims))(*arguments)
        assert_close(found, in_a_loop(partial(f, case.twin), dims, arguments))


@WHICH
@SMALL
def test_backward_twice_through_a_map(case: Case, which: str) -> None:
    p = Problem(case)
    dims, arguments = mapped(p, which)

    def derivatives(run: Callable[[list[Tensor]], Any]) -> Any:
        own = [t.clone().requires_grad_() for t in arguments]
        total = sum(t.sin().sum() for t in run(own))
        first = torch.autograd.grad(total, own, create_graph=True)
        return first, torch.autograd.grad(sum(t.sin().sum() for t in first), own)

    assert_close(
        derivatives(lambda own: func.vmap(case.run, tuple(dims))(*own)),
        derivatives(lambda own: in_a_loop(case.twin, dims, own)),
    )


@SMALL
def test_per_sample_gradients_are_differentiated(case: Case) -> None:
    p = Problem(case)
    dims, arguments = mapped(p, "input")

    def total(each: Function, *leaves: Tensor) -> Tensor:
        return sum(t.sin().sum() for t in each(*leaves))  # type: ignore[return-value]

    def ours(*leaves: Tensor) -> Any:
        return func.vmap(p.gradients(case.run), tuple(dims))(*leaves)

    def loop(*leaves: Tensor) -> Any:
        return in_a_loop(p.gradients(case.twin), dims, leaves)

    assert_close(
        func.grad(partial(total, ours), p.all)(*arguments), func.grad(partial(total, loop), p.all)(*arguments)
    )
    tangents = tuple(torch.randn_like(t) for t in arguments)
    assert_close(func.jvp(ours, tuple(arguments), tangents), func.jvp(loop, tuple(arguments), tangents))


@pytest.mark.parametrize("outer, inner", [("data", "data"), ("weights", "input"), ("input", "weights")])
@SMALL
def test_maps_in_maps(case: Case, outer: str, inner: str) -> None:
    p = Problem(case)
    inner_dims, _ = mapped(p, inner)
    outer_dims, _ = mapped(p, outer)
    arguments = []
    for t, i, o in zip(p.leaves, inner_dims, outer_dims, strict=True):
        for dim in (i, o):
            t = (
                t
                if dim is None
                else torch.stack([t + v * torch.randn_like(t) / 4 for v in range(MAPPED)], dim)
            )
        arguments.append(t)
    for f in (lambda run: run, p.gradients):
        found = func.vmap(func.vmap(f(case.run), tuple(inner_dims)), tuple(outer_dims))(*arguments)
        loop = partial(in_a_loop, f(case.twin), inner_dims)
        assert_close(found, in_a_loop(lambda *own, loop=loop: loop(own), outer_dims, arguments))


class CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "rnnfused":
            self.seen.append(function._opname)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["padded", "batch_first", "unbatched", "packed", "step"])
def test_a_map_over_data_is_one_call(layout: str) -> None:
    p = Problem(Case("lstm", layout=layout))
    dims, arguments = mapped(p, "data")
    with CountOps() as mode:
        func.vmap(p.case.run, tuple(dims))(*arguments)
    assert mode.seen == ["recurrent"]
    with CountOps() as mode:
        func.vmap(p.gradients(p.case.run), tuple(dims))(*arguments)
    assert mode.seen == ["recurrent", "recurrent_backward", "recurrent_gate_gradients"]


def test_a_map_over_nothing() -> None:
    """torch's own layers take it."""
    module = rnnfused.GRU(3, 4)
    weights = {name: w.detach() for name, w in module.named_parameters()}

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return func.functional_call(module, weights, (x,))[0].sin().sum()

    none = {name: torch.zeros(0, *w.shape) for name, w in weights.items()}
    for dims, given in (
        ((None, 0), (weights, torch.zeros(0, 5, 2, 3))),
        ((0, None), (none, torch.zeros(5, 2, 3))),
    ):
        assert func.vmap(run, dims)(*given).shape == (0,)
        of_weights, of_input = func.vmap(func.grad(run, (0, 1)), dims)(*given)
        assert of_input.shape == (0, 5, 2, 3)
        assert {name: w.shape[1:] for name, w in of_weights.items()} == {
            n: w.shape for n, w in weights.items()
        }


def test_a_map_over_an_empty_batch() -> None:
    module = rnnfused.LSTM(3, 4)
    assert func.vmap(lambda t: module(t)[0])(torch.zeros(3, 5, 0, 3)).shape == (3, 5, 0, 4)


# ---- Modules

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {"nonlinearity": "relu"}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 2, "batch_first": True}),
    ("GRU", {"num_layers": 2, "bias": False}),
    ("LSTMCell", {}),
    ("GRUCell", {}),
]
MODULES = pytest.mark.parametrize("kind, options", KINDS)


def module_and_input(kind: str, options: dict[str, Any]) -> tuple[Any, Tensor]:
    module = getattr(rnnfused, kind)(3, 4, dtype=torch.float64, **options)
    return module, torch.randn(*((2,) if kind.endswith("Cell") else (3, 2)), 3, dtype=torch.float64)


@MODULES
def test_functional_call(kind: str, options: dict[str, Any]) -> None:
    module, x = module_and_input(kind, options)
    weights = dict(module.named_parameters())

    def value(weights: dict[str, Tensor]) -> Tensor:
        return tree_leaves(func.functional_call(module, weights, (x,)))[0].square().sum()

    found = func.grad(value)({name: w.detach() for name, w in weights.items()})
    tree_leaves(module(x))[0].square().sum().backward()
    assert_close(found, {name: w.grad for name, w in weights.items()})


@MODULES
def test_ensembles(kind: str, options: dict[str, Any]) -> None:
    x = module_and_input(kind, options)[1]
    models = [module_and_input(kind, options)[0] for _ in range(MAPPED)]
    weights, buffers = func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def run(weights: Any, buffers: Any, x: Tensor) -> Tensor:
        return tree_leaves(func.functional_call(base, (weights, buffers), (x,)))[0]

    found = func.vmap(run, (0, 0, None))(weights, buffers, x)
    want = torch.stack([tree_leaves(m(x))[0] for m in models])
    assert_close(found, want)
    xs = torch.randn(MAPPED, *x.shape, dtype=x.dtype)
    each = func.vmap(run)(weights, buffers, xs)
    assert_close(each, torch.stack([tree_leaves(m(t))[0] for m, t in zip(models, xs, strict=True)]))
    gradients = torch.autograd.grad(found.sin().sum(), list(weights.values()))
    want.sin().sum().backward()
    own = [torch.stack([dict(m.named_parameters())[name].grad for m in models]) for name in weights]
    assert_close(list(gradients), own)

    def value(weights: Any, buffers: Any, x: Tensor) -> Tensor:
        return run(weights, buffers, x).sin().sum()

    detached = {name: w.detach() for name, w in weights.items()}
    assert_close(
        func.vmap(func.grad(value), (0, 0, None))(detached, buffers, x), dict(zip(weights, own, strict=True))
    )


@MODULES
def test_per_sample_gradients_of_modules(kind: str, options: dict[str, Any]) -> None:
    """Each sample a batch of one, or without a batch, states left out."""
    module, _ = module_and_input(kind, options)
    weights = {name: w.detach() for name, w in module.named_parameters()}
    steps = () if kind.endswith("Cell") else (3,)
    samples = torch.randn(5, *steps, 3, dtype=torch.float64)

    def value(weights: Any, x: Tensor) -> Tensor:
        return tree_leaves(func.functional_call(module, weights, (x,)))[0].square().sum()

    want = [func.grad(value)(weights, x) for x in samples]
    stacked = {name: torch.stack([w[name] for w in want]) for name in weights}
    assert_close(func.vmap(func.grad(value), (None, 0))(weights, samples), stacked)
    middle = 0 if kind.endswith("Cell") or options.get("batch_first") else 1
    batches = samples.unsqueeze(1 + middle)
    assert_close(func.vmap(func.grad(value), (None, 0))(weights, batches), stacked)


def test_packed_sequences() -> None:
    module = rnnfused.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
    sizes = torch.tensor([3, 2, 2, 1])
    data = torch.randn(MAPPED, 8, 3, dtype=torch.float64)

    def run(t: Tensor) -> Tensor:
        y, (h, c) = module(PackedSequence(t, sizes))
        return y.data.sin().sum() + h.sum() + c.cos().sum()

    assert_close(func.vmap(run)(data), torch.stack([run(t) for t in data]))
    found = func.vmap(func.grad(run))(data)
    assert_close(found, torch.stack([func.grad(run)(t) for t in data]))
    own = data.clone().requires_grad_()
    sum(run(t) for t in own).backward()  # type: ignore[union-attr]
    assert_close(found, own.grad)
    assert_close(func.hessian(run)(data[0]), func.jacrev(func.jacrev(run))(data[0]))


def test_dropout_in_a_map() -> None:
    module, x = rnnfused.GRU(3, 4, 2, dropout=0.5), torch.randn(MAPPED, 5, 2, 3)

    def run(t: Tensor) -> Tensor:
        return module(t)[0]

    with pytest.raises(RuntimeError, match="randomness"):
        func.vmap(run)(x)
    same = func.vmap(run, randomness="same")(x[:1].expand_as(x))
    assert torch.equal(same[0], same[1])
    different = func.vmap(run, randomness="different")(x[:1].expand_as(x))
    assert not torch.equal(different[0], different[1])
    module.eval()
    torch.testing.assert_close(func.vmap(run)(x), torch.stack([run(t) for t in x]))


def test_gradients_of_some_weights() -> None:
    """The others are closed over."""
    p = Problem(Case("gru"))
    index = p.weights[1]

    def of_one(run: Function) -> Function:
        return lambda w: p.value(run, *(w if i == index else t for i, t in enumerate(p.leaves)))

    p.check(lambda run: func.grad(of_one(run))(p.leaves[index]))
    p.check(lambda run: func.hessian(of_one(run))(p.leaves[index]))


def test_levels_do_not_mix() -> None:
    """d/dx of x * d/dy f(x + y): each level has its own gradients."""
    p = Problem(Case("lstm", steps=2))
    x = p.leaves[0]

    def mixed(run: Function) -> Function:
        f = p.of_input(run)
        return func.grad(lambda t: (t * func.grad(lambda u: f(t + u))(t * 2)).sum())

    p.check(lambda run: mixed(run)(x))
    p.check(lambda run: func.jvp(mixed(run), (x,), (p.tangents[0],)))


def test_a_tensor_that_requires_a_gradient_in_a_transform() -> None:
    """What a transform closes over is differentiated by autograd outside of it."""
    p = Problem(Case("gru"))

    def gradients(run: Function) -> Any:
        own = [t.clone().requires_grad_() for t in p.leaves]
        inner = func.grad(lambda x: p.value(run, x, *own[1:]))(own[0])
        return torch.autograd.grad(inner.sin().sum(), own)

    p.check(gradients)


@pytest.mark.parametrize("seed", range(60))
def test_any_part_of_it(seed: int) -> None:
    """Some inputs require gradients, some have tangents, some outputs are used, some outer gradients are
    differentiated: three times backward, and forward through backward.
    """
    pick = random.Random(seed)
    p = Problem(pick.choice(one_of_each()))

    def some(count: int, share: float) -> list[bool]:
        chosen = [pick.random() < share for _ in range(count)]
        chosen[pick.randrange(count)] = True
        return chosen

    required, moved = some(len(p.leaves), 0.5), some(len(p.leaves), 0.4)
    used, differentiated = some(len(p.outer), 0.6), some(len(p.outer), 0.5)

    def total(tensors: Sequence[Tensor | None]) -> Tensor | None:
        parts = [t for t in tensors if t is not None and t.requires_grad]
        return sum((t.sin() * t.numel()).sum() for t in parts) if parts else None  # type: ignore[return-value]

    def backward(run: Function, leaves: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
        outer = [t.clone().requires_grad_(d) for t, d in zip(p.outer, differentiated, strict=True)]
        pairs = [(y, g) for y, g, u in zip(run(*leaves), outer, used, strict=True) if u]
        targets = [t for t, r in zip(leaves, required, strict=True) if r]
        outputs, grads = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, targets, grads, create_graph=True, allow_unused=True)
        return found, targets + [g for g, d in zip(outer, differentiated, strict=True) if d]

    def filled(found: Sequence[Tensor | None], likes: Sequence[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(x) if t is None else t for t, x in zip(found, likes, strict=True)]

    def thrice(run: Function) -> list[Tensor]:
        leaves = [t.clone().requires_grad_(r) for t, r in zip(p.leaves, required, strict=True)]
        found, targets = backward(run, leaves)
        results = filled(found, [t for t in leaves if t.requires_grad])
        for _ in range(2):
            value = total(found)
            if value is None:
                break
            found = torch.autograd.grad(value, targets, create_graph=True, allow_unused=True)
            results += filled(found, targets)
        return results

    def forward(run: Function) -> list[Tensor]:
        with forward_ad.dual_level():
            leaves = [t.clone().requires_grad_(r) for t, r in zip(p.leaves, required, strict=True)]
            duals = [
                forward_ad.make_dual(t, v) if m else t
                for t, v, m in zip(leaves, p.tangents, moved, strict=True)
            ]
            found, _ = backward(run, duals)
            likes = [t for t, r in zip(leaves, required, strict=True) if r]
            pairs = [forward_ad.unpack_dual(t) for t in filled(found, likes)]
            return filled([t.tangent for t in pairs], likes)

    p.check(thrice, FLOAT64_DERIVATIVES)
    p.check(forward, FLOAT64_DERIVATIVES)
