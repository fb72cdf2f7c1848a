"""torch.export, AOTInductor, TorchScript, fx and ONNX."""

from __future__ import annotations

import io
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, export
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from bench.features.check import GRADIENTS, same, trained
from bench.features.layers import CELLS, KINDS, Layers, Loop
from bench.features.probes import NotApplicable, probe

DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}


def _sizes(batch: int, steps: int) -> Tensor:
    return torch.randn(batch, steps, 3)


def _dynamic() -> dict[str, Any]:
    return {"x": {0: Dim("batch", min=2, max=64), 1: Dim("steps", min=2, max=512)}}


def _export(model: nn.Module, dynamic: bool, strict: bool) -> Any:
    with torch.no_grad():
        shapes = _dynamic() if dynamic else None
        return export(model.eval(), (_sizes(2, 5),), dynamic_shapes=shapes, strict=strict)


def _check(call: Any, twin: nn.Module, *sizes: tuple[int, int]) -> None:
    with torch.no_grad():
        for batch, steps in sizes:
            x = _sizes(batch, steps)
            same(call(x), twin(x))


def _exported(layers: Layers, kind: str, dynamic: bool, strict: bool) -> None:
    model, twin = layers.taggers(kind, 3, 4, **DEEP)
    sizes = ((2, 5), (3, 9), (4, 17)) if dynamic else ((2, 5),)
    _check(_export(model, dynamic, strict).module(), twin, *sizes)


@probe("torch.export, static", "non-strict; the program's numbers on another input", each=KINDS)
def static(layers: Layers, kind: str) -> None:
    _exported(layers, kind, dynamic=False, strict=False)


@probe("torch.export, static, strict", "the program's numbers on another input", each=KINDS)
def static_strict(layers: Layers, kind: str) -> None:
    _exported(layers, kind, dynamic=False, strict=True)


@probe("torch.export, dynamic T and B", "non-strict; three sizes", each=KINDS)
def dynamic(layers: Layers, kind: str) -> None:
    _exported(layers, kind, dynamic=True, strict=False)


@probe("torch.export, dynamic T and B, strict", "three sizes", each=KINDS)
def dynamic_strict(layers: Layers, kind: str) -> None:
    _exported(layers, kind, dynamic=True, strict=True)


@probe("torch.export, hx given, dynamic B", "states as inputs of the program", each=KINDS)
def export_states(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4)

    def states(batch: int) -> Any:
        h = torch.randn(1, batch, 4)
        return (h, torch.randn(1, batch, 4)) if kind == "LSTM" else h

    batch = Dim("batch", min=2, max=64)
    shapes = ({1: batch}, ({1: batch}, {1: batch}) if kind == "LSTM" else {1: batch})
    with torch.no_grad():
        program = export(model, (torch.randn(5, 2, 3), states(2)), dynamic_shapes=shapes)
        for size in (2, 3, 7):
            x, hx = torch.randn(5, size, 3), states(size)
            same(program.module()(x, hx), twin(x, hx))


@probe("torch.export, cells in a Python loop", "strict and not", each=CELLS)
def export_cells(layers: Layers, kind: str) -> None:
    cell, twin = layers.pair(kind, 3, 4)
    for strict in (False, True):
        with torch.no_grad():
            program = export(Loop(cell), (torch.randn(5, 2, 3),), strict=strict)
            x = torch.randn(5, 2, 3)
            same(program.module()(x), Loop(twin)(x))


@probe("torch.export, saved and loaded", "static shapes", each=KINDS)
def save_static(layers: Layers, kind: str) -> None:
    _saved(layers, kind, False, (2, 5))


@probe("torch.export, dynamic T and B, saved and loaded", "three sizes", each=KINDS)
def save_dynamic(layers: Layers, kind: str) -> None:
    _saved(layers, kind, True, (2, 5), (3, 9), (4, 17))


def _saved(layers: Layers, kind: str, dynamic: bool, *sizes: tuple[int, int]) -> None:
    model, twin = layers.taggers(kind, 3, 4, **DEEP)
    file = io.BytesIO()
    torch.export.save(_export(model, dynamic, strict=False), file)
    file.seek(0)
    _check(torch.export.load(file).module(), twin, *sizes)


@probe(
    "torch.export, decomposed and trained", "export of a training model; the program's gradients", each=KINDS
)
def export_training(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4, **DEEP)
    module = export(model, (_sizes(2, 5),)).module()
    x = _sizes(2, 5)
    twin.load_state_dict(module.state_dict())
    got, want = trained(module, module, x), trained(twin, twin, x)
    # The program may hold its parameters in another order.
    names = [name for name, _ in module.named_parameters()]
    expected = dict(zip([n for n, _ in twin.named_parameters()], want[-len(names) :], strict=True))
    same(got[: -len(names)], want[: -len(names)], **GRADIENTS)
    same(dict(zip(names, got[-len(names) :], strict=True)), expected, **GRADIENTS)


def _aoti(layers: Layers, kind: str, dynamic: bool, *sizes: tuple[int, int]) -> None:
    model, twin = layers.taggers(kind, 3, 4, **DEEP)
    program = _export(model, dynamic, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/model.pt2")
        _check(torch._inductor.aoti_load_package(path), twin, *sizes)


@probe("AOTInductor", "compiled, packaged, loaded and run from Python; static", each=KINDS, seconds=240)
def aoti(layers: Layers, kind: str) -> None:
    _aoti(layers, kind, False, (2, 5))


@probe("AOTInductor, dynamic T and B", "three sizes", each=KINDS, seconds=240)
def aoti_dynamic(layers: Layers, kind: str) -> None:
    _aoti(layers, kind, True, (2, 5), (3, 9), (4, 17))


@probe("torch.jit.trace", "right for another T and B too", each=KINDS + CELLS)
def trace(layers: Layers, kind: str) -> None:
    _trace(layers, kind)


@probe("torch.jit.trace under no_grad", "right for another T and B too", each=KINDS + CELLS)
def trace_no_grad(layers: Layers, kind: str) -> None:
    with torch.no_grad():
        _trace(layers, kind)


def _trace(layers: Layers, kind: str) -> None:
    if kind in CELLS:
        layer, twin = layers.pair(kind, 3, 4)
        inputs = [(torch.randn(batch, 3),) for batch in (2, 2, 5)]
    else:
        layer, twin = layers.taggers(kind, 3, 4, **DEEP)
        inputs = [(_sizes(*sizes),) for sizes in ((2, 5), (2, 5), (4, 9))]
    traced = torch.jit.trace(layer, inputs[0])
    for arguments in inputs:
        same(traced(*arguments), twin(*arguments))


@probe("torch.jit.trace, saved, loaded, frozen", "right for another T and B too", each=KINDS)
def trace_saved(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4, **DEEP)
    file = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model.eval(), (_sizes(2, 5),)), file)
        file.seek(0)
        loaded = torch.jit.load(file)
        _check(loaded, twin, (2, 5), (4, 9))
        _check(torch.jit.freeze(loaded.eval()), twin, (2, 5), (4, 9))


@probe(
    "torch.jit.script",
    "a model that contains the layer",
    each=KINDS,
    by_design="TorchScript is deprecated; export the model, or script rnnfused.to_torch(model)",
    refusal="to_torch",
)
def script(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4, **DEEP)
    _check(torch.jit.script(Scripted(model.rnn)), Scripted(twin.rnn), (2, 5), (4, 9))


class Scripted(nn.Module):
    """TorchScript wants types that it knows."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


@probe("fx.symbolic_trace", "the layer is a leaf; the graph's numbers", each=KINDS)
def symbolic_trace(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4, **DEEP)
    graph = fx.symbolic_trace(model, concrete_args={"hx": None})
    targets = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert targets == ["rnn", "head"], f"modules called: {targets}"
    _check(lambda x: graph(x, None), twin, (2, 5), (4, 9))


@probe("fx.symbolic_trace, cells", "the cell is a leaf; the graph's numbers", each=CELLS)
def symbolic_trace_cells(layers: Layers, kind: str) -> None:
    cell, twin = layers.pair(kind, 3, 4)
    graph = fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), cell))
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
    x = torch.randn(2, 3)
    same(graph(x), twin(graph.get_submodule("0")(x)))


def _make_fx(layers: Layers, kind: str, mode: str, *sizes: tuple[int, int]) -> None:
    """Weights are inputs, so that the traced graph needs no constant."""
    model, twin = layers.taggers(kind, 3, 4, **DEEP)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def run(weights: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(model, weights, (x,))

    graph = make_fx(run, tracing_mode=mode)(weights, _sizes(2, 5))
    _check(lambda x: graph(weights, x), twin, *sizes)


@probe("make_fx, real", "the graph's numbers on another input", each=KINDS)
def make_fx_real(layers: Layers, kind: str) -> None:
    _make_fx(layers, kind, "real", (2, 5))


@probe("make_fx, real, under no_grad", "the graph's numbers on another input", each=KINDS)
def make_fx_no_grad(layers: Layers, kind: str) -> None:
    with torch.no_grad():
        _make_fx(layers, kind, "real", (2, 5))


@probe("make_fx, fake", "the graph's numbers on another input", each=KINDS)
def make_fx_fake(layers: Layers, kind: str) -> None:
    _make_fx(layers, kind, "fake", (2, 5))


@probe("make_fx, symbolic", "the graph's numbers on another input", each=KINDS)
def make_fx_symbolic(layers: Layers, kind: str) -> None:
    _make_fx(layers, kind, "symbolic", (2, 5))


@probe("make_fx, symbolic, under no_grad", "the graph's numbers on another input", each=KINDS)
def make_fx_symbolic_no_grad(layers: Layers, kind: str) -> None:
    with torch.no_grad():
        _make_fx(layers, kind, "symbolic", (2, 5))


@probe("make_fx, symbolic, another T and B", "one graph for every size", each=KINDS)
def make_fx_sizes(layers: Layers, kind: str) -> None:
    _make_fx(layers, kind, "symbolic", (2, 5), (4, 9))


@probe("make_fx of a training step", "gradients from the traced graph", each=KINDS)
def make_fx_training(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    names = [name for name, _ in layer.named_parameters()]

    def gradients(weights: list[Tensor], x: Tensor) -> Any:
        weights = [w.detach().requires_grad_() for w in weights]
        loss = functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0].sin().sum()
        return torch.autograd.grad(loss, weights)

    weights = [p.detach() for p in layer.parameters()]
    graph = make_fx(gradients)(weights, torch.randn(5, 2, 3))
    x = torch.randn(5, 2, 3)
    twin(x)[0].sin().sum().backward()
    same(graph(weights, x), [p.grad for p in twin.parameters()], **GRADIENTS)


class Output(nn.Module):
    """Output and states of a layer as a flat tuple, for ONNX."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, states = self.rnn(x)
        return (y, *states) if isinstance(states, tuple) else (y, states)


def _onnx(
    layers: Layers, kind: str, sizes: tuple[tuple[int, int], ...], operator: bool = False, **options: Any
) -> None:
    if not all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")):
        raise NotApplicable("not tried: needs onnx, onnxruntime and onnxscript")
    import onnx
    import onnxruntime

    layer, twin = layers.pair(kind, 3, 4, num_layers=2, bidirectional=True)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(
            Output(layer).eval(), (torch.randn(5, 2, 3),), path, input_names=["x"], verbose=False, **options
        )
        if operator:
            nodes = [node.op_type for node in onnx.load(path).graph.node]
            assert nodes.count(kind) == 2, f"operators of two layers: {sorted(nodes)}"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for steps, batch in sizes:
            x = torch.randn(steps, batch, 3)
            got = [torch.from_numpy(value) for value in session.run(None, {"x": x.numpy()})]
            same(got, Output(twin)(x))


@probe("ONNX, dynamo exporter", "ONNX Runtime's numbers", each=KINDS)
def onnx_dynamo(layers: Layers, kind: str) -> None:
    _onnx(layers, kind, ((5, 2),), dynamo=True, **layers.onnx_options())


@probe("ONNX, dynamo exporter, standard operators", "one LSTM, GRU or RNN operator a layer", each=KINDS)
def onnx_operators(layers: Layers, kind: str) -> None:
    _onnx(layers, kind, ((5, 2),), operator=True, dynamo=True, **layers.onnx_options())


@probe("ONNX, dynamo exporter, dynamic T and B", "two sizes in ONNX Runtime", each=KINDS)
def onnx_dynamo_dynamic(layers: Layers, kind: str) -> None:
    shapes = {"x": {0: Dim("steps", min=2, max=512), 1: Dim("batch", min=2, max=64)}}
    _onnx(layers, kind, ((5, 2), (9, 4)), dynamo=True, dynamic_shapes=shapes, **layers.onnx_options())


@probe("ONNX, legacy exporter", "static; ONNX Runtime's numbers", each=KINDS)
def onnx_legacy(layers: Layers, kind: str) -> None:
    _onnx(layers, kind, ((5, 2),), dynamo=False)


@probe("ONNX, legacy exporter, dynamic T and B", "two sizes in ONNX Runtime", each=KINDS)
def onnx_legacy_dynamic(layers: Layers, kind: str) -> None:
    _onnx(layers, kind, ((5, 2), (9, 4)), dynamo=False, dynamic_axes={"x": {0: "steps", 1: "batch"}})
