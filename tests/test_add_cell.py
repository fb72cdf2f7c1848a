"""Adding a cell takes what docs/adding-a-cell.md says, and nothing else.

The blocks of the page are applied to a copy of the source, the copy is built for one ISA, and the tests that
iterate the registry run there for the new cell, on the CPU and on an emulated GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "adding-a-cell.md"
CELL = "mgu"
COPIED = ("bench", "csrc", "rnnfused", "tests", "CMakeLists.txt", "pyproject.toml")
NOT_COPIED = shutil.ignore_patterns("*.so", "_build_info.py", "__pycache__")

# The second derivative, which no other test takes of every cell.
DOUBLE_BACKWARD = f"""
import torch, rnnfused
from rnnfused._layer import LayerConfig
from rnnfused._ops import recurrent
print(rnnfused.__file__)
torch.manual_seed(0)
leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True)
          for s in ((3, 2, 2), (1, 2, 3), (6, 2), (6, 3), (6,), (6,))]
def run(x, h, *weights):
    y, h_n = recurrent(LayerConfig({CELL!r}), x, (h,), weights)
    return y, h_n
assert torch.autograd.gradcheck(run, leaves) and torch.autograd.gradgradcheck(run, leaves)
"""


def apply_page(root: Path) -> None:
    """A file's name precedes each block of the page: a new file in full, or a diff without line numbers."""
    blocks = re.findall(
        r"^`([^`]+)`[^\n]*:\n\n```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert blocks
    for path, kind, text in blocks:
        file = root / path
        if kind != "diff":
            assert not file.exists(), f"{path} is not new"
            file.write_text(text)
            continue
        lines = text.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        source = file.read_text()
        assert source.count(before) == 1, (
            f"{path}: expected once, found {source.count(before)} times:\n{before}"
        )
        file.write_text(source.replace(before, after))


# By the resident kernels, in one size, since their emulation takes long.
RESIDENT = f"""
import conftest, numpy, torch
from test_sequence import Problem, check_errors
from tolerances import FLOOR_ULPS
size = (4, 9, 5, 40)
for dtype in (torch.float16, torch.bfloat16):
    options = dict(dtype=numpy.float64, ragged=True, bidirectional=True, bias=True)
    problem = Problem({CELL!r}, False, size, **options).rounded(dtype)
    bound = FLOOR_ULPS * numpy.sqrt(4 * 9 + 40) * torch.finfo(dtype).eps
    check_errors(problem.native("cpu", dtype), problem.exact(), bound, size)
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    # Tools of this environment come first, as they do in setup.py; the copy hides any other rnnfused.
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(cwd)} | variables
    environment.pop("RNNFUSED_ISA", None)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def build(root: Path) -> None:
    # Most of the time goes into torch's headers; the kernels keep their own flags.
    run(
        *("cmake", "-S", ".", "-B", "build", "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"),
        *("-DRNNFUSED_ISAS=scalar", "-DRNNFUSED_BUILD_CPP_TESTS=OFF", "-DCMAKE_BUILD_TYPE=None"),
        *("-DRNNFUSED_CUDA=OFF", "-DRNNFUSED_BUILD_EMULATED=ON"),
        cwd=root,
    )
    run("cmake", "--build", "build", cwd=root)
    run("cmake", "--install", "build", "--component", "python", "--prefix", "rnnfused", cwd=root)


@pytest.mark.long
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler")
def test_the_page_is_all_there_is_to_do(tmp_path: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=NOT_COPIED)
        else:
            shutil.copy(source, tmp_path / name)
    apply_page(tmp_path)
    build(tmp_path)
    imported = run(sys.executable, "-c", DOUBLE_BACKWARD, cwd=tmp_path)
    assert Path(imported.strip()).is_relative_to(tmp_path)
    pytest_run = (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        f"{CELL} or list_of_cells",
    )
    run(
        *pytest_run, *(f"tests/test_{name}.py" for name in ("sequence", "reference", "convert")), cwd=tmp_path
    )
    (emulated,) = (tmp_path / "build" / "emulated").glob("_C.*.so")
    on_gpu = {"RNNFUSED_TEST_EXTENSION": str(emulated)}
    run(*pytest_run, "tests/test_gpu.py", cwd=tmp_path, RNNFUSED_CUDA_DRIVER="stepwise", **on_gpu)
    run(sys.executable, "-c", RESIDENT, cwd=tmp_path / "tests", PYTHONPATH=str(tmp_path), **on_gpu)
