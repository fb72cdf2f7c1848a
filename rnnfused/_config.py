"""What this installation is and how it runs."""

from __future__ import annotations

import torch

from rnnfused._load import _C, build_info

__all__ = ["show_config"]


def show_config() -> str:
    """Describes the build and the choices made at run time, one per line."""
    lines = {
        "rnnfused": f"{build_info.version} (built for torch {build_info.torch} with {build_info.compiler})",
        "torch": torch.__version__,
        "cpu isa": f"{_C.isa()} (usable: {', '.join(_C.available_isas())}; RNNFUSED_ISA chooses)",
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads; at most one a processor, 1 if forked)",
        "cells": ", ".join(_C.cell_names()),
        "dtypes": "float32, float64",
        "cuda": build_info.cuda or "not built",
        "drivers": "native forward and backward; higher and forward-mode derivatives decomposed",
        "plans": "RNNFUSED_LOG=plan prints how each call shares out its work",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
