"""What the demo can be asked for, and which of it a checkpoint fixes."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from . import DemoError

DEFAULT_EPOCHS = 2  # no default of the parser's: without --epochs a checkpoint keeps its own


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


def seed_int(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2**63 - 1, got {text}")
    return value


def absolute_path(text: str) -> str:
    return str(Path(text).resolve())


def _option(
    default: Any, kind: Callable[[str], Any], meaning: str, choices: Sequence[str] | None = None
) -> Any:
    return field(default=default, metadata={"type": kind, "help": meaning, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which numbers training produces; a checkpoint fixes it."""

    text: str | None = _option(None, absolute_path, "train on this file, not Python's own sources")
    characters: int = _option(500_000, positive_int, "read at most this many characters of the text")
    cell: str = _option("lstm", str, "recurrent layer", choices=("lstm", "gru", "rnn"))
    hidden: int = _option(256, positive_int, "hidden units of a layer")
    layers: int = _option(2, positive_int, "recurrent layers")
    embedding: int = _option(64, positive_int, "features of an embedded character")
    batch: int = _option(32, positive_int, "stretches of the text read side by side")
    steps: int = _option(64, positive_int, "characters that one backward pass reaches back")
    lr: float = _option(3e-3, positive_float, "Adam's learning rate")
    clip: float = _option(1.0, positive_float, "largest norm of the gradient")
    seed: int = _option(0, seed_int, "seed of the initial weights and of the sample")


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise DemoError(f"{message} (--help lists the options)")


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    """What every program here can be asked for."""
    parser = _OneLineParser(prog=program, description=description)
    for option in fields(Recipe):
        shown = "" if option.default is None else f" (default {option.default})"
        details = {**option.metadata, "help": option.metadata["help"] + shown}
        parser.add_argument(f"--{option.name}", **details)
    parser.add_argument(
        "--epochs", type=positive_int, help=f"passes over the text (default {DEFAULT_EPOCHS})"
    )
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder (default demo-output)"
    )
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read char_lm.py's command line; options of the recipe that were not given are None.

    Raises:
        DemoError: for an unknown option or a value out of range.
    """
    parser = _parser(
        "char_lm.py", "Train a character language model with rnnfused, then with torch.nn, and compare."
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default cpu)"
    )
    parser.add_argument(
        "--peer",
        choices=("torch", "none"),
        default="torch",
        help="train this as well and compare (default torch)",
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=("float32", "bfloat16"),
        default=("float32", "bfloat16"),
        help="train in each; bfloat16 by autocast (default both)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="train rnnfused's model by torch.compile(fullgraph=True)"
    )
    parser.add_argument("--resume", type=Path, metavar="CHECKPOINT", help="continue where this one stopped")
    parser.add_argument("--sample-length", type=positive_int, default=600, help="characters (default 600)")
    parser.add_argument(
        "--temperature", type=positive_float, default=0.8, help="below 1 makes the sample tamer (default 0.8)"
    )
    return parser.parse_args(arguments)


def parse_distributed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read char_lm_distributed.py's command line, as `parse` does."""
    parser = _parser(
        "char_lm_distributed.py", "Train a character language model in the processes that torchrun starts."
    )
    parser.add_argument(
        "--sharding",
        choices=("ddp", "fsdp"),
        default="ddp",
        help="ddp: every process holds the model; fsdp: a share of it (default ddp)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the output folder's checkpoint, if there is one"
    )
    return parser.parse_args(arguments)


def given_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the recipe that the command line named."""
    named = {option.name: getattr(options, option.name) for option in fields(Recipe)}
    return {name: value for name, value in named.items() if value is not None}
