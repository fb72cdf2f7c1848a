"""Builds the extension for this device alone, in place, and beside it the programs of other sections: neither
network nor the environment is touched.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.gpu.device import EXTENSION, emulated_extension
from bench.gpu.part import ROOT, Section, run_logged, tail
from bench.gpu.programs import PROGRAMS, compile_program, find_nvcc

__all__ = ["run", "settings", "spills"]

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
    configure += [f"-DRNNFUSED_ISAS={environment.get('RNNFUSED_ISAS', 'ALL')}"]
    configure += shlex.split(environment["CMAKE_ARGS"])
    install = [cmake, "--install", folder, "--component", "python", "--prefix", str(ROOT / "rnnfused")]
    return [configure, [cmake, "--build", folder], install]


def settings(arch: str, cpus: int, with_cuda: bool, dry_run: bool) -> dict[str, str]:
    """The environment of the build: code for this architecture alone, as many jobs as there are processors,
    and of the CPU paths, which no section measures, the scalar one. A dry run builds what is there already.
    """
    found = {"RNNFUSED_CUDA": "1" if with_cuda else "0", "RNNFUSED_CUDA_ARCHS": f"{arch}-real"}
    found["MAX_JOBS"] = os.environ.get("MAX_JOBS", str(cpus))
    if not dry_run:
        found["RNNFUSED_ISAS"] = "scalar"
    # ptxas then says which kernels spill registers.
    found["CMAKE_ARGS"] = f"{os.environ.get('CMAKE_ARGS', '')} -DCMAKE_CUDA_FLAGS=-Xptxas=-v".strip()
    return found


def _program(name: str, arch: str, end: float) -> str:
    """ "ok", or why it was not compiled. Its section tries once more."""
    try:
        compile_program(name, arch, seconds=end - time.monotonic())
    except RuntimeError as error:
        return str(error)
    return "ok"


def _extension(
    section: Section, commands: list[list[str]], environment: dict[str, str], end: float
) -> dict[str, Any]:
    log = ""
    for command in commands:
        status, output = run_logged(command, end - time.monotonic(), environment)
        log += output
        if status != 0:
            words = shlex.join(command) + (" (no time left)" if status is None else "")
            return {"failed": words, "status": status, "output": tail(output)}
    # 0 kernels where they were compiled before.
    found: dict[str, Any] = {"spills": spills(log), "kernels": len(_SPILL.findall(log))}
    emulated = {EXTENSION: str(emulated_extension())} if section.dry_run else None
    program = "from bench.gpu import device as d; d.take_emulated_extension(); import rnnfused as r"
    status, output = run_logged([sys.executable, "-c", program + "; print(r.show_config())"], 120, emulated)
    found["config"] = output.splitlines()
    if status != 0:
        found["failed"] = "import rnnfused"
    elif not section.dry_run and "stepwise" not in output:
        found["failed"] = "rnnfused has no CUDA kernels"
    return found


def run(section: Section) -> int:
    end = time.monotonic() + section.seconds
    of_device = section.of("device")
    arch = of_device["arch"]
    with_cuda = not section.dry_run or find_nvcc() is not None
    if not with_cuda:
        print("build: nvcc was not found, so the dry run builds for the CPU alone")
    environment = settings(arch, of_device["cpus"], with_cuda, section.dry_run)
    commands = _commands(environment)
    if section.dry_run:
        commands.append(["make", "emulated", "VENV=none", f"PYTHON={sys.executable}"])
    found: dict[str, Any] = {"arch": arch, "commands": [shlex.join(c) for c in commands]}
    # At the same time: each program is one source, and the extension's last ones leave processors idle.
    with ThreadPoolExecutor(len(PROGRAMS)) as pool:
        programs = {name: pool.submit(_program, name, arch, end) for name in PROGRAMS if with_cuda}
        found |= _extension(section, commands, environment, end)
        found["programs"] = {name: made.result() for name, made in programs.items()}
    section.save(found)
    wrong = [name for name, words in found["programs"].items() if words != "ok"]
    print("programs:", found["programs"])
    return 1 if "failed" in found or wrong else 0
