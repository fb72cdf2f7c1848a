"""What this installation is, how it runs, and what it keeps."""

from __future__ import annotations

from pathlib import Path

import torch

from rnnfused._load import _C, build_info

__all__ = ["empty_cache", "library_path", "show_config"]


def library_path() -> str:
    """The shared library that holds the operators, without any Python in it.

    `torch.ops.load_library` loads it into a process that runs exported models without rnnfused, and C++
    programs link it or open it.
    """
    return str(Path(_C.__file__).with_name("librnnfused.so"))


def empty_cache() -> None:
    """Gives the memory that is kept for later calls back to the system: `torch.cuda.empty_cache` for the CPU.

    Freed outputs, gradients, tapes and scratch of 1 MiB and more are kept, 256 MiB at most: a training step
    takes the same memory again and again, and fresh pages cost time.
    """
    _C.empty_cache()


def _cuda() -> str:
    if build_info.cuda is None:
        return "not built (nvcc was not found, or RNNFUSED_CUDA=0)"
    count = torch.cuda.device_count()  # which does not start CUDA: this may run before a fork
    return (
        f"resident driver where it fits, else stepwise (RNNFUSED_CUDA_DRIVER; nvcc {build_info.cuda} "
        f"for {', '.join(build_info.cuda_archs)}); {count or 'no'} device{'s' if count > 1 else ''}"
    )


def _dtypes() -> str:
    pairs = _C.terms_at_once(torch.bfloat16) > 1
    words = {1: "one by one", 2: "in pairs of 16 bits", 4: "four at a time"}
    return (
        "float32, float64, float16, bfloat16 (on the CPU the last is multiplied "
        f"{'in pairs' if pairs else 'in float32'}, float16 in float32); weights of int8 (multiplied "
        f"{words[_C.terms_at_once(torch.int8)]})"
    )


def _processors() -> str:
    losses, scarce = _C.scarcity()
    if losses == 0:
        return "enough so far (no call lost its time waiting for one)"
    now = "; calls of short steps run on one thread now" if scarce else ""
    return f"scarce: {losses} calls of short steps lost their time waiting for one{now}"


def show_config() -> str:
    """Describes the build and the choices made at run time, one per line."""
    lines = {
        "rnnfused": f"{build_info.version} (built for torch {build_info.torch} with {build_info.compiler})",
        "torch": torch.__version__,
        "cpu isa": f"{_C.isa()} (usable: {', '.join(_C.available_isas())}; RNNFUSED_ISA chooses)",
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads; at most one a processor, 1 if forked)",
        "processors": _processors(),
        "cells": ", ".join(_C.cell_names()),
        "dtypes": _dtypes(),
        "cuda": _cuda(),
        "drivers": "native forward, backward, tangents, double backward; third derivatives decomposed",
        "memory": f"{_C.kept_bytes() / 2**20:.0f} MiB of freed memory kept (at most 256; empty_cache)",
        "plans": "serial, partition, streams or wavefront by size (RNNFUSED_LOG=plan prints each)",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
