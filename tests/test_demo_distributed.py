"""The demo in two processes at tiny sizes: equal to one process, exact resumption, its errors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from processes import Group
from tolerances import CURVE_BITS, CURVE_TORCH_ERRORS

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import char_lm_distributed
from _char_lm.corpus import load_corpus
from _char_lm.model import RNNFUSED, TORCH
from _char_lm.options import Recipe
from _char_lm.training import Run
from _shared.interrupt import Interrupt

SIZES = {"hidden": 12, "embedding": 6, "batch": 4, "steps": 8}
each_sharding = pytest.mark.parametrize("sharding", ["ddp", "fsdp"])


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    pair = Group(tmp_path_factory.mktemp("group"))
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n} squared is {n * n}, and halved it is {n / 2:g}.\n" for n in range(40)))
    return path


def arguments(output: Path, *more: object, sizes: dict[str, int] = SIZES) -> list[str]:
    options = [f"--{name}={value}" for name, value in sizes.items()]
    return [f"--output={output}", "--threads=1", *options, *map(str, more)]


def alone(output: Path, *more: object) -> dict[str, Any]:
    """Run in this process, which is then a group of its own, and return the history."""
    assert char_lm_distributed.main(arguments(output, *more)) == 0
    assert not dist.is_initialized()
    return history(output)


def together(group: Group, output: Path, *more: object) -> dict[str, Any]:
    assert group.run(char_lm_distributed.main, arguments(output, *more)) == [0, 0]
    return history(output)


def history(output: Path) -> dict[str, Any]:
    """What the only checkpoint says: losses and held-out losses; the clock is another at every run."""
    (progress,) = output.glob("checkpoint-*/progress.json")
    found = json.loads(progress.read_text())["runs"][RNNFUSED]["history"]
    assert len(found.pop("seconds")) == len(found["losses"])
    return found


def largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    pairs = [pair for name in ("losses", "held_out") for pair in zip(ours[name], theirs[name], strict=True)]
    return max(abs(one - other) for one, other in pairs)


def stopped(arguments: list[str], step: int, rank: int) -> int:
    """A signal comes to one process during a step."""
    whole = Run.step

    def step_and_signal(run: Run, window: int) -> None:
        whole(run, window)
        if len(run.history.losses) == step and dist.get_rank() == rank:
            signal.raise_signal(signal.SIGTERM)

    with patch.object(Run, "step", step_and_signal):
        return char_lm_distributed.main(arguments)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These sizes give a second thread nothing to do but wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rounding(text: Path) -> float:
    """What two curves of float32 may differ by: from torch.nn's own distance from float64 (tolerances.py)."""
    recipe = Recipe(text=str(text), **SIZES)
    corpus = load_corpus(recipe)

    def train(dtype: torch.dtype) -> dict[str, Any]:
        run = Run(TORCH, recipe, corpus, "cpu")
        run.model.to(dtype)
        for _ in range(2):
            run.train_epoch(2, Interrupt())
        return {"losses": run.history.losses, "held_out": run.history.held_out}

    return CURVE_TORCH_ERRORS * largest_difference(train(torch.float32), train(torch.float64)) + CURVE_BITS


@pytest.mark.long
def test_under_torchrun(tmp_path: Path, text: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=localhost"]
    command = [*launcher, "--nproc-per-node=2", char_lm_distributed.__file__]
    process = subprocess.Popen(
        [*command, *arguments(tmp_path, "--text", text, "--epochs=1")],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.terminate()  # and with it those that it started
        process.wait()
    assert process.returncode == 0, errors
    assert "processes: 2, ddp; steps before: 0" in output
    assert re.search(r"rnnfused epoch 1/1: training \d\.\d{3}, .*, [\d,]+ characters/second", output)
    assert output.count("epoch 1/1") == 1, "more than one process reports"
    assert re.search(r"training loss +\d\.\d{4}  bits/character", output)
    assert len(history(tmp_path)["held_out"]) == 1


@pytest.mark.long
@each_sharding
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_two_processes_have_the_losses_of_one(
    group: Group, tmp_path: Path, text: Path, rounding: float, cell: str, sharding: str
) -> None:
    options = "--text", text, "--cell", cell
    one = alone(tmp_path / "one", *options)
    two = together(group, tmp_path / "two", *options, "--sharding", sharding)
    assert largest_difference(two, one) <= rounding
    assert one["losses"][-1] < one["losses"][0]


def test_one_process_has_the_losses_of_the_demo(tmp_path: Path, text: Path) -> None:
    recipe = Recipe(text=str(text), **SIZES)
    run = Run(RNNFUSED, recipe, load_corpus(recipe), "cpu")
    run.train_epoch(1, Interrupt())
    expected = {"losses": run.history.losses, "held_out": run.history.held_out}
    assert alone(tmp_path, "--text", text, "--epochs=1") == expected


@pytest.mark.long
@each_sharding
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_resuming_after_an_epoch_equals_never_having_stopped(
    group: Group, tmp_path: Path, text: Path, cell: str, sharding: str
) -> None:
    options = "--text", text, "--cell", cell, "--sharding", sharding
    whole = together(group, tmp_path / "whole", *options, "--epochs=2")
    together(group, tmp_path / "half", *options, "--epochs=1")
    assert together(group, tmp_path / "half", *options, "--epochs=2", "--resume") == whole


@pytest.mark.long
@each_sharding
def test_a_signal_to_one_process_stops_all_and_loses_nothing(
    group: Group, tmp_path: Path, text: Path, sharding: str
) -> None:
    options = "--text", text, "--sharding", sharding
    whole = together(group, tmp_path / "whole", *options)
    cut = arguments(tmp_path / "cut", *options)
    assert group.run(stopped, cut, 5, 1) == [130, 130]
    assert len(history(tmp_path / "cut")["losses"]) == 5
    assert together(group, tmp_path / "cut", *options, "--resume") == whole


@pytest.mark.long
@pytest.mark.parametrize("first, second", [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_a_run_goes_on_with_other_processes_and_sharding(
    group: Group, tmp_path: Path, text: Path, rounding: float, first: str, second: str
) -> None:
    whole = alone(tmp_path / "whole", "--text", text, "--epochs=2")
    cut = arguments(tmp_path / "cut", "--text", text, "--sharding", first)
    assert group.run(stopped, cut, 5, 0) == [130, 130]
    alone(tmp_path / "cut", "--text", text, "--epochs=1", "--resume")
    resumed = together(
        group, tmp_path / "cut", "--text", text, "--epochs=2", "--resume", "--sharding", second
    )
    assert largest_difference(resumed, whole) <= rounding


def test_resume_begins_where_there_is_no_checkpoint(tmp_path: Path, text: Path) -> None:
    assert alone(tmp_path, "--text", text, "--epochs=1", "--resume")["held_out"]


def test_a_checkpoint_that_was_cut_short_does_not_count(tmp_path: Path, text: Path) -> None:
    alone(tmp_path, "--text", text, "--epochs=1")
    (tmp_path / "checkpoint-999").mkdir()
    alone(tmp_path, "--epochs=2", "--resume")
    (written,) = tmp_path.glob("checkpoint-*/.metadata")
    assert written.parent.name != "checkpoint-999"


def errors_of(command: list[str]) -> list[str]:
    """The lines on stderr of a command that must fail with code 2."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        assert char_lm_distributed.main(command) == 2
    return errors.getvalue().splitlines()


@pytest.mark.long
def test_a_batch_that_cannot_be_shared_gets_one_clear_line(group: Group, tmp_path: Path, text: Path) -> None:
    command = arguments(tmp_path, "--text", text, sizes=SIZES | {"batch": 3})
    for lines in group.run(errors_of, command):
        assert lines == ["char_lm_distributed.py: --batch: expected a multiple of the 2 processes, got 3"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((), "holds a checkpoint: --resume continues it, or choose another --output"),
        (("--resume", "--hidden=5"), r"other options than --hidden 5 \(checkpoint: 12\)"),
        (("--resume", "--text", __file__), "trained on another text"),
        (("--resume", "--epochs=1"), "already in epoch 2"),
        (("--sharding=zero",), "--sharding: invalid choice: 'zero'"),
    ],
)
def test_what_does_not_fit_gets_one_clear_line(
    tmp_path: Path, text: Path, wrong: tuple[str, ...], message: str
) -> None:
    alone(tmp_path, "--text", text, "--epochs=2")
    (line,) = errors_of([f"--output={tmp_path}", "--threads=1", *wrong])
    assert re.search(message, line)


def test_a_folder_that_is_no_checkpoint_gets_one_clear_line(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / ".metadata").touch()
    (folder / "progress.json").write_text("[]")
    (line,) = errors_of([f"--output={tmp_path}", "--resume"])
    assert line == f"char_lm_distributed.py: not a checkpoint of this demo: {folder}"
