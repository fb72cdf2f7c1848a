"""torch.compile: one graph of one operator a layer, for every size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from results import tensors
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfused

LAYERS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
INPUT, H = 3, 5
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"batch_first": True, "bias": False},
]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(call: Callable[..., Any], module: torch.nn.Module, *given: Any) -> list[Tensor]:
    """What the call gives, and the gradients of every parameter."""
    module.zero_grad()
    found = tensors(call(*given))
    sum(t.sin().sum() for t in found).backward()  # type: ignore[union-attr]
    return [
        *(t.detach() for t in found),
        *(p.grad.clone() for p in module.parameters() if p.grad is not None),
    ]


def assert_like_eager(compiled: Callable[..., Any], module: Any, *given: Any) -> None:
    got, want = results(compiled, module, *given), results(module, module, *given)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_in_one_graph(kind: str, options: dict[str, Any]) -> None:
    module = getattr(rnnfused, kind)(INPUT, H, **options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_like_eager(compiled, module, torch.randn(4, 4, INPUT))
    states = [torch.randn(len(module.all_weights), 4, H) for _ in range(2)]
    assert_like_eager(compiled, module, torch.randn(4, 4, INPUT), states if kind == "LSTM" else states[0])
    with torch.no_grad():
        x = torch.randn(4, 4, INPUT)
        torch.testing.assert_close(compiled(x)[0], module(x)[0])


@pytest.mark.parametrize("kind", LAYERS)
def test_inductor(kind: str) -> None:
    module = getattr(rnnfused, kind)(INPUT, H)
    assert_like_eager(torch.compile(module, fullgraph=True), module, torch.randn(4, 2, INPUT))


@pytest.mark.parametrize("kind", LAYERS)
def test_converted_layers_that_were_never_called(kind: str) -> None:
    module = rnnfused.convert(torch.nn.Sequential(getattr(torch.nn, kind)(INPUT, H)))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_like_eager(compiled, module, torch.randn(4, 2, INPUT))


@pytest.mark.parametrize("kind", CELLS)
def test_cells_in_a_loop(kind: str) -> None:
    cell = getattr(rnnfused, kind)(INPUT, H)

    def run(x: Tensor) -> Any:
        state = None
        for step in x.unbind():
            state = cell(step, state)
        return state

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, INPUT)
    for one, other in zip(results(compiled, cell, x), results(run, cell, x), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("lengths", [[4, 3, 1], [2, 4, 1]], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("kind", LAYERS)
def test_packed(kind: str, lengths: list[int]) -> None:
    module = getattr(rnnfused, kind)(INPUT, H, bidirectional=True)
    packed = pack_padded_sequence(
        torch.randn(4, 3, INPUT), lengths, enforce_sorted=lengths == sorted(lengths, reverse=True)
    )
    assert_like_eager(torch.compile(module, fullgraph=True, backend="aot_eager"), module, packed)


@pytest.mark.parametrize("kind", LAYERS)
def test_two_graphs_serve_every_size(kind: str) -> None:
    module = getattr(rnnfused, kind)(INPUT, H, num_layers=2)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for steps, batch in ((4, 2), (7, 3), (9, 4), (5, 8), (6, 6), (11, 2), (8, 9)):
        assert_like_eager(compiled, module, torch.randn(steps, batch, INPUT))
    assert counter.frame_count <= 2


def test_the_graph_does_not_grow_with_the_sequence() -> None:
    counts = []
    for steps in (4, 64):
        counter = CompileCounterWithBackend("eager")
        torch.compile(rnnfused.LSTM(INPUT, H), fullgraph=True, backend=counter)(torch.randn(steps, 2, INPUT))
        counts.append(counter.op_count)
        torch._dynamo.reset()
    assert counts[0] == counts[1]


def test_dropout_draws_what_eager_draws() -> None:
    module = rnnfused.GRU(INPUT, H, num_layers=3, dropout=0.5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 2, INPUT)
    found = []
    for call in (compiled, module):
        torch.manual_seed(3)
        found.append(call(x)[0])
    torch.testing.assert_close(*found)
    module.eval()
    torch.testing.assert_close(compiled(x)[0], module(x)[0])


def test_options_that_change_are_seen() -> None:
    module = rnnfused.GRU(INPUT, H)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 2, INPUT)
    compiled(x)
    module.batch_first = True
    assert_like_eager(compiled, module, x)


def test_autocast() -> None:
    module = rnnfused.LSTM(INPUT, H)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 2, INPUT)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = compiled(x)[0], module(x)[0]
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want)


def test_weight_norm() -> None:
    module = torch.nn.utils.parametrizations.weight_norm(rnnfused.LSTM(INPUT, H), "weight_hh_l0")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_like_eager(compiled, module, torch.randn(4, 2, INPUT))


def test_transforms_inside() -> None:
    module = rnnfused.LSTM(INPUT, H)
    params = dict(module.named_parameters())

    def gradients(params: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        def loss(params: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(module, params, (x,))[0].sin().sum()

        return torch.func.grad(loss)(params)

    x = torch.randn(4, 2, INPUT)
    got = torch.compile(gradients, fullgraph=True, backend="aot_eager")(params, x)
    for name, want in gradients(params, x).items():
        torch.testing.assert_close(got[name], want)


def test_double_backward_of_a_graph_in_eager() -> None:
    module = rnnfused.LSTM(INPUT, H, dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    x = torch.randn(4, 2, INPUT, dtype=torch.float64, requires_grad=True)
    found = []
    for call in (compiled, module):
        (g,) = torch.autograd.grad(call(x)[0].sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), x)[0])
    torch.testing.assert_close(*found)
