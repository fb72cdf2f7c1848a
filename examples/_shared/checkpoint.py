"""Checkpoints: tensors and plain values in one file, named by a format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from . import ExampleError
from .files import replacing

T = TypeVar("T")


def save_checkpoint(path: Path, form: str, content: dict[str, Any]) -> None:
    """Replace the file at once; `form` is what `read_checkpoint` must be given to read it."""
    with replacing(path) as file:
        torch.save({"format": form, **content}, file)


def read_checkpoint(path: Path, form: str, program: str, build: Callable[[dict[str, Any]], T]) -> T:
    """What `build` makes of the content; only tensors and plain values are unpickled, never code.

    Raises:
        ExampleError: when the file is missing, or is not a checkpoint of the program.
    """
    if not path.is_file():
        raise ExampleError(f"checkpoint not found: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != form:
            raise ValueError("another format")
        return build(content)
    except Exception as error:  # torch.load raises nearly anything, depending on which byte is wrong
        raise ExampleError(f"not a checkpoint of {program}: {path}") from error
