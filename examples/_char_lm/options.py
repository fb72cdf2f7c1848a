"""What the demo can be asked for, and which of it a checkpoint fixes."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _shared.options import (
    OneLineParser,
    absolute_path,
    add_recipe,
    option,
    positive_float,
    positive_int,
    seed_int,
)

DEFAULT_EPOCHS = 1  # no default of the parser's: without --epochs a checkpoint keeps its own


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which numbers training produces; a checkpoint fixes it."""

    text: str | None = option(None, absolute_path, "train on this file, not Python's own sources")
    characters: int = option(400_000, positive_int, "read at most this many characters of the text")
    cell: str = option("lstm", str, "recurrent layer", choices=("lstm", "gru", "rnn"))
    hidden: int = option(256, positive_int, "hidden units of a layer")
    layers: int = option(2, positive_int, "recurrent layers")
    embedding: int = option(64, positive_int, "features of an embedded character")
    batch: int = option(32, positive_int, "stretches of the text read side by side")
    steps: int = option(64, positive_int, "characters that one backward pass reaches back")
    lr: float = option(3e-3, positive_float, "Adam's learning rate")
    clip: float = option(1.0, positive_float, "largest norm of the gradient")
    seed: int = option(0, seed_int, "seed of the initial weights and of the sample")


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    """What every program here can be asked for."""
    parser = OneLineParser(prog=program, description=description)
    add_recipe(parser, Recipe)
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
        ExampleError: for an unknown option or a value out of range.
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
