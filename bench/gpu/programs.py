"""What is compiled beside the extension: kernels for a GPU by nvcc, or for the host against the emulation."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.part import ROOT, run_logged, tail

__all__ = ["PROGRAMS", "built", "compile_program", "emulation_library", "find_nvcc"]

FOLDER = ROOT / "build" / "gpu-programs"
EMULATION = ROOT / "tests" / "cpp" / "cuda_on_host"
COMPILE_SECONDS = 120.0  # more than a slow machine takes


@dataclass(frozen=True)
class Program:
    source: Path
    shared: bool = False  # a library to load


PROGRAMS = {
    "limits": Program(ROOT / "bench/gpu/limits.cu", shared=True),
    "wrappers": Program(EMULATION / "wrappers" / "main.cu"),
}


def find_nvcc() -> str | None:
    """Where tools/ensure_nvcc looks for an installed one."""
    candidates = (os.environ.get("CUDACXX"), "nvcc", "/usr/local/cuda/bin/nvcc")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def emulation_library() -> Path:
    """Of the emulator, as `make emulated` leaves it; it need not be there."""
    return ROOT / "build" / "emulated" / "librnnfused_cuda_emulation.a"


def _command(program: Program, arch: str | None) -> list[str]:
    csrc = ["-I", str(ROOT / "csrc")]
    if arch is None:
        command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O2", "-pthread"]
        command += ["-fPIC", "-shared"] if program.shared else []
        # The emulation's cuda/ptx.cuh and cuda/launch.cuh are found first.
        command += ["-I", str(EMULATION), *csrc, "-x", "c++", str(program.source)]
        return [*command, "-x", "none", str(emulation_library())]
    command = [find_nvcc() or "nvcc", "-std=c++17", "-O3", *csrc]
    command += ["-Xcompiler=-fPIC", "-shared"] if program.shared else []
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}"]
    return [*command, str(program.source)]


def _output(name: str, arch: str | None) -> Path:
    return FOLDER / f"{name}-{arch or 'host'}{'.so' if PROGRAMS[name].shared else ''}"


def compile_program(
    name: str, arch: str | None, folder: Path | None = None, seconds: float = COMPILE_SECONDS
) -> Path:
    """For a GPU of that architecture, or for the host. Raises RuntimeError with the compiler's words."""
    program, output = PROGRAMS[name], _output(name, arch)
    output = (folder or FOLDER) / output.name
    output.parent.mkdir(parents=True, exist_ok=True)
    # Whoever uses it meets a whole one.
    fresh = output.with_suffix(".new")
    command = [*_command(program, arch), "-o", str(fresh)]
    try:
        status, words = run_logged(command, seconds)
    except FileNotFoundError:
        raise RuntimeError(f"{program.source.name}: the compiler {command[0]} was not found") from None
    if status is None:
        raise RuntimeError(f"{program.source.name}: not compiled in {seconds:.0f} s")
    if status != 0:
        raise RuntimeError(f"{program.source.name} does not compile: {tail(words)}")
    fresh.replace(output)
    return output


def _is_fresh(name: str, arch: str | None) -> bool:
    output = _output(name, arch)
    if not output.exists():
        return False
    folders = (ROOT / "csrc" / "cuda", ROOT / "csrc" / "core", ROOT / "bench" / "gpu", EMULATION)
    sources = [path for folder in folders for path in folder.rglob("*") if path.suffix in _SOURCES]
    if arch is None and emulation_library().exists():
        sources.append(emulation_library())
    return output.stat().st_mtime > max(path.stat().st_mtime for path in sources)


_SOURCES = (".h", ".cpp", ".cu", ".cuh")


def built(name: str, arch: str | None) -> Path:
    """As the build section left it; compiled now where it is missing or older than a source."""
    return _output(name, arch) if _is_fresh(name, arch) else compile_program(name, arch)
