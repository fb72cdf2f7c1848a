"""Layers exported to ONNX's operators: ONNX Runtime's results are the layer's own."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from results import tensors
from tolerances import FLOAT64, ONNX_NARROW_ULPS, ONNX_ULPS
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnfused

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

INPUT, H = 3, 5
EXPORTERS = ("dynamo", "legacy")
# A layer, then the shapes of what it is called with: the input, and the states if there are any.
CALLS: list[tuple[str, dict[str, Any], tuple[tuple[int, ...], ...]]] = [
    ("LSTM", {}, ((6, 2, INPUT),)),
    ("LSTM", {"num_layers": 3, "batch_first": True}, ((2, 6, INPUT),)),
    ("LSTM", {"num_layers": 2, "bidirectional": True}, ((6, 2, INPUT), (4, 2, H), (4, 2, H))),
    ("LSTM", {"bidirectional": True, "bias": False, "recompute": True}, ((6, INPUT), (2, H), (2, H))),
    ("GRU", {"num_layers": 2, "bidirectional": True, "batch_first": True}, ((2, 6, INPUT), (4, 2, H))),
    ("GRU", {"bias": False}, ((6, INPUT),)),
    ("RNN", {"num_layers": 2, "bidirectional": True}, ((6, 2, INPUT), (4, 2, H))),
    ("RNN", {"nonlinearity": "relu", "bidirectional": True, "batch_first": True}, ((2, 6, INPUT),)),
    ("LSTMCell", {}, ((2, INPUT),)),
    ("LSTMCell", {"bias": False}, ((INPUT,), (H,), (H,))),
    ("GRUCell", {}, ((2, INPUT), (2, H))),
    ("RNNCell", {"nonlinearity": "relu"}, ((INPUT,),)),
    ("LSTM", {"peephole": True}, ((6, 2, INPUT),)),
    (
        "LSTM",
        {"peephole": True, "num_layers": 2, "bidirectional": True},
        ((6, 2, INPUT), (4, 2, H), (4, 2, H)),
    ),
    ("LSTM", {"peephole": True, "coupled_gates": True, "bidirectional": True}, ((6, 2, INPUT),)),
    ("LSTM", {"coupled_gates": True, "bias": False, "num_layers": 2}, ((6, 2, INPUT),)),
    ("LSTM", {"gate_clip": 0.3, "recurrent_dropout": 0.5, "grad_clip": 1.0}, ((6, 2, INPUT),)),
    ("GRU", {"reset_after": False, "num_layers": 2, "bidirectional": True}, ((6, 2, INPUT), (4, 2, H))),
    ("GRU", {"reset_after": False, "gate_clip": 0.3, "bias": False}, ((6, 2, INPUT),)),
    ("LSTMCell", {"peephole": True}, ((2, INPUT), (2, H), (2, H))),
    ("GRUCell", {"reset_after": False}, ((2, INPUT), (2, H))),
]


class Called(nn.Module):
    """A layer between float32 tensors, one for each input and result: ONNX Runtime is fed from NumPy."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        dtype = next(self.layer.parameters()).dtype
        hx = [state.to(dtype) for state in states]
        result = self.layer(x.to(dtype), (tuple(hx) if hx[1:] else hx[0]) if hx else None)
        return tuple(t.to(x.dtype) for t in tensors(result))


class Steps(nn.Module):
    """A cell in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = rnnfused.LSTMCell(INPUT, H)

    def forward(self, x: Tensor, hx: None = None) -> Tensor:
        states, outputs = None, []
        for step in x:
            states = self.cell(step, states)
            outputs.append(states[0])
        return torch.stack(outputs)


@pytest.fixture(autouse=True)
def nothing_differentiated() -> Iterator[None]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own exporters: deprecated, or use what is deprecated
        yield


def export(
    exporter: str,
    model: Any,
    inputs: Sequence[Tensor],
    file: Path,
    names: Sequence[str] = ("x", "h", "c"),
    **options: Any,
) -> Any:
    if exporter == "dynamo":
        options = {"custom_translation_table": rnnfused.onnx.translation_table(), **options}
    torch.onnx.export(
        model.eval() if isinstance(model, nn.Module) else model,
        tuple(inputs),
        str(file),
        input_names=list(names[: len(inputs)]),
        dynamo=exporter == "dynamo",
        verbose=False,
        **options,
    )
    return onnx.load(str(file))


def run(file: Path, inputs: Sequence[Tensor], names: Sequence[str] = ("x", "h", "c")) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    fed = dict(zip(names, (t.numpy() for t in inputs), strict=False))
    return [torch.from_numpy(result) for result in session.run(None, fed)]


def assert_close(got: Sequence[Tensor], want: Sequence[Tensor], dtype: torch.dtype, ulps: float) -> None:
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        bound = ulps * torch.finfo(dtype).eps * other.abs().max()
        assert (one - other).abs().max() <= bound


class Lengths(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor, *hx: Tensor) -> tuple[Tensor, ...]:
        y, states = self.layer(x, (hx if hx[1:] else hx[0]) if hx else None, lengths=lengths)
        return y, *(states if isinstance(states, tuple) else (states,))


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_lengths(kind: str, exporter: str, tmp_path: Path) -> None:
    layer = getattr(rnnfused, kind)(INPUT, H, 2, bidirectional=True, batch_first=True)
    model, file = Lengths(layer), tmp_path / "model.onnx"
    export(exporter, model, (torch.randn(3, 6, INPUT), torch.tensor([6, 2, 4])), file)
    x, lengths = torch.randn(3, 6, INPUT), torch.tensor([1, 6, 5])
    assert_close(run(file, (x, lengths)), model(x, lengths), torch.float32, ONNX_ULPS)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("kind, learned", [("LSTM", False), ("GRU", True)])
def test_sequences_of_no_steps(kind: str, learned: bool, exporter: str, tmp_path: Path) -> None:
    """Hand the initial states through, given or learned, where ONNX Runtime's own operators do not."""
    layer = getattr(rnnfused, kind)(INPUT, H, 2, bidirectional=True, learn_initial_state=learned)
    for name, parameter in layer.named_parameters():
        if "initial" in name:
            nn.init.normal_(parameter)
    model, file = Lengths(layer), tmp_path / "model.onnx"
    hx = [] if learned else [torch.randn(4, 3, H), torch.randn(4, 3, H)]
    inputs, lengths = [torch.randn(6, 3, INPUT), torch.tensor([6, 2, 4]), *hx], torch.tensor([5, 0, 6])
    export(exporter, model, inputs, file, names=["x", "lengths", "h", "c"])
    inputs[1] = lengths
    got = run(file, inputs, names=["x", "lengths", "h", "c"])
    assert_close(got, model(*inputs), torch.float32, ONNX_ULPS)


def operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.long
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("kind, options, shapes", CALLS)
def test_results(
    kind: str, options: dict[str, Any], shapes: tuple[tuple[int, ...], ...], exporter: str, tmp_path: Path
) -> None:
    layer = getattr(rnnfused, kind)(INPUT, H, **options)
    inputs, file = [torch.randn(shape) for shape in shapes], tmp_path / "model.onnx"
    model = export(exporter, Called(layer), inputs, file)
    assert operators(model)[kind.removesuffix("Cell")] == options.get("num_layers", 1)
    others = [torch.randn(shape) for shape in shapes]
    assert_close(run(file, others), Called(layer)(*others), torch.float32, ONNX_ULPS)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_every_number_of_steps_and_every_batch(kind: str, exporter: str, tmp_path: Path) -> None:
    model = Called(getattr(rnnfused, kind)(INPUT, H, 2, bidirectional=True, batch_first=True))
    file = tmp_path / "model.onnx"
    axes: dict[str, Any] = {"dynamic_axes": {"x": {0: "batch", 1: "steps"}}}
    if exporter == "dynamo":
        axes = {"dynamic_shapes": {"x": {0: Dim("batch"), 1: Dim("steps")}}}
    export(exporter, model, [torch.randn(2, 6, INPUT)], file, **axes)
    for batch, steps in ((2, 6), (3, 11), (1, 1)):
        x = torch.randn(batch, steps, INPUT)
        assert_close(run(file, [x]), model(x), torch.float32, ONNX_ULPS)


def test_weights_are_ordered_before_they_are_written(tmp_path: Path) -> None:
    layer = rnnfused.LSTM(INPUT, H, 2, bidirectional=True)
    inputs = [torch.randn(6, 2, INPUT), torch.randn(4, 2, H), torch.randn(4, 2, H)]
    model = export("dynamo", Called(layer), inputs, tmp_path / "model.onnx")
    # Each layer takes its states and joins its directions; the states are joined at the end.
    assert operators(model) == {"LSTM": 2, "Gather": 4, "Transpose": 2, "Reshape": 2, "Concat": 2}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_layers_are_computed_in_float32(dtype: torch.dtype, exporter: str, tmp_path: Path) -> None:
    layer = rnnfused.LSTM(INPUT, H, bidirectional=True, dtype=dtype)
    inputs, file = [torch.randn(6, 2, INPUT), torch.randn(2, 2, H), torch.randn(2, 2, H)], tmp_path / "m.onnx"
    export(exporter, Called(layer), inputs, file)
    assert_close(run(file, inputs), Called(layer)(*inputs), dtype, ONNX_NARROW_ULPS)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_float64(kind: str, tmp_path: Path) -> None:
    """Which ONNX has and ONNX Runtime has not: ONNX's own evaluator runs it."""
    layer = getattr(rnnfused, kind)(INPUT, H, dtype=torch.float64)
    x = torch.randn(6, 2, INPUT, dtype=torch.float64)
    model = export("dynamo", Called(layer), [x], tmp_path / "model.onnx")
    results = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x.numpy()})
    for got, want in zip(results, Called(layer)(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_computed_weights(exporter: str, tmp_path: Path) -> None:
    layer = rnnfused.GRU(INPUT, H)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    x, file = torch.randn(6, 2, INPUT), tmp_path / "model.onnx"
    export(exporter, Called(layer), [x], file)
    assert_close(run(file, [x]), Called(layer)(x), torch.float32, ONNX_ULPS)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_cell_in_a_loop(exporter: str, tmp_path: Path) -> None:
    model, x, file = Steps(), torch.randn(6, 2, INPUT), tmp_path / "model.onnx"
    assert operators(export(exporter, model, [x], file))["LSTM"] == 6
    assert_close(run(file, [x]), [model(x)], torch.float32, ONNX_ULPS)


def test_an_exported_program(tmp_path: Path) -> None:
    layer, x, file = rnnfused.GRU(INPUT, H, 2), torch.randn(6, 2, INPUT), tmp_path / "model.onnx"
    program = torch.export.export(Called(layer), (x,))
    export("dynamo", program, [x], file)
    assert_close(run(file, [x]), Called(layer)(x), torch.float32, ONNX_ULPS)


def test_a_traced_module_from_a_file_in_a_fresh_process(tmp_path: Path) -> None:
    layer, x, file = rnnfused.LSTM(INPUT, H), torch.randn(6, 2, INPUT), tmp_path / "model.onnx"
    torch.jit.save(torch.jit.trace(Called(layer), (x,)), str(tmp_path / "traced.pt"))
    program = (
        "import sys, torch, rnnfused; rnnfused.onnx.register_symbolic(); "
        "torch.onnx.export(torch.jit.load(sys.argv[1]), (torch.randn(6, 2, 3),), sys.argv[2], "
        "input_names=['x'], dynamo=False)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "traced.pt"), str(file)], check=True)
    assert_close(run(file, [x]), Called(layer)(x), torch.float32, ONNX_ULPS)


def test_nothing_of_onnx_is_imported_before_it_is_needed() -> None:
    program = (
        "import sys, torch, rnnfused; layer = rnnfused.GRU(3, 5); x = torch.randn(6, 2, 3); "
        "assert not [m for m in sys.modules if m.split('.')[0] in ('onnx', 'onnxscript', 'onnx_ir')]; "
        "assert 'torch.onnx' not in sys.modules; "
        "torch.onnx.export(layer, (x,), '/dev/null', dynamo=False); "  # its first call is the traced one
        "assert 'onnxscript' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_missing_packages_are_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match="needs the packages onnx and onnxscript"):
        rnnfused.onnx.translation_table()


def cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else cause(error.__cause__)


class InTraining(Called):
    """Even where the model is in evaluation."""

    def train(self, mode: bool = True) -> InTraining:
        super().train(mode)
        self.layer.train()
        return self


class Resets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnnfused.GRU(INPUT, H)

    def forward(self, x: Tensor, resets: Tensor) -> Tensor:
        return self.rnn(x, resets=resets)[0]


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnnfused.GRU(INPUT, H)

    def forward(self, data: Tensor, batch_sizes: Tensor) -> Tensor:
        return self.rnn(PackedSequence(data, batch_sizes))[0].data


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    "what, words",
    [
        ("projection", r"to_torch\(model\), args\).run_decompositions"),
        ("cells", "ONNX's LSTM has no return_cells"),
        ("training", r"no recurrent_dropout in training: .*model.eval\(\)"),
        ("packed", "padded input.*with lengths"),
        ("resets", "no resets inside"),
    ],
)
def test_what_onnx_has_not(what: str, words: str, exporter: str, tmp_path: Path) -> None:
    model: nn.Module = Packed()
    packed = pack_sequence([torch.randn(n, INPUT) for n in (4, 3)])
    inputs = [packed.data, packed.batch_sizes]
    if what == "projection":
        model, inputs = Called(rnnfused.LSTM(INPUT, H, proj_size=2)), [torch.randn(6, 2, INPUT)]
    if what == "cells":
        model, inputs = Called(rnnfused.LSTM(INPUT, H, return_cells=True)), [torch.randn(6, 2, INPUT)]
    if what == "training":
        layer = rnnfused.LSTM(INPUT, H, recurrent_dropout=0.5)
        model, inputs = InTraining(layer), [torch.randn(6, 2, INPUT)]
    if what == "resets":
        model, inputs = Resets(), [torch.randn(6, 2, INPUT), torch.zeros(6, 2, dtype=torch.bool)]
    with pytest.raises(Exception) as raised:
        export(exporter, model, inputs, tmp_path / "model.onnx")
    with pytest.raises(NotImplementedError, match=words):
        raise cause(raised.value)


def test_a_projection_step_by_step(tmp_path: Path) -> None:
    """What the error recommends."""
    layer, x = rnnfused.LSTM(INPUT, H, 2, bidirectional=True, proj_size=2).eval(), torch.randn(6, 2, INPUT)
    program = torch.export.export(Called(rnnfused.to_torch(layer)), (x,)).run_decompositions()
    file = tmp_path / "model.onnx"
    assert not operators(export("dynamo", program, [x], file))["LSTM"]
    assert_close(run(file, [x]), Called(layer)(x), torch.float32, ONNX_ULPS)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    "options",
    [{"layer_norm": "separate"}, {"zoneout": 0.1}, {"cell_clip": 3.0}, {"num_heads": 5}],
    ids=lambda options: next(iter(options)),
)
def test_what_options_onnx_has_not(options: dict[str, Any], exporter: str, tmp_path: Path) -> None:
    model = Called(rnnfused.LSTM(INPUT, H, peephole=True, **options))
    with pytest.raises(Exception) as raised:
        export(exporter, model, [torch.randn(6, 2, INPUT)], tmp_path / "model.onnx")
    with pytest.raises(NotImplementedError, match=f"ONNX's LSTM has no {next(iter(options))}"):
        raise cause(raised.value)


@pytest.mark.parametrize("layer, save", [("gru", True), ("haste", False)])
def test_what_the_translation_does_not_know_is_an_error(layer: str, save: bool) -> None:
    (translate,) = rnnfused.onnx.translation_table().values()
    with pytest.raises(NotImplementedError, match="for inference" if save else "no operator for .*haste"):
        translate(None, [], [], None, None, None, layer, save)
