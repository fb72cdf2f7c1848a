"""The CUDA drivers and kernels on a GPU that is emulated: the tests of the layers, run with an extension in
which the CPU plays the GPU (tests/cpp/cuda_on_host, `make emulated`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "gpu",
    "sequence",
    "recompute",
    "functional",
    "modules",
    "autograd",
    "numerics",
    "tangents",
    "walk",
    "layouts",
    "varied",
    "resident",
    "packed_gpu",
    "stepper",
    "frozen",
    "states",
)
# Resident kernels take many threads, and so much of an emulator's time: a file of their own tests them.
RESIDENT = ("resident",)
FEWER = {"RNNFUSED_WALK_CASES": "60", "RNNFUSED_LAYOUT_EXAMPLES": "60"}  # an emulator is slow


@pytest.mark.long
@pytest.mark.skipif("RNNFUSED_TEST_EXTENSION" in os.environ, reason="this is such a run")
@pytest.mark.parametrize("name", FILES)
def test_on_an_emulated_gpu(name: str) -> None:
    built = sorted((ROOT / "build" / "emulated").glob(f"_C.{sys.implementation.cache_tag}-*.so"))
    if not built:
        pytest.skip("the extension whose GPU is emulated is not built: run `make emulated`")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/test_{name}.py"],
        cwd=ROOT,
        env=os.environ
        | {"RNNFUSED_TEST_EXTENSION": str(built[0]), "RNNFUSED_ISA": "scalar"}
        | ({} if name in RESIDENT else {"RNNFUSED_CUDA_DRIVER": "stepwise"})
        | FEWER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert "passed" in run.stdout
