"""The demo end to end at tiny sizes: its results, exact resumption, agreement with torch.nn, its errors."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerances import CURVE_BITS, CURVE_FLOAT64_BITS, CURVE_TORCH_ERRORS

import rnnfused

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import char_lm
from _char_lm.corpus import UNKNOWN, cut_streams, load_corpus
from _char_lm.model import RNNFUSED, RNNFUSED_BF16, TORCH, TORCH_BF16, build_model, refusal, sample
from _char_lm.options import Recipe
from _char_lm.report import COMPARED, block_rates, largest_difference
from _char_lm.training import Run

SIZES = {"hidden": 12, "embedding": 6, "batch": 4, "steps": 8}
CELLS = ("lstm", "gru", "rnn")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} squared is {n * n}, and halved it is {n / 2:g}.\n" for n in range(110)))
    return path


def arguments(output: Path, *more: object, sizes: dict[str, int] = SIZES) -> list[str]:
    options = [f"--{name}={value}" for name, value in sizes.items()]
    return [f"--output={output}", "--threads=1", *options, *map(str, more)]


def run_demo(output: Path, *more: object) -> dict:
    """Run to the end and return the checkpoint."""
    assert char_lm.main(arguments(output, *more)) == 0
    return load(output)


def load(output: Path) -> dict:
    return torch.load(output / "checkpoint.pt", weights_only=True)


def assert_same_training(ours: dict, expected: dict) -> None:
    """Bit for bit, but for the clock and the record of the path."""
    assert ours["runs"].keys() == expected["runs"].keys()
    for backend, run in ours["runs"].items():
        other = expected["runs"][backend]
        assert run["history"]["losses"] == other["history"]["losses"]
        assert run["history"]["held_out"] == other["history"]["held_out"]
        for part in ("model", "optimizer", "carried", "generator"):
            torch.testing.assert_close(flat(run[part]), flat(other[part]), rtol=0, atol=0)


def flat(value: object) -> list:
    """The leaves of nested dicts, lists and tuples, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, (list, tuple)) else [value]


def error_of(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    """Run a command that must fail with code 2 and one line on stderr; return the line."""
    assert char_lm.main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_it_writes_a_checkpoint_a_plot_and_a_sample(tmp_path: Path, text: Path) -> None:
    command = [sys.executable, char_lm.__file__, *arguments(tmp_path, "--text", text, "--sample-length=50")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert len((tmp_path / "sample.txt").read_text()) == 50
    peers = [TORCH] if refusal(TORCH_BF16, Recipe(), "cpu") else [TORCH, TORCH_BF16]
    assert load(tmp_path)["runs"].keys() == {RNNFUSED, RNNFUSED_BF16, *peers}
    assert ("torch.nn bf16: left out" in done.stdout) == (TORCH_BF16 not in peers)
    each = 2 + len(peers)
    assert re.search(rf"training loss( +\d\.\d{{4}}){{{each}}}  bits/character", done.stdout)
    assert re.search(rf"held-out loss( +\d\.\d{{4}}){{{each}}}  bits/character", done.stdout)
    for ours in (RNNFUSED, RNNFUSED_BF16):
        for peer in peers:
            line = rf"speed-up of {ours} over {peer}: [\d.]+x \(median\), [\d.]+x \(total\)"
            assert re.search(line, done.stdout)
    assert "largest difference of the losses of rnnfused and torch.nn over the first 100 steps" in done.stdout
    assert re.search(r"held-out loss of rnnfused bf16 less that of rnnfused: [+-]0\.\d{4}", done.stdout)
    bought = done.stdout[
        done.stdout.index("what switching from torch.nn to rnnfused buys here, on 1 thread:") :
    ]
    faster = ["training, float32", "training on single lines", "generation", "generation, 8-bit weights"]
    if TORCH_BF16 in peers:
        faster.append("training, bfloat16")
    for what in faster:
        assert re.search(rf"^  {what}( +[\d,]+){{2}} +\d+\.\d\dx  characters/second$", bought, re.MULTILINE)
    for precision in ("float32", "bfloat16")[: len(peers)]:
        assert re.search(
            rf"^  held-out loss, {precision}( +\d\.\d{{4}}){{2}} +bits/character$", bought, re.MULTILINE
        )
    for kind in ("float32", "bf16", "f16", "int8"):
        assert re.search(rf"^  {kind} +\d\.\d{{4}}  [+-]0\.\d{{4}}$", done.stdout, re.MULTILINE)
    assert "rnnfused epoch 1/1" in done.stderr, "no progress bar"


def test_it_trains_on_the_standard_library_by_default(tmp_path: Path) -> None:
    checkpoint = run_demo(tmp_path, "--characters=4000", "--epochs=2", "--peer=none")
    losses = checkpoint["runs"][RNNFUSED]["history"]["losses"]
    assert losses[-1] < losses[0]


@pytest.mark.long
def test_it_trains_compiled(tmp_path: Path, text: Path) -> None:
    checkpoint = run_demo(tmp_path, "--text", text, "--compile", "--epochs=2", "--peer=none")
    assert checkpoint["runs"].keys() == {RNNFUSED, RNNFUSED_BF16}


def test_without_matplotlib_it_says_that_no_plot_was_written(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run_demo(tmp_path, "--text", text, "--epochs=1", "--peer=none")
    assert "no plot: matplotlib cannot be imported" in capsys.readouterr().out
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.long
@pytest.mark.parametrize("cell", CELLS)
def test_resuming_after_an_epoch_equals_never_having_stopped(tmp_path: Path, text: Path, cell: str) -> None:
    whole = run_demo(tmp_path / "whole", "--text", text, "--cell", cell, "--epochs=2")
    run_demo(tmp_path / "half", "--text", text, "--cell", cell, "--epochs=1")
    resumed = run_demo(tmp_path / "resumed", "--resume", tmp_path / "half" / "checkpoint.pt", "--epochs=2")
    assert_same_training(resumed, whole)


@pytest.mark.long
@pytest.mark.parametrize("stop_in", [RNNFUSED, TORCH, RNNFUSED_BF16])
def test_ctrl_c_saves_a_checkpoint_that_continues_exactly(
    tmp_path: Path,
    text: Path,
    stop_in: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = Run.step

    def step_and_interrupt(run: Run, window: int) -> None:
        step(run, window)
        if run.backend == stop_in and len(run.history.losses) == 5:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", step_and_interrupt)
        assert char_lm.main(arguments(tmp_path / "cut", "--text", text, "--epochs=1")) == 130
    path = tmp_path / "cut" / "checkpoint.pt"
    assert f"--resume {path}" in capsys.readouterr().err
    assert len(load(tmp_path / "cut")["runs"][stop_in]["history"]["losses"]) == 5

    resumed = run_demo(tmp_path / "resumed", "--resume", path)
    assert_same_training(resumed, run_demo(tmp_path / "whole", "--text", text, "--epochs=1"))


def test_a_second_ctrl_c_stops_at_once(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt_twice(run: Run, window: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second interrupt did not stop the step")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Run, "step", interrupt_twice)
    assert char_lm.main(arguments(tmp_path, "--text", text)) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("interrupted")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("cell", CELLS)
def test_the_losses_are_those_of_torch(text: Path, cell: str) -> None:
    recipe = Recipe(text=str(text), cell=cell, **SIZES)
    corpus = load_corpus(recipe)

    def train(backend: str, dtype: torch.dtype) -> Run:
        run = Run(backend, recipe, corpus, "cpu")
        run.model.to(dtype)
        for window in range(COMPARED):
            run.step(window)
        return run

    exact = train(TORCH, torch.float64)
    allowed = CURVE_TORCH_ERRORS * largest_difference(train(TORCH, torch.float32), exact) + CURVE_BITS
    assert largest_difference(train(RNNFUSED, torch.float32), exact) <= allowed
    assert largest_difference(train(RNNFUSED, torch.float64), exact) <= CURVE_FLOAT64_BITS


@pytest.mark.parametrize("cell", CELLS)
def test_both_backends_start_from_the_same_weights_and_only_the_layer_differs(cell: str) -> None:
    recipe = Recipe(cell=cell, **SIZES)
    ours, peer = (build_model(backend, 20, recipe) for backend in (RNNFUSED, TORCH))
    torch.testing.assert_close(ours.state_dict(), peer.state_dict(), rtol=0, atol=0)
    assert type(ours.recurrent) is getattr(rnnfused, cell.upper())
    assert type(peer.recurrent) is getattr(torch.nn, cell.upper())


def test_the_tail_is_held_out_and_its_new_characters_are_unknown(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("ab" * 950 + "z" * 100)
    corpus = load_corpus(Recipe(text=str(path), **SIZES))
    assert corpus.vocabulary == UNKNOWN + "ab"
    assert corpus.training.tolist() == [1, 2] * 950
    assert corpus.held_out.tolist() == [0] * 100


def test_windows_follow_each_other_in_every_column() -> None:
    inputs, targets = cut_streams(torch.arange(12), batch=3)
    assert inputs.t().tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert torch.equal(targets, inputs + 1)


@pytest.mark.parametrize("cell", CELLS)
def test_a_sample_repeats_and_never_contains_the_unknown(text: Path, cell: str) -> None:
    recipe = Recipe(text=str(text), cell=cell, **SIZES)
    vocabulary = load_corpus(recipe).vocabulary
    model = build_model(RNNFUSED, len(vocabulary), recipe)
    drawn = sample(model, vocabulary, length=200, temperature=1.0, seed=3)
    assert drawn == sample(model, vocabulary, length=200, temperature=1.0, seed=3)
    assert len(drawn) == 200
    assert UNKNOWN not in drawn
    # One state after the other, by a Stepper or by calls of the layer: the same text.
    assert drawn == sample(build_model(TORCH, len(vocabulary), recipe), vocabulary, 200, 1.0, 3)


def test_a_sample_follows_the_probabilities(text: Path) -> None:
    recipe = Recipe(text=str(text), **SIZES)
    vocabulary = load_corpus(recipe).vocabulary
    model = build_model(RNNFUSED, len(vocabulary), recipe)
    with torch.no_grad():
        model.scores.weight.zero_()  # whatever came before
        model.scores.bias.normal_(generator=torch.Generator().manual_seed(1))
    drawn = sample(model, vocabulary, length=8000, temperature=0.7, seed=3)
    shares = torch.tensor([drawn.count(character) / len(drawn) for character in vocabulary[1:]])
    torch.testing.assert_close(shares, (model.scores.bias[1:] / 0.7).softmax(0), atol=0.02, rtol=0)


def test_blocks_of_steps_are_timed_whole(text: Path) -> None:
    recipe = Recipe(text=str(text), **SIZES)
    run = Run(TORCH, recipe, load_corpus(recipe), "cpu")
    run.history.seconds = [1.0] * 10 + [2.0] * 10 + [100.0]
    assert block_rates(run) == [32.0, 16.0]
    run.history.seconds = [2.0] * 3
    assert block_rates(run) == [16.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--text=missing.txt"], "cannot read the text .*missing.txt: No such file"),
        (["--text=."], "cannot read the text .*: Is a directory"),
        (["--characters=99"], "text too short: .* gives 99 characters, and batch 4 x steps 8 needs 100"),
        (["--resume=missing.pt"], "checkpoint not found: missing.pt"),
        (["--hidden=0"], "--hidden: expected an integer of at least 1, got 0"),
        (["--lr=nan"], "--lr: expected a finite number above 0, got nan"),
        (["--seed=-1"], "--seed: expected an integer from 0"),
        (["--cell=elman"], "--cell: invalid choice: 'elman'"),
        (["--hiden=3"], "unrecognized arguments: --hiden=3"),
    ],
)
def test_a_wrong_option_gets_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], message: str
) -> None:
    assert re.search(message, error_of(capsys, arguments(tmp_path / "output", *wrong)))
    assert not (tmp_path / "output").exists()


def test_a_text_that_cannot_be_decoded_gets_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.bin"
    path.write_bytes(b"\xff" * 4000)
    error = error_of(capsys, arguments(tmp_path / "output", "--text", path))
    assert f"no text to train on: {path} gives only bytes that UTF-8 cannot decode" in error


def test_cuda_without_a_device_gets_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no usable CUDA device" in error_of(capsys, arguments(tmp_path, "--device=cuda"))


def test_an_output_folder_that_is_a_file_gets_one_clear_line(
    text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"File exists: '{text}'" in error_of(capsys, arguments(text, "--text", text))


def test_a_checkpoint_that_does_not_fit_gets_one_clear_line(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_demo(tmp_path, "--text", text, "--epochs=2", "--peer=none")
    path = tmp_path / "checkpoint.pt"
    capsys.readouterr()
    other_text, garbage = tmp_path / "other.txt", tmp_path / "garbage.pt"
    other_text.write_text(text.read_text().upper())
    garbage.write_bytes(b"not a checkpoint")

    def error(*options: object, sizes: dict[str, int] = SIZES) -> str:
        return error_of(capsys, arguments(tmp_path / "again", *options, sizes=sizes))

    assert "--hidden 5 (checkpoint: 12)" in error("--resume", path, sizes={"hidden": 5})
    assert "--cell gru (checkpoint: lstm)" in error("--resume", path, "--cell=gru")
    assert "trained on another text" in error("--resume", path, "--text", other_text)
    assert "already in epoch 2" in error("--resume", path, "--epochs=1")
    assert "not a checkpoint of this demo" in error("--resume", garbage)
