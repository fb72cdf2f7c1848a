"""Builds the extension for this device alone, in place: neither network nor the environment is touched."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
import time
from typing import Any

from bench.gpu.device import EXTENSION, emulated_extension
from bench.gpu.part import ROOT, Section, run_logged, tail

__all__ = ["find_nvcc", "run", "spills"]

_SPILL = re.compile(r"Function properties for (\S+)\n\s*\d+ bytes stack frame, (\d+) bytes spill stores")


def spills(log: str) -> dict[str, int]:
    """Bytes of spilled registers of each kernel that has some, as ptxas tells them."""
    return {name: int(stored) for name, stored in _SPILL.findall(log) if int(stored) > 0}


def _setuptools_is_new_enough() -> bool:
    try:
        import setuptools
    except ImportError:
        return False
    return int(setuptools.__version__.split(".")[0]) >= 77


def _commands(environment: dict[str, str]) -> list[list[str]]:
    """setup.py's way; where setuptools is missing or older than it takes, what it would have CMake do."""
    if _setuptools_is_new_enough():
        return [[sys.executable, "setup.py", "build_ext", "--inplace"]]
    print("build: setuptools >= 77 was not found: CMake is called without it")
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    cmake, ninja = (shutil.which(tool, path=path) or tool for tool in ("cmake", "ninja"))
    folder = str(ROOT / "build" / "suite")
    cuda = "ON" if environment["RNNFUSED_CUDA"] == "1" else "OFF"
    configure = [cmake, "-S", str(ROOT), "-B", folder, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-DRNNFUSED_BUILD_CPP_TESTS=OFF",
        f"-DRNNFUSED_CUDA={cuda}",
    ]
    configure += [f"-DRNNFUSED_CUDA_ARCHS={environment['RNNFUSED_CUDA_ARCHS']}"]
    configure += shlex.split(environment["CMAKE_ARGS"])
    install = [cmake, "--install", folder, "--component", "python", "--prefix", str(ROOT / "rnnfused")]
    return [configure, [cmake, "--build", folder], install]


def find_nvcc() -> str | None:
    """Where tools/ensure_nvcc looks for an installed one."""
    candidates = (os.environ.get("CUDACXX"), "nvcc", "/usr/local/cuda/bin/nvcc")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def run(section: Section) -> int:
    end = time.monotonic() + section.seconds
    arch = section.of("device")["arch"]
    if section.dry_run and find_nvcc() is None:
        print("build: nvcc was not found, so the dry run builds for the CPU alone")
    with_cuda = not section.dry_run or find_nvcc() is not None
    environment = {"RNNFUSED_CUDA": "1" if with_cuda else "0", "RNNFUSED_CUDA_ARCHS": arch}
    # ptxas then says which kernels spill registers.
    environment["CMAKE_ARGS"] = f"{os.environ.get('CMAKE_ARGS', '')} -DCMAKE_CUDA_FLAGS=-Xptxas=-v".strip()
    commands = _commands(environment)
    if section.dry_run:
        environment["MAX_JOBS"] = os.environ.get("MAX_JOBS", "2")
        commands.append(["make", "emulated", "VENV=none", f"PYTHON={sys.executable}"])
    log = ""
    found: dict[str, Any] = {"arch": arch, "commands": [shlex.join(c) for c in commands]}
    for command in commands:
        status, output = run_logged(command, end - time.monotonic(), environment)
        log += output
        if status != 0:
            section.save(found | {"failed": shlex.join(command), "status": status, "output": tail(output)})
            return 1
    found["spills"] = spills(log)
    found["kernels"] = len(_SPILL.findall(log))  # 0 where they were compiled before

    emulated = {EXTENSION: str(emulated_extension())} if section.dry_run else None
    program = "from bench.gpu import device as d; d.take_emulated_extension(); import rnnfused as r"
    status, output = run_logged([sys.executable, "-c", program + "; print(r.show_config())"], 120, emulated)
    found["config"] = output.splitlines()
    if status != 0:
        found["failed"] = "import rnnfused"
    elif not section.dry_run and "stepwise" not in output:
        found["failed"] = "rnnfused has no CUDA kernels"
    section.save(found)
    return 1 if "failed" in found else 0
