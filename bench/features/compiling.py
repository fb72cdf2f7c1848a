"""torch.compile."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bench.features.check import GRADIENTS, flat, same, trained
from bench.features.layers import CELLS, KINDS, Layers, Loop, Tagger, autocast_dtypes
from bench.features.probes import probe

DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}
# (T, B): none is 0 or 1, which the compiler treats as other graphs; no two are equal.
SIZES = ((5, 2), (6, 3), (9, 4), (7, 5), (12, 3), (3, 8), (11, 6))


def _inference(layers: Layers, kind: str, backend: str) -> None:
    model, twin = layers.taggers(kind, 3, 4, **DEEP)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(2, 5, 3)
            same(compiled(x), twin(x))


@probe("torch.compile(fullgraph=True), inference, eager backend", "output and states", each=KINDS)
def inference_eager(layers: Layers, kind: str) -> None:
    _inference(layers, kind, "eager")


@probe("torch.compile(fullgraph=True), inference, inductor", "output and states", each=KINDS)
def inference_inductor(layers: Layers, kind: str) -> None:
    _inference(layers, kind, "inductor")


@probe(
    "torch.compile(fullgraph=True) of a converted model", "torch.nn's model, as convert leaves it", each=KINDS
)
def converted(layers: Layers, kind: str) -> None:
    twin = Tagger(getattr(nn, kind)(3, 4, **DEEP))
    model = layers.convert(copy.deepcopy(twin))
    x = torch.randn(2, 5, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    same(trained(compiled, model, x), trained(twin, twin, x), **GRADIENTS)


def _training(layers: Layers, kind: str, **options: Any) -> None:
    model, twin = layers.taggers(kind, 3, 4, **DEEP)
    compiled = torch.compile(model, **options)
    x = torch.randn(2, 5, 3)
    same(trained(compiled, model, x), trained(twin, twin, x), **GRADIENTS)


@probe("torch.compile, training, graph breaks allowed", "gradients, inductor", each=KINDS)
def training_breaks(layers: Layers, kind: str) -> None:
    _training(layers, kind)


@probe("torch.compile(fullgraph=True), training, eager backend", "gradients", each=KINDS)
def training_eager(layers: Layers, kind: str) -> None:
    _training(layers, kind, fullgraph=True, backend="eager")


@probe("torch.compile(fullgraph=True), training, inductor", "gradients of input and weights", each=KINDS)
def training_inductor(layers: Layers, kind: str) -> None:
    _training(layers, kind, fullgraph=True)


@probe(
    "torch.compile(fullgraph=True), dropout between layers",
    "eager backend; the same seed as eager's",
    each=KINDS,
)
def dropout(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4, num_layers=3, dropout=0.5)
    x = torch.randn(5, 2, 3)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(1)
    got = trained(compiled, model, x)
    torch.manual_seed(1)
    same(got, trained(twin, twin, x), **GRADIENTS)


def _sizes(layers: Layers, kind: str, backend: str, train: bool) -> None:
    model, twin = layers.taggers(kind, 3, 4, num_layers=2)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for steps, batch in SIZES:
        x = torch.randn(steps, batch, 3)
        if train:
            same(trained(compiled, model, x), trained(twin, twin, x), **GRADIENTS)
        else:
            with torch.no_grad():
                same(compiled(x), twin(x))
    assert counter.frame_count <= 2, f"{counter.frame_count} compilations for {len(SIZES)} sizes"


@probe("torch.compile, dynamic T and B, inference", "7 sizes, at most 2 compilations", each=KINDS)
def dynamic_inference(layers: Layers, kind: str) -> None:
    _sizes(layers, kind, "eager", train=False)


@probe("torch.compile, dynamic T and B, training", "7 sizes, at most 2 compilations", each=KINDS)
def dynamic_training(layers: Layers, kind: str) -> None:
    _sizes(layers, kind, "aot_eager", train=True)


@probe("torch.compile with mark_dynamic on T and B", "one graph, which must not specialise", each=KINDS)
def mark_dynamic(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for steps, batch in SIZES:
            x = torch.randn(steps, batch, 3)
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(x, 1)
            same(compiled(x), twin(x))
    assert counter.frame_count == 1, f"{counter.frame_count} compilations"


@probe(
    "torch.compile, compile time independent of T",
    "as many operations for T = 4 and 64, backward too",
    each=KINDS,
)
def graph_size(layers: Layers, kind: str) -> None:
    def operations(steps: int) -> list[int]:
        counts: list[int] = []

        def count(graph: torch.fx.GraphModule, _: Any) -> Any:
            from functorch.compile import make_boxed_func

            counts.append(len(graph.graph.nodes))
            return make_boxed_func(graph.forward)

        torch._dynamo.reset()
        model, twin = layers.taggers(kind, 3, 4, bidirectional=True)
        backend = aot_autograd(fw_compiler=count, bw_compiler=count)
        compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=False)
        x = torch.randn(steps, 2, 3)
        same(trained(compiled, model, x), trained(twin, twin, x), **GRADIENTS)
        return counts

    short, long = operations(4), operations(64)
    assert len(short) == 2 and short == long, f"operations, forward and backward: {short} and {long}"


@probe("torch.compile(fullgraph=True), cells in a Python loop", "gradients, inductor", each=CELLS)
def cells(layers: Layers, kind: str) -> None:
    cell, twin = layers.pair(kind, 3, 4)
    model, reference = Loop(cell), Loop(twin)
    x = torch.randn(5, 2, 3)
    compiled = torch.compile(model, fullgraph=True)
    same(trained(compiled, model, x), trained(reference, reference, x), **GRADIENTS)


@probe("torch.compile(fullgraph=True), PackedSequence", "packed outside, unsorted; gradients", each=KINDS)
def packed(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, bidirectional=True)
    lengths = torch.tensor([2, 5, 3])

    def call(module: nn.Module, compiled: Any) -> list[Tensor]:
        def pack(x: Tensor) -> Any:
            return compiled(pack_padded_sequence(x, lengths, enforce_sorted=False))

        return trained(pack, module, x)

    x = torch.randn(5, 3, 3)
    compiled = torch.compile(lambda p: layer(p), fullgraph=True, backend="aot_eager")
    same(call(layer, compiled), call(twin, twin), **GRADIENTS)


@probe(
    "torch.compile, packing inside the model, graph breaks allowed", "pack, layer, pad; gradients", each=KINDS
)
def packing_inside(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, batch_first=True)
    lengths = torch.tensor([2, 5, 3])

    def body(module: Any) -> Any:
        def run(x: Tensor) -> Any:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            output, states = module(packed)
            return pad_packed_sequence(output, batch_first=True)[0], states

        return run

    x = torch.randn(3, 5, 3)
    compiled = torch.compile(body(layer))
    same(trained(compiled, layer, x), trained(body(twin), twin, x), **GRADIENTS)


@probe(
    "torch.compile(fullgraph=True), hx given and not",
    "one compiled model called both ways; gradients",
    each=KINDS,
)
def states(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4, num_layers=2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, h = torch.randn(5, 2, 3), torch.randn(2, 2, 4)
    hx = (h, torch.randn(2, 2, 4)) if kind == "LSTM" else h
    same(trained(compiled, model, x), trained(twin, twin, x), **GRADIENTS)
    same(trained(compiled, model, x, hx), trained(twin, twin, x, hx), **GRADIENTS)


@probe("torch.compile(fullgraph=True) under autocast", "bfloat16; dtypes and results", each=KINDS)
def autocast(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        exact = flat(twin(x))
        with torch.autocast("cpu", torch.bfloat16):
            got = flat(compiled(x))
    assert [t.dtype for t in got] == autocast_dtypes(twin, x), "other dtypes than eager torch.nn's"
    same([t.float() for t in got], exact, rtol=0, atol=8 * torch.finfo(torch.bfloat16).eps)


@probe("compiled autograd", "the whole step with backward, in one compiled function", each=KINDS)
def compiled_autograd(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4)
    x = torch.randn(5, 2, 3)

    @torch.compile(backend="aot_eager")
    def step(x: Tensor) -> None:
        model(x)[0].sin().sum().backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        step(x)
    twin(x)[0].sin().sum().backward()
    same([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()], **GRADIENTS)


@probe("torch.func.grad inside torch.compile", "fullgraph, gradients of the weights", each=KINDS)
def grad_inside(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    x = torch.randn(5, 2, 3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def gradients(weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return grad(lambda w: functional_call(layer, w, (x,))[0].sin().sum())(weights)

    twin(x)[0].sin().sum().backward()
    same(gradients(weights, x), {name: p.grad for name, p in twin.named_parameters()}, **GRADIENTS)
