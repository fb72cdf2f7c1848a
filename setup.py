"""Drives CMake, which holds the build description (CMakeLists.txt); the metadata is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def fail(message: str) -> NoReturn:
    raise SystemExit(f"rnnfused: {message}")


def find_tool(name: str) -> str:
    """The path of a build tool; this environment's own comes first, since pip does not put it on PATH."""
    folders = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    return shutil.which(name, path=os.pathsep.join(folders)) or fail(
        f"{name} was not found: run `{sys.executable} -m pip install {name}`"
    )


def check_setuptools() -> None:
    # Older ones stop at pyproject.toml's licence expression, with a page of text that does not say so.
    if int(setuptools.__version__.split(".")[0]) < 77:
        fail(
            f"setuptools >= 77 is needed, found {setuptools.__version__}: "
            f"run `{sys.executable} -m pip install --upgrade setuptools`"
        )


def check_compiler() -> None:
    candidates = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    if not any(map(shutil.which, candidates)):
        fail(f"no C++ compiler (looked for {', '.join(candidates)}): install g++ >= 11, or set CXX")


def check_torch(requirements: list[str]) -> None:
    """Fails unless torch is installed in the version that `requirements` asks for; torch is not imported,
    because a CUDA build of it may not import where there is no driver."""
    bound = re.search(r"torch>=(\d+)\.(\d+)", " ".join(requirements))
    if bound is None:
        fail("pyproject.toml gives no lower bound for torch")
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        fail(f"torch is not installed for {sys.executable}: install {bound[0]}; use --no-build-isolation")
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"^__version__ = '((\d+)\.(\d+)[^']*)'", text, re.MULTILINE)
    if found is None:
        fail(f"cannot read torch's version in {spec.origin}")
    if (int(found[2]), int(found[3])) < (int(bound[1]), int(bound[2])):
        fail(f"{bound[0]} is needed, found torch {found[1]}")


def cuda_options(environment: Mapping[str, str]) -> list[str]:
    wanted, archs = environment.get("RNNFUSED_CUDA", ""), environment.get("RNNFUSED_CUDA_ARCHS", "")
    if wanted not in ("", "0", "1"):
        fail(f"RNNFUSED_CUDA: expected 0 or 1, got {wanted!r}")
    # Both are always given, so that nothing of an earlier build stays.
    switch = {"": "AUTO", "0": "OFF", "1": "ON"}[wanted]
    return [f"-DRNNFUSED_CUDA={switch}", f"-DRNNFUSED_CUDA_ARCHS={archs}"]


def run(*command: str | Path) -> None:
    words = [str(word) for word in command]
    if subprocess.run(words, check=False).returncode != 0:
        fail(f"this command failed, its output is above: {shlex.join(words)}")


class CMakeBuild(build_ext):
    """Configures, builds and installs the CMake component `python` where setuptools expects the extension.

    Environment: CXX (compiler), RNNFUSED_CUDA (1 insists on CUDA kernels, 0 leaves them out; else they are
    built where nvcc is found), RNNFUSED_CUDA_ARCHS ("90a", "80;90a": the GPUs to build for; else all),
    RNNFUSED_ISAS ("NATIVE": what this processor runs best alone; "scalar;avx2": these; else all CPU paths),
    CMAKE_ARGS (more arguments to configure with), MAX_JOBS (parallel compiles).
    """

    def run(self) -> None:
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        check_compiler()
        check_torch(self.distribution.install_requires)

        # Not self.build_temp: editable installs make that a fresh folder, and so would compile all anew.
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-{self.plat_name}"
        run(
            *(cmake, "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
            *(f"-DPython_EXECUTABLE={sys.executable}", "-DRNNFUSED_BUILD_CPP_TESTS=OFF"),
            *cuda_options(os.environ),
            f"-DRNNFUSED_ISAS={os.environ.get('RNNFUSED_ISAS') or 'ALL'}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        )
        jobs = os.environ.get("MAX_JOBS")
        # The tests' targets live in the same folder (`make test`).
        run(cmake, "--build", build, "--target", "_C", *(["--parallel", jobs] if jobs else []))

        package = Path(self.get_ext_fullpath("rnnfused._C")).resolve().parent
        for stale in package.glob("*.so"):
            stale.unlink()
        run(cmake, "--install", build, "--component", "python", "--prefix", package)


check_setuptools()
setup(ext_modules=[Extension("rnnfused._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
