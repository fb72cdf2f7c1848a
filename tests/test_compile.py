"""Layers under torch.compile: one graph without a break, as large for long sequences as for short ones, and
the results of eager calls, whatever is asked of it. tests/test_compiler.py has what Dynamo is told.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from results import tensors
from tolerances import COMPILED, FLOAT64
from torch import Tensor, func
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves

import rnnfused

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

BACKENDS = pytest.mark.parametrize("backend", ["eager", "aot_eager"])
LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu", "bias": False}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {"batch_first": True}),
    ("LSTM", {"num_layers": 3}),
    ("LSTM", {"proj_size": 2, "batch_first": True, "bidirectional": True}),
    ("LSTM", {"recompute": True}),
]
CELLS = ("RNNCell", "LSTMCell", "GRUCell")


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def make(kind: str, **options: Any) -> Any:
    return getattr(rnnfused, kind)(3, 4, dtype=torch.float64, **options)


def draw(*sizes: int) -> Tensor:
    return torch.randn(sizes, dtype=torch.float64)


def outcome(module: Any, call: Callable[[Any], Any], leaves: list[Tensor]) -> list[Tensor]:
    """Outputs, and the gradients of leaves and parameters."""
    outputs = [t for t in tree_leaves(call(module)) if isinstance(t, Tensor) and t.is_floating_point()]
    targets = [*leaves, *(p for p in module.parameters() if p.requires_grad)]
    total = sum(t.sin().sum() for t in outputs)
    return [*outputs, *torch.autograd.grad(total, targets, allow_unused=True)]


def assert_close(got: Any, want: Any, tolerance: float = 0.0) -> None:
    for a, b in zip(got, want, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def check(
    module: Any, call: Callable[[Any], Any], backend: Any, leaves: list[Tensor], **options: Any
) -> None:
    """That training compiles into one graph, and gives what eager calls give: to the bit where no compiler
    fuses what is beside the layers.
    """
    compiled = torch.compile(module, fullgraph=True, backend=backend, **options)
    assert_close(outcome(compiled, call, leaves), outcome(module, call, leaves), tolerance_of(backend))


def tolerance_of(backend: Any) -> float:
    return COMPILED if backend == "inductor" else 0.0


# ---- Layers and cells


@BACKENDS
@pytest.mark.parametrize("kind, options", LAYERS)
def test_layers(kind: str, options: dict[str, Any], backend: str) -> None:
    module, x = make(kind, **options), draw(5, 2, 3).requires_grad_()
    check(module, lambda m: m(x), backend, [x])
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend=backend)
        assert_close(tensors(compiled(x)), tensors(module(x)))


@BACKENDS
@pytest.mark.parametrize("kind, options", LAYERS[2:6])
def test_layers_with_given_states(kind: str, options: dict[str, Any], backend: str) -> None:
    module, x = make(kind, **options), draw(5, 2, 3).requires_grad_()
    batch = 5 if options.get("batch_first") else 2
    parts = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    states = [draw(parts, batch, options.get("proj_size", 4)).requires_grad_()]
    if kind == "LSTM":
        states.append(draw(parts, batch, 4).requires_grad_())
    hx = tuple(states) if kind == "LSTM" else states[0]
    check(module, lambda m: m(x, hx), backend, [x, *states])


@BACKENDS
def test_layers_without_a_batch(backend: str) -> None:
    module, x = make("LSTM", batch_first=True), draw(5, 3).requires_grad_()
    check(module, lambda m: m(x), backend, [x])


@BACKENDS
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, backend: str) -> None:
    module, x = make(kind), draw(2, 3).requires_grad_()
    check(module, lambda m: m(x), backend, [x])
    states = [draw(2, 4).requires_grad_() for _ in range(1 + (kind == "LSTMCell"))]
    hx = tuple(states) if kind == "LSTMCell" else states[0]
    check(module, lambda m: m(x, hx), backend, [x, *states])
    alone = draw(3)
    check(module, lambda m: m(alone), backend, [])


class Loop(torch.nn.Module):
    """A decoder: cell after cell, each step fed with the one before."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = getattr(rnnfused, kind)(4, 4, dtype=torch.float64)
        self.out = torch.nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        state: Any = None
        found = []
        for _ in range(steps):
            state = self.cell(x, state)
            x = self.out(state[0] if isinstance(state, tuple) else state)
            found.append(x)
        return torch.stack(found)


@pytest.mark.parametrize("kind, backend", [(k, b) for k in CELLS for b in ("eager", "aot_eager")])
def test_cells_in_a_loop(kind: str, backend: str) -> None:
    module, x = Loop(kind), draw(2, 4).requires_grad_()
    check(module, lambda m: m(x, 4), backend, [x])


@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_inductor(kind: str) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = torch.nn.Linear(3, 3, dtype=torch.float64)
            self.layer = make(kind)
            self.out = torch.nn.Linear(4, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(tensors(self.layer(self.before(x).relu()))[0].tanh()).softmax(-1)

    module, x = Model(), draw(*((2,) if kind.endswith("Cell") else (5, 2)), 3).requires_grad_()
    check(module, lambda m: m(x), "inductor", [x])


def test_inductor_with_sizes_as_symbols() -> None:
    module = make("GRU", batch_first=True)
    compiled = torch.compile(module, fullgraph=True, backend="inductor", dynamic=True)
    for sizes in ((2, 5), (4, 7)):
        x = draw(*sizes, 3).requires_grad_()
        want = outcome(module, lambda m, x=x: m(x), [x])
        assert_close(outcome(compiled, lambda m, x=x: m(x), [x]), want, COMPILED)


# ---- Packed sequences


class Packed(torch.nn.Module):
    """What is packed outside of the graph comes into it as tensors."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, data: Tensor, batch_sizes: Tensor, hx: Any = None) -> Any:
        y, states = self.layer(PackedSequence(data, batch_sizes), hx)
        return y.data, states


@pytest.mark.long
@BACKENDS
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_packed_sequences(kind: str, backend: str) -> None:
    layer = make(kind, bidirectional=True, num_layers=2)
    packed = pack_padded_sequence(draw(5, 3, 3), torch.tensor([2, 5, 3]), enforce_sorted=False)
    check(layer, lambda m: m(packed), backend, [])
    data = packed.data.detach().requires_grad_()
    check(Packed(layer), lambda m: m(data, packed.batch_sizes), backend, [data])
    states = [draw(4, 3, 4).requires_grad_() for _ in range(1 + (kind == "LSTM"))]
    hx = tuple(states) if kind == "LSTM" else states[0]
    check(Packed(layer), lambda m: m(data, packed.batch_sizes, hx), backend, [data, *states])


def test_packed_sequences_of_other_lengths() -> None:
    """The graph of one is that of another: lengths are data."""
    module, counter = Packed(make("GRU")), CompileCounter()
    compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for lengths in ([5, 3, 2], [4, 4, 1, 1], [7, 2]):
        packed = pack_padded_sequence(draw(lengths[0], len(lengths), 3), torch.tensor(lengths))
        states = draw(1, len(lengths), 4)
        want = module(packed.data, packed.batch_sizes, states)
        assert_close(tree_leaves(compiled(packed.data, packed.batch_sizes, states)), tree_leaves(want))
    assert counter.frame_count <= 2


# ---- Lengths, resets, rows one after the other


@pytest.mark.long
@BACKENDS
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_lengths_and_resets(kind: str, backend: str) -> None:
    options = {"return_cells": True} if kind == "LSTM" else {}
    layer = make(
        kind, bidirectional=True, num_layers=2, batch_first=True, learn_initial_state=True, **options
    )
    x = draw(3, 5, 3).requires_grad_()
    lengths, resets = torch.tensor([2, 5, 0]), torch.rand(3, 5) < 0.3
    check(layer, lambda m: m(x, lengths=lengths, resets=resets), backend, [x])
    check(layer, lambda m: m(x, lengths=[2, 5, 0]), backend, [x])
    rows, ends = draw(7, 3).requires_grad_(), torch.tensor([0, 2, 7, 7])
    check(layer, lambda m: m(rows, cu_seqlens=ends), backend, [rows])


def test_lengths_of_any_batch() -> None:
    """The graph of one is that of another: lengths and resets are data, T and B symbols."""
    module, counter = make("LSTM", num_layers=2), CompileCounter()
    compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for steps, lengths in ((5, [5, 3, 2]), (6, [1, 0, 6, 4]), (9, [9, 9])):
        x, resets = draw(steps, len(lengths), 3), torch.rand(steps, len(lengths)) < 0.3
        where = {"lengths": torch.tensor(lengths), "resets": resets}
        assert_close(tree_leaves(compiled(x, **where)), tree_leaves(module(x, **where)))
    assert counter.frame_count <= 2


def test_nested_tensors() -> None:
    layer = make("GRU")
    rows, ends = draw(7, 3), torch.tensor([0, 2, 7, 7])
    nested = torch.nested.nested_tensor_from_jagged(rows, ends)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got, want = compiled(nested), layer(nested)
    assert_close([got[0].values(), got[1]], [want[0].values(), want[1]])


# ---- Graphs, and how many


@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_a_second_call_compiles_nothing(kind: str) -> None:
    """Of a module that has never been called."""
    module, counter = make(kind), CompileCounter()
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    x = draw(*((2,) if kind.endswith("Cell") else (5, 2)), 3)
    for _ in range(3):
        compiled(x)
    module(x)
    compiled(x)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("given", [False, True])
def test_two_frames_for_any_steps_and_batches(given: bool, dynamic: bool | None, backend: str) -> None:
    module = make("LSTM", num_layers=2)
    frames: list[int] = []

    def count(graph: Any, examples: Any) -> Any:
        frames.append(1)
        return torch._dynamo.lookup_backend(backend)(graph, examples)

    compiled = torch.compile(module, fullgraph=True, backend=count, dynamic=dynamic)
    # The first sizes are no others of the layer: what is equal at first is taken to stay so.
    for t, b in ((8, 5), (5, 3), (7, 4), (9, 2), (12, 6), (3, 5), (30, 7)):
        x, hx = draw(t, b, 3).requires_grad_(), (draw(2, b, 4), draw(2, b, 4)) if given else None
        want = outcome(module, lambda m, x=x, h=hx: m(x, h), [x])
        assert_close(outcome(compiled, lambda m, x=x, h=hx: m(x, h), [x]), want)
    assert len(frames) <= 2


def test_a_graph_is_as_large_for_any_number_of_steps() -> None:
    nodes = []

    def look(graph: torch.fx.GraphModule, examples: Any) -> Any:
        nodes.append([n.name for n in graph.graph.nodes])
        return graph

    for steps in (2, 300):
        torch._dynamo.reset()
        module = rnnfused.LSTM(3, 4, 2, bidirectional=True)
        torch.compile(module, fullgraph=True, backend=look, dynamic=False)(torch.zeros(steps, 2, 3))
    assert len(nodes) == 2 and len(nodes[0]) == len(nodes[1]) and len(nodes[0]) < 50


def test_the_graph_holds_the_operator() -> None:
    calls = []

    def look(graph: torch.fx.GraphModule, examples: Any) -> Any:
        calls.extend(n.target for n in graph.graph.nodes if n.op == "call_function")
        return graph

    torch.compile(make("GRU"), fullgraph=True, backend=look)(draw(5, 2, 3))
    assert [c for c in calls if "rnnfused" in str(c)] == [torch.ops.rnnfused.recurrent]


# ---- What changes after compilation


@pytest.mark.long
@BACKENDS
def test_options_that_change(backend: str) -> None:
    module, x = make("LSTM", num_layers=2), draw(5, 2, 3)
    compiled = torch.compile(module, fullgraph=True, backend=backend)

    def same() -> None:
        torch.manual_seed(5)
        want = tensors(module(x))
        torch.manual_seed(5)
        assert_close(tensors(compiled(x)), want)

    same()
    module.batch_first = True
    same()
    module.dropout = 0.5
    same()
    module.eval()
    same()
    module.train()
    same()
    module.recompute = True
    same()
    module.batch_first = False
    same()
    module.requires_grad_(False)
    same()
    module.weight_hh_l1 = torch.nn.Parameter(module.weight_hh_l1 * 2)
    same()
    with torch.no_grad():
        module.weight_ih_l0.mul_(3)
    same()


@BACKENDS
def test_dropout(backend: str) -> None:
    module, x = make("GRU", num_layers=3, dropout=0.5, bidirectional=True), draw(5, 2, 3)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    torch.manual_seed(1)
    want = outcome(module, lambda m: m(x), [])
    torch.manual_seed(1)
    assert_close(outcome(compiled, lambda m: m(x), []), want)
    torch.manual_seed(2)
    assert not torch.equal(compiled(x)[0], want[0])


@BACKENDS
def test_converted_models(backend: str) -> None:
    model = torch.nn.ModuleDict(
        {"rnn": torch.nn.GRU(3, 4, dtype=torch.float64), "cell": torch.nn.LSTMCell(4, 4, dtype=torch.float64)}
    )

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: Tensor) -> Tensor:
            return self.layers["cell"](self.layers["rnn"](x)[0][-1])[0]

    x = draw(5, 2, 3).requires_grad_()
    module = Model()
    theirs = outcome(copy.deepcopy(module), lambda m: m(x), [x])
    rnnfused.convert(module)
    check(module, lambda m: m(x), backend, [x])
    assert_close(outcome(module, lambda m: m(x), [x]), theirs, FLOAT64)


@BACKENDS
def test_parametrised_layers(backend: str) -> None:
    module, x = make("LSTM"), draw(5, 2, 3).requires_grad_()
    parametrizations.weight_norm(module, "weight_hh_l0")
    parametrizations.weight_norm(module, "weight_ih_l0")
    check(module, lambda m: m(x), backend, [x])


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@BACKENDS
def test_autocast_outside(dtype: torch.dtype, backend: str) -> None:
    for kind in ("LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"):
        module, x = getattr(rnnfused, kind)(3, 4), torch.randn(5, *((2,) if len(kind) < 6 else ()), 3)
        with torch.autocast("cpu", dtype):
            check(module, lambda m, x=x: m(x), backend, [])


@BACKENDS
def test_autocast_inside(backend: str) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = rnnfused.GRU(3, 4)
            self.out = torch.nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.out(self.layer(x)[0])

    x = torch.randn(5, 2, 3)
    check(Model(), lambda m: m(x), backend, [])


@BACKENDS
def test_training_goes_the_same_way(backend: str) -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(2)
        module = make("LSTM", num_layers=2)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        run = torch.compile(module, fullgraph=True, backend=backend) if compiled else module
        x, target = draw(6, 2, 3), draw(6, 2, 4)
        losses.append([])
        for _ in range(4):
            optimizer.zero_grad()
            loss = (run(x)[0] - target).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == losses[1]


@pytest.mark.filterwarnings("error:.*lru_cache")
def test_a_subclass_that_sets_attributes() -> None:
    class Remembers(torch.nn.LSTM):
        def forward(self, input: Tensor, hx: Any = None) -> Any:
            y, self.last = super().forward(input, hx)
            return y, self.last

    model = rnnfused.convert(Remembers(3, 4))
    x = torch.randn(6, 2, 3)
    want = model(x)
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), want)


# ---- Derivatives


@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
class TestDerivatives:
    def make(self, kind: str) -> tuple[Any, Tensor]:
        return make(kind), draw(*((2,) if kind.endswith("Cell") else (4, 2)), 3)

    def second(self, run: Callable[[Tensor], Any], module: Any, x: Tensor) -> Any:
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(tensors(run(x))[0].sin().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), [x, *module.parameters()])

    def test_second_derivatives(self, kind: str) -> None:
        module, x = self.make(kind)
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        assert_close(self.second(compiled, module, x), self.second(module, module, x))
        # torch has none of what it has compiled itself, and says so.
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        with pytest.raises(RuntimeError, match="does not currently support double backward"):
            self.second(compiled, module, x)

    def test_forward_mode(self, kind: str) -> None:
        module, x = self.make(kind)
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            if TORCH >= (2, 14):
                with pytest.raises(torch._dynamo.exc.Unsupported, match="dual tensor input"):
                    compiled(dual)
                return
            found = [forward_ad.unpack_dual(tensors(m(dual))[0]).tangent for m in (compiled, module)]
        assert_close(found[:1], found[1:])

    @pytest.mark.long
    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_transforms_inside(self, kind: str, backend: str) -> None:
        module, x = self.make(kind)
        weights = {name: p.detach() for name, p in module.named_parameters()}

        def value(weights: Any, x: Tensor) -> Tensor:
            return tensors(func.functional_call(module, weights, (x,)))[0].sin().sum()

        def of_input(x: Tensor) -> Tensor:
            return value(weights, x)

        functions: list[Callable[[Tensor], Any]] = [
            func.grad(of_input),
            lambda x: func.grad(value)(weights, x),
            lambda x: func.vjp(of_input, x)[1](torch.ones_like(value(weights, x))),
            lambda x: func.jvp(of_input, (x,), (torch.ones_like(x),)),
            lambda x: func.vmap(func.grad(value), (None, 0))(weights, torch.stack([x, x + 1])),
            lambda x: func.grad(lambda t: func.grad(of_input)(t).sin().sum())(x),
            func.hessian(of_input),
        ]
        for f in functions:
            torch._dynamo.reset()
            found = torch.compile(f, fullgraph=True, backend=backend)(x)
            assert_close(tree_leaves(found), tree_leaves(f(x)), FLOAT64)

    def test_a_compiled_layer_in_a_transform(self, kind: str) -> None:
        """Right, or refused: never wrong in silence."""
        module, x = self.make(kind)
        compiled = torch.compile(module, backend="aot_eager")

        def of(run: Any) -> Callable[[Tensor], Tensor]:
            return lambda t: tensors(run(t))[0].sin().sum()

        for transform in (func.grad, func.hessian, lambda f: lambda t: func.jvp(f, (t,), (t,))[1]):
            try:
                found = transform(of(compiled))(x)
            except RuntimeError:
                continue
            assert_close([found], [transform(of(module))(x)], FLOAT64)


def test_export() -> None:
    module, x = make("LSTM", num_layers=2, batch_first=True), draw(2, 5, 3)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("steps")}
    program = torch.export.export(module.eval(), (x,), dynamic_shapes={"input": sizes})
    for other in (x, draw(3, 9, 3)):
        assert_close(tensors(program.module()(other)), tensors(module(other)))
