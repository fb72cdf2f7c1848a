"""Exported models: their graphs and numbers, and that they run where rnnfused's Python is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from results import assert_same_bits
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnfused

# torch's own: what is deprecated or uses what is.
pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLE = Path(__file__).parents[1] / "examples" / "cpp"
KINDS = ("LSTM", "GRU", "RNN")
INPUT, H = 3, 5


class Everything(nn.Module):
    """Layers in all their forms, and a cell in a loop: what a compiled package has to carry."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = rnnfused.LSTM(INPUT, H, num_layers=2, bidirectional=True, proj_size=2)
        self.gru = rnnfused.GRU(4, H, batch_first=True, bias=False, recompute=True)
        self.cell = rnnfused.RNNCell(INPUT, H, nonlinearity="relu")

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """x: [T, B, INPUT], h: [4, B, 2], c: [4, B, H]"""
        y, (h, c) = self.lstm(x, (h, c))
        z, n = self.gru(y.transpose(0, 1))
        state = self.cell(x[0])
        return y, h, c, z, n, self.cell(x[1], state)

    @staticmethod
    def inputs(steps: int, batch: int) -> tuple[Tensor, ...]:
        return torch.randn(steps, batch, INPUT), torch.randn(4, batch, 2), torch.randn(4, batch, H)

    @staticmethod
    def shapes() -> Any:
        steps, batch = Dim("steps", min=2), Dim("batch")
        return {"x": {0: steps, 1: batch}, "h": {1: batch}, "c": {1: batch}}


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnnfused.LSTM(INPUT, H, 2)

    def forward(self, data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, ...]:
        output, states = self.rnn(PackedSequence(data, batch_sizes))
        return output.data, *states


def calls(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    """The calls of the operator in the program's graph."""
    operator = torch.ops.rnnfused.recurrent.default
    return [node for node in program.graph.nodes if node.target == operator]


@pytest.fixture(scope="module")
def library() -> Path:
    """The library of operators."""
    path = Path(rnnfused.library_path())
    torch.ops.load_library(path)  # which may be said where it is loaded already
    return path


@pytest.mark.long
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_operator_and_the_layers_bits(kind: str, dynamic: bool, strict: bool) -> None:
    layer = getattr(rnnfused, kind)(INPUT, H, num_layers=2, bidirectional=True, batch_first=True)
    shapes = ({0: Dim("batch"), 1: Dim("steps")},) if dynamic else None
    for grad in (False, True):  # parameters require grad, which must not make it a program for training
        with torch.set_grad_enabled(grad):
            program = export(layer, (torch.randn(2, 6, INPUT),), dynamic_shapes=shapes, strict=strict)
        for graph in (program, program.run_decompositions()):
            (call,) = calls(graph)
            *_, text, save = call.args
            assert text == layer._config().text and save is False
            for batch, steps in ((2, 6), (3, 11), (1, 1)) if dynamic else ((2, 6),):
                x = torch.randn(batch, steps, INPUT)
                with torch.no_grad():
                    assert_same_bits(graph.module()(x), layer(x))


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_packed_rows_of_any_number(strict: bool) -> None:
    model = Packed()
    rows = pack_sequence([torch.randn(n, INPUT) for n in (5, 3, 3, 1)])
    shapes = ({0: Dim.AUTO}, {0: Dim.AUTO})
    with torch.no_grad():
        program = export(model, (rows.data, rows.batch_sizes), dynamic_shapes=shapes, strict=strict)
        for lengths in ((5, 3, 3, 1), (7, 2)):
            other = pack_sequence([torch.randn(n, INPUT) for n in lengths])
            arguments = (other.data, other.batch_sizes)
            assert_same_bits(program.module()(*arguments), model(*arguments))


class Ragged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnnfused.LSTM(INPUT, H, 2, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor, resets: Tensor) -> tuple[Tensor, ...]:
        output, states = self.rnn(x, lengths=lengths, resets=resets)
        return output, *states


def ragged(steps: int, lengths: list[int]) -> tuple[Tensor, ...]:
    x = torch.randn(steps, len(lengths), INPUT)
    return x, torch.tensor(lengths), torch.rand(steps, len(lengths)) < 0.3


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_lengths_and_resets_of_any_batch(strict: bool) -> None:
    model, batch, steps = Ragged(), Dim("batch"), Dim("steps")
    shapes = ({0: steps, 1: batch}, {0: batch}, {0: steps, 1: batch})
    with torch.no_grad():
        program = export(model, ragged(6, [6, 2, 0]), dynamic_shapes=shapes, strict=strict)
        assert len(calls(program)) == 1
        for arguments in (ragged(6, [6, 2, 0]), ragged(9, [1, 9, 3, 0])):
            assert_same_bits(program.module()(*arguments), model(*arguments))
        traced = torch.jit.trace(model, ragged(6, [6, 2, 0]))
        arguments = ragged(9, [1, 9, 3, 0])
        assert_same_bits(traced(*arguments), model(*arguments))


def test_a_trace_of_packed_rows_of_any_number() -> None:
    model = Packed()
    rows = pack_sequence([torch.randn(n, INPUT) for n in (5, 3, 3, 1)])
    traced = torch.jit.trace(model, (rows.data, rows.batch_sizes))
    other = pack_sequence([torch.randn(n, INPUT) for n in (7, 2)])
    assert_same_bits(traced(other.data, other.batch_sizes), model(other.data, other.batch_sizes))


# Runs what the test wrote in a process that knows the library only.
FOREIGN = """
import sys, torch
library, folder = sys.argv[1:]
torch.ops.load_library(library)
runs = {
    "exported": lambda: torch.export.load(f"{folder}/exported.pt2").module(),
    "compiled": lambda: torch._inductor.aoti_load_package(f"{folder}/compiled.pt2"),
    "traced": lambda: torch.jit.load(f"{folder}/traced.pt"),
}
results = {name: [load()(*x) for x in torch.load(f"{folder}/inputs.pt")] for name, load in runs.items()}
torch.save(results, f"{folder}/results.pt")
assert "rnnfused" not in sys.modules
"""


@pytest.mark.long
def test_programs_run_with_the_library_alone(library: Path, tmp_path: Path) -> None:
    model = Everything().eval()
    inputs = [model.inputs(*sizes) for sizes in ((6, 2), (11, 3), (2, 1))]
    with torch.no_grad():
        program = export(model, inputs[0], dynamic_shapes=model.shapes())
        traced = torch.jit.trace(model, inputs[0])
        want = [model(*x) for x in inputs]
    torch.export.save(program, tmp_path / "exported.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "compiled.pt2"))
    torch.jit.save(traced, str(tmp_path / "traced.pt"))
    torch.save(inputs, tmp_path / "inputs.pt")
    subprocess.run([sys.executable, "-c", FOREIGN, str(library), str(tmp_path)], check=True)
    results = torch.load(tmp_path / "results.pt")
    assert len(results) == 3
    for got in results.values():
        for one, other in zip(got, want, strict=True):
            assert_same_bits(one, other)


def find_tool(name: str) -> str:
    """A build tool of this environment, which need not be on PATH, or of the system."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} was not found")
    return found


@pytest.mark.long
def test_the_cpp_program(library: Path, tmp_path: Path) -> None:
    """examples/cpp, built and run as its CMakeLists.txt says."""
    if torch.version.cuda and not shutil.which("nvcc"):
        pytest.skip("torch's CMake package wants nvcc")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no C++ compiler")
    cmake, output = find_tool("cmake"), tmp_path / "output"
    subprocess.run([sys.executable, EXAMPLE / "export.py", "--output", output], check=True)
    configure = [
        *(cmake, "-S", EXAMPLE, "-B", tmp_path / "build", f"-DRNNFUSED_LIBRARY={library}"),
        f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
    ]
    subprocess.run(configure, check=True)
    subprocess.run([cmake, "--build", tmp_path / "build"], check=True)
    done = subprocess.run([tmp_path / "build" / "run", output], stdout=subprocess.PIPE, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["package", "operator"] * 2
    # The operator runs the same kernels; the package has a linear layer of its own beside them.
    assert all(line.endswith(" 0.0e+00") for line in lines if line.startswith("operator"))
