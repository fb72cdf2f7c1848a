"""Command lines: the options that a dataclass describes, and how they must agree with a checkpoint's."""

import argparse
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from . import ExampleError

RecipeT = TypeVar("RecipeT")


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text}")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text}")
    return value


def seed_int(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2**63 - 1, got {text}")
    return value


def absolute_path(text: str) -> str:
    return str(Path(text).resolve())


def option(
    default: Any, kind: Callable[[str], Any], meaning: str, choices: Sequence[str] | None = None
) -> Any:
    """A field of a recipe: a dataclass of everything that decides which numbers training produces."""
    return field(default=default, metadata={"type": kind, "help": meaning, "choices": choices})


class OneLineParser(argparse.ArgumentParser):
    """Raises ExampleError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ExampleError(f"{message} (--help lists the options)")


def add_recipe(parser: argparse.ArgumentParser, recipe: type) -> None:
    """An option for each field of a recipe; one that is not given is None."""
    for described in fields(recipe):
        shown = "" if described.default is None else f" (default {described.default})"
        details = {**described.metadata, "help": described.metadata["help"] + shown}
        parser.add_argument(f"--{described.name.replace('_', '-')}", **details)


def given_recipe(options: argparse.Namespace, recipe: type) -> dict[str, Any]:
    """The options of a recipe that the command line named."""
    named = {described.name: getattr(options, described.name) for described in fields(recipe)}
    return {name: value for name, value in named.items() if value is not None}


def resumed_recipe(saved: RecipeT, given: dict[str, Any], path: Collection[str]) -> RecipeT:
    """A checkpoint's recipe; what the command line gives must agree with it.

    Where data lies (the options that `path` names) may differ: its fingerprint is what counts.

    Raises:
        ExampleError: naming every option that differs.
    """
    values = asdict(saved)
    differing = [
        f"--{name.replace('_', '-')} {value} (checkpoint: {values[name]})"
        for name, value in given.items()
        if name not in path and value != values[name]
    ]
    if differing:
        raise ExampleError(f"the checkpoint was made with other options than {', '.join(differing)}")
    return replace(saved, **{name: given[name] for name in path if name in given})
