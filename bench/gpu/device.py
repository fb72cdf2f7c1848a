"""Which device the suite runs on, and which state of the sources."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.gpu.part import ROOT, Section

__all__ = ["commit", "emulated_extension", "run", "safe_name", "sources", "take_emulated_extension"]

EXTENSION = "RNNFUSED_TEST_EXTENSION"  # as the tests call it: the extension whose GPU is emulated


def safe_name(text: str) -> str:
    """For a file's name: "NVIDIA H100 80GB HBM3" is nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"


def sources() -> str:
    """A hash of what the extension is built from, for a copy of the tree that git does not know."""
    found = hashlib.sha256()
    for folder in ("csrc", "rnnfused"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".py") and path.name != "_build_info.py":
                found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def commit() -> str:
    """RNNFUSED_COMMIT, else what git says, else the hash of the sources."""
    if given := os.environ.get("RNNFUSED_COMMIT"):
        return given
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"sources-{sources()}"
    return run.stdout.strip() or f"sources-{sources()}"


def emulated_extension() -> Path | None:
    """What `make emulated` built for this Python."""
    folder = ROOT / "build" / "emulated"
    built = sorted(folder.glob(f"_C.{sys.implementation.cache_tag}-*.so"))
    return built[0] if built else None


def take_emulated_extension() -> None:
    """Before rnnfused is imported: the extension that the environment names takes the built one's place."""
    if path := os.environ.get(EXTENSION):
        spec = importlib.util.spec_from_file_location("rnnfused._C", path)
        if spec is None or spec.loader is None:
            raise RuntimeError(f"{EXTENSION}: expected an extension module, got {path}")
        sys.modules["rnnfused._C"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["rnnfused._C"])


def _arch(major: int, minor: int) -> str:
    """As RNNFUSED_CUDA_ARCHS takes it. From 9.0 on the instructions of this very architecture count too."""
    return f"{major}{minor}" + ("a" if major >= 9 else "")


def _driver() -> str:
    try:
        run = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu", "--format=csv"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "nvidia-smi was not found"
    return run.stdout.strip() or run.stderr.strip()


def _l2_bytes(properties: Any) -> int:
    if not hasattr(properties, "L2_cache_size"):
        print("device: this torch does not tell the size of the L2 cache: 64 MiB are assumed")
    return int(getattr(properties, "L2_cache_size", 64 << 20))


def run(section: Section) -> int:
    import torch

    found: dict[str, Any] = {
        "commit": commit(),
        "sources": sources(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": len(os.sched_getaffinity(0)),
    }
    if section.dry_run:
        found |= {"name": "dry run", "arch": "90a", "multiprocessors": 4, "l2_bytes": 1 << 20}
    elif not torch.cuda.is_available():
        print("device: torch finds no CUDA device (--dry-run does without)", file=sys.stderr)
        return 1
    else:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": properties.name,
            "arch": _arch(properties.major, properties.minor),
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": _l2_bytes(properties),
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    section.save(found)
    print(*(f"{name}: {value}" for name, value in found.items()), sep="\n")
    return 0
