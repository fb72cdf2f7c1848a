"""Imports the compiled extension, or says in words why it cannot be imported.

The other modules write `from rnnfused._load import _C` and so never meet a bare linker error.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import torch

__all__ = ["_C", "build_info"]


def check_torch(built: str, installed: str) -> None:
    """Raises ImportError unless both torch versions are of the same minor release ("2.13.0+cpu" is of 2.13).

    torch keeps its binary interface stable within a minor release only; without this check the
    extension would fail with an undefined symbol, or not at once.
    """
    if built.split(".")[:2] != installed.split(".")[:2]:
        raise ImportError(
            f"rnnfused was built for torch {built}, but torch {installed} is installed: build rnnfused again "
            "(pip install --no-build-isolation), or install the torch release it was built for"
        )


def import_built(name: str) -> ModuleType:
    """Imports `rnnfused.<name>`, a module that the build makes; raises ImportError if it was not made."""
    full_name = f"rnnfused.{name}"
    try:
        return importlib.import_module(full_name)
    except ModuleNotFoundError as error:
        if error.name != full_name:
            raise
        raise ImportError(
            f"{full_name} is not built for this Python ({sys.implementation.cache_tag}): run "
            "`pip install --no-build-isolation .` in rnnfused's source folder (`-e .` to work on it)"
        ) from None


if TYPE_CHECKING:
    from rnnfused import _C
    from rnnfused import _build_info as build_info
else:
    build_info = import_built("_build_info")
    check_torch(build_info.torch, torch.__version__)
    _C = import_built("_C")
