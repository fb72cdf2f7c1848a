"""The examples at tiny sizes on a share of their real data: results, exact resumption, errors."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from tolerances import EXAMPLES_CURVE
from torch import nn
from torch.testing import assert_close

from bench.applications import APPLICATIONS
from bench.applications import line as table_line

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import fetch_data
import forecast
import sentiment
import tagging
import transliterate
from _shared import ExampleError, data
from _shared.comparison import compare
from _shared.data import DATA_SETS, DataSet, MissingData, cache_folder, find, shuffled_split
from _shared.example import RNNFUSED, TEST, TORCH, VALIDATION, Example, Measure, Recipe
from _shared.interrupt import Interrupt
from _shared.ragged import mask, pad, run_ragged
from _shared.results import ratio
from _shared.series import SeriesClassifier, limited, read_ts, standardised
from _shared.training import Run

import rnnfused

EXAMPLES = Path(__file__).parents[1] / "examples"

# What makes an example run for a second or two, with at least three steps an epoch.
TINY = {
    "sentiment": ["--limit=120", "--hidden=8", "--embedding=8", "--batch=16"],
    "speech": ["--limit=120", "--hidden=8"],
    "handwriting": ["--limit=120", "--hidden=8"],
    "gestures": ["--limit=60", "--hidden=8", "--batch=10"],
    "tagging": ["--limit=80", "--hidden=8", "--embedding=8", "--longest=80"],
    "forecast": ["--series=sunspots", "--hidden=8"],
    "transliterate": ["--limit=60", "--hidden=8", "--embedding=8", "--batch=16"],
}
FROM_THE_LIBRARY = {"tagging"}  # Python's own sources: data that no machine lacks
COMMON = ["--threads=1", "--epochs=2", "--seeds=1"]
each_example = pytest.mark.parametrize("name", APPLICATIONS)


pytestmark = pytest.mark.usefixtures("one_thread")


def example(name: str) -> type[Example]:
    """The class that the program of that name compares."""
    classes = [found for found in vars(importlib.import_module(name)).values() if isinstance(found, type)]
    return next(found for found in classes if issubclass(found, Example) and found.__module__ == name)


def need_data(name: str) -> None:
    """Skip where the data is not there, unless RNNFUSED_REQUIRE_DATA forbids that."""
    try:
        example(name).files(example(name).recipe())
    except MissingData as missing:
        if os.environ.get("RNNFUSED_REQUIRE_DATA"):
            raise
        pytest.skip(str(missing))


def arguments(name: str, output: Path, *more: object) -> list[str]:
    return [*TINY[name], *COMMON, f"--output={output}", *map(str, more)]


def run(name: str, output: Path, *more: object) -> dict[str, Any]:
    """Run to the end and return the checkpoint."""
    need_data(name)
    assert compare(example(name), arguments(name, output, *more)) == 0
    return checkpoint(output)


def checkpoint(output: Path) -> dict[str, Any]:
    return torch.load(output / "checkpoint.pt", weights_only=True)


def error_of(capsys: pytest.CaptureFixture[str], name: str, command: list[str]) -> str:
    """Run what must fail with code 2 and one line on stderr; return the line."""
    assert compare(example(name), command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}.py: ")
    return line


def test_every_application_has_a_tiny_form() -> None:
    assert TINY.keys() == set(APPLICATIONS)


@pytest.mark.long
@each_example
def test_it_runs_and_writes_its_results(name: str, tmp_path: Path) -> None:
    need_data(name)
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments(name, tmp_path, "--seeds=2")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"seed 0 {RNNFUSED} epoch 1/2" in done.stderr, "no progress bar"
    assert re.search(rf"^speed-up of {RNNFUSED} over {re.escape(TORCH)}: [\d.]+x", done.stdout, re.MULTILINE)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n")

    results = json.loads((tmp_path / "results.json").read_text())
    assert results["example"] == name
    assert results["command"].startswith(f"python examples/{name}.py --")
    assert results["threads"] == 1
    assert results["versions"]["torch"] == torch.__version__
    assert results["model"]["parameters"] > 0
    assert results["ratio"] > 0
    assert results["runs"].keys() == {RNNFUSED, TORCH}
    for runs in results["runs"].values():
        assert [found["seed"] for found in runs] == [0, 1]
        for found in runs:
            assert found["seconds"] > 0
            assert found["further"].keys() == {measure.name for measure in example(name).also}
            assert len(found["losses_of_epochs"]) == 2
            assert found["quality"] == found["quality_of_epochs"]["test"][found["epoch"] - 1]
    assert results["data"]["description"] in table_line(results, [f"examples/{name}.py"])


@pytest.mark.long
@each_example
def test_both_backends_train_to_the_same_curve_at_first(name: str, tmp_path: Path) -> None:
    """The same weights, batches and dropout: the loss of the first steps differs by rounding."""
    runs = run(name, tmp_path)["runs"]
    ours, theirs = (
        torch.tensor(runs[f"0 {backend}"]["history"]["losses"][:3]) for backend in (RNNFUSED, TORCH)
    )
    assert_close(ours, theirs, rtol=EXAMPLES_CURVE, atol=EXAMPLES_CURVE)


@pytest.mark.long
@each_example
@pytest.mark.parametrize("stop_in", [RNNFUSED, TORCH])
def test_ctrl_c_saves_a_checkpoint_that_continues_exactly(
    name: str,
    stop_in: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = run(name, tmp_path / "whole")
    step = Run.step

    def step_and_interrupt(self: Run, items: list[int]) -> None:
        step(self, items)
        if self.backend == stop_in and len(self.history.losses) == self.steps_of_an_epoch + 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", step_and_interrupt)
        assert compare(example(name), arguments(name, tmp_path / "cut")) == 130
    path = tmp_path / "cut" / "checkpoint.pt"
    assert f"--resume {path} continues" in capsys.readouterr().err

    assert (
        compare(example(name), [f"--output={tmp_path / 'resumed'}", f"--resume={path}", "--threads=1"]) == 0
    )
    resumed = checkpoint(tmp_path / "resumed")
    assert resumed["runs"].keys() == whole["runs"].keys()
    for key, expected in whole["runs"].items():
        found = resumed["runs"][key]
        for history in (found["history"], expected["history"]):
            assert len(history.pop("seconds")) == len(history["losses"])
        assert found["history"] == expected["history"]
        assert_close(found["model"], expected["model"], rtol=0, atol=0)


def hide_data(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """As on a machine on which nothing is installed or fetched."""

    def not_installed(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(data, "distribution", not_installed)
    monkeypatch.setenv("RNNFUSED_DATA", str(cache))


@pytest.mark.parametrize("name", [name for name in APPLICATIONS if name not in FROM_THE_LIBRARY])
def test_missing_data_gets_one_clear_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide_data(monkeypatch, tmp_path)
    error = error_of(capsys, name, arguments(name, tmp_path / "output"))
    data_set = DATA_SETS[example(name).data_set]
    for part in (data_set.requirement, "`make data`", "--data PATH", str(tmp_path)):
        assert part in error
    assert "--data: no file" in error_of(capsys, name, ["--data", str(tmp_path)])
    assert not (tmp_path / "output").exists()


@each_example
def test_its_help_names_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare(example(name), ["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--data", "--quick", "--resume", "--output", "--seeds", "--threads", "--peer"):
        assert option in shown


def test_what_does_not_fit_gets_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("sentiment", tmp_path)
    path = tmp_path / "checkpoint.pt"
    other = tmp_path / "other.txt"
    other.write_text("1\t2.5\tGood\n2\t-2.5\tBad\n")
    capsys.readouterr()

    def error(*options: object) -> str:
        return error_of(capsys, "sentiment", list(map(str, options)))

    assert "--hidden 9 (checkpoint: 8)" in error("--resume", path, "--hidden=9")
    assert "trained on other data" in error("--resume", path, "--data", other)
    assert "not a checkpoint of sentiment.py" in error("--resume", other)
    assert "--limit: expected an integer of at least 1, got 0" in error("--limit=0")
    other.write_text("1 2.5 Good\n")
    assert "line 1: expected number, rating and text" in error("--data", other)
    for rating in ("nan", "inf"):
        other.write_text(f"1\t2.5\tGood\n2\t{rating}\tBad\n")
        assert "line 2: expected number, rating and text" in error("--data", other)
    other.write_text("1\t0\tGood\n")
    assert "expected at least 2 rated sentences, got 0" in error("--data", other)


@pytest.mark.parametrize("name", ["handwriting", "sentiment", "transliterate"])
def test_a_limit_that_leaves_nothing_to_train_on_gets_one_clear_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_data(name)
    error = error_of(capsys, name, arguments(name, tmp_path / "output", "--limit=1"))
    assert "expected at least 2 items, to train on and to hold out, got 1: --limit" in error


def series_file(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["# a comment", "@data", *lines]))
    return path


def test_series_are_read_by_feature_and_class(tmp_path: Path) -> None:
    first, second = read_ts(series_file(tmp_path / "a.ts", "1,2,3:4,5,6:2", "7:8:1"), classes=2)
    assert_close(first, (torch.tensor([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]), 1))
    assert_close(second, (torch.tensor([[7.0, 8.0]]), 0))


@pytest.mark.parametrize(
    "wrong", ["1,2:3:1", "1,2:3,x:1", "1,2:3,nan:1", "1,2:3,4:3", "1,2:3,4:0", ":1", "1"]
)
def test_what_is_no_series_gets_one_clear_line(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(
        ExampleError, match=r"line 4: expected features of equal length and a class from 1 to 2"
    ):
        read_ts(series_file(tmp_path / "a.ts", "1,2:3,4:1", wrong), classes=2)
    with pytest.raises(ExampleError, match="expected at least one series, got none"):
        read_ts(series_file(tmp_path / "a.ts"), classes=2)


def test_a_limit_takes_the_same_share_of_all_parts() -> None:
    parts = [[(torch.zeros(1, 1), number) for number in range(count)] for count in (30, 60)]
    assert [len(part) for part in limited(parts, 9)] == [3, 6]
    assert [len(part) for part in limited(parts, 1)] == [1, 1]
    for limit in (None, 1000):
        assert [sorted(label for _, label in part) for part in limited(parts, limit)] == [
            list(range(30)),
            list(range(60)),
        ]


def test_a_limit_takes_both_classes_of_a_file_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "snippets.txt"
    path.write_text("".join(f"{n}\t{1 if n < 200 else -1}\tword {n}\n" for n in range(400)))
    example = sentiment.Sentiment(sentiment.SentimentRecipe(limit=100), {"snippets": path})
    positive = sum(label for _, label in (*example.training, *example.held_out))
    assert 30 < positive < 70


def test_series_are_standardised_by_those_to_train_on() -> None:
    training = [(torch.tensor([[0.0, 5.0], [2.0, 7.0]]), 0), (torch.tensor([[4.0, 9.0]]), 1)]
    standard, held_out = standardised(training, [(torch.tensor([[6.0, 7.0]]), 1)])
    steps = torch.cat([series for series, _ in standard])
    assert_close(steps.mean(0), torch.zeros(2))
    assert_close(steps.std(0), torch.ones(2))
    assert_close(held_out, [(torch.tensor([[2.0, 0.0]]), 1)])


def test_padding_tells_a_classifier_of_series_nothing() -> None:
    recurrent = nn.GRU(3, 5, batch_first=True, bidirectional=True)
    model = rnnfused.convert(SeriesClassifier(recurrent, 4, 0.0))
    series = [torch.randn(length, 3) for length in (2, 7, 1)]
    scores = model(*pad(series))
    assert scores.shape == (3, 4)
    assert_close(scores, torch.cat([model(*pad([one])) for one in series]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0,1,2\n", "line 1: expected 64 pixels from 0 to 16 and a digit"),
        ("17," + "0," * 63 + "1\n", "line 1: expected 64 pixels from 0 to 16 and a digit"),
        ("inf," + "0," * 63 + "1\n", "line 1: expected 64 pixels from 0 to 16 and a digit"),
        ("0," * 64 + "1\n", "expected at least 2 digits, got 1"),
    ],
    ids=["too few pixels", "too dark", "infinite", "too few digits"],
)
def test_what_is_no_digits_gets_one_clear_line(
    lines: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    assert message in error_of(capsys, "handwriting", ["--data", str(path)])


def test_digits_that_are_not_compressed_get_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(b"no gzip")
    message = "expected a text file that gzip has compressed"
    assert message in error_of(capsys, "handwriting", ["--data", str(path)])


@pytest.mark.parametrize("name", ["speech", "gestures", "handwriting"])
def test_an_example_draws_its_picture_and_counts_its_mistakes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, tmp_path, "--peer=none")
    (picture,) = set(tmp_path.glob("*.png")) - {tmp_path / "plot.png"}
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    quality = json.loads((tmp_path / "results.json").read_text())["runs"][RNNFUSED][0]["quality"]
    told = re.search(r"(\d+) of (\d+) held out are taken for another", capsys.readouterr().out)
    assert told is not None
    mistakes, held_out = map(int, told.groups())
    assert quality == pytest.approx(100 * (1 - mistakes / held_out))


def test_tokens_are_labelled_as_tokenize_tells_them(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        'def f():  # why\n    return f"{1}", """\n\n2"""\n\n\nx = (\n\n    3)\n\nif True: pass\n'
    )
    first, second, third = tagging.read(source, longest=60)
    found = [
        (piece.text[begin:end], tagging.KINDS[kind])
        for piece in (first, second, third)
        for begin, end, kind in tagging.spans(piece.labels)
    ]
    assert found == [
        ("def", "keyword"),
        ("f", "name"),
        ("(", "operator"),
        (")", "operator"),
        (":", "operator"),
        ("# why", "comment"),
        ("return", "keyword"),
        ('f"{1}"', "string"),
        (",", "operator"),
        ('"""\n\n2"""', "string"),
        ("x", "name"),
        ("=", "operator"),
        ("(", "operator"),
        ("3", "number"),
        (")", "operator"),
        ("if", "keyword"),
        ("True", "keyword"),
        (":", "operator"),
        ("pass", "keyword"),
    ]
    assert second.text == "x = (\n\n    3)\n", "blank lines inside a statement end no piece"


def test_source_is_cut_between_statements_and_leaves_out_those_that_are_too_long(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("a = 1\nb = 2\nc = 3\nd = 4444444444444444\ne = 5\n")
    assert [piece.text for piece in tagging.read(source, longest=12)] == [
        "a = 1\nb = 2\n",
        "c = 3\n",
        "e = 5\n",
    ]
    source.write_text("a = 1\n\f\nb = 2\n")
    assert [piece.text for piece in tagging.read(source, longest=12)] == ["a = 1\n", "b = 2\n"], "a form feed"
    source.write_text("(\n")
    assert list(tagging.read(source, longest=12)) == [], "not Python"


def test_a_token_counts_if_its_characters_and_its_kind_are_right() -> None:
    labels = [2, 1, 2, 0, 3, 5, 6, 6, 4, 0]
    assert list(tagging.spans(labels)) == [(0, 1, 0), (1, 3, 0), (4, 5, 1), (5, 8, 2), (8, 9, 1)]
    assert list(tagging.spans([])) == []
    assert sum([tagging.Counts(2, 3, 1), tagging.Counts(1, 2, 1)], tagging.Counts()).f1 == 0.5


def test_source_that_is_missing_gets_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error() -> str:
        return error_of(capsys, "tagging", [f"--data={tmp_path}", f"--output={tmp_path}"])

    (tmp_path / "folder.py").mkdir()
    assert "at least 2 Python files, got 0" in error()
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text("(\n")
    assert "no piece of source to train on, or none to hold out" in error()


def test_gaps_of_a_series_are_interpolated(tmp_path: Path) -> None:
    path = tmp_path / "series.csv"
    path.write_text("date,value\n20000101,1\n20000108,\n20000115,\n20000122,4\n")
    years, values = forecast.read(path, "%Y%m%d")
    assert values == pytest.approx([1, 2, 3, 4])
    assert years == pytest.approx([2000 + day / 365.25 for day in (0, 7, 14, 21)])


def test_a_series_that_cannot_be_forecast_gets_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "series.csv"

    def error(content: str) -> str:
        path.write_text(content)
        command = ["--series=sunspots", f"--data={path}", f"--output={tmp_path}"]
        return error_of(capsys, "forecast", command)

    assert "line 3: expected a date and a number" in error("year,spots\n1700,1\n1701,many\n")
    too_long = "1" * (csv.field_size_limit() + 1)
    assert "line 3: expected a date and a number" in error(f"year,spots\n1700,1\n1701,{too_long}\n")
    assert "a number in the first and in the last row" in error("year,spots\n1700,1\n1701,\n")
    assert "expected at least 110 values of sunspots, got 2" in error("year,spots\n1700,1\n1701,2\n")


def test_training_never_sees_what_is_forecast(tmp_path: Path) -> None:
    """Other values at the end change no batch; a model that forecasts no change is the seasonal naive one."""
    years, values = range(1700, 1700 + 150), [float(7 * year % 50) for year in range(150)]

    def forecasting(values: list[float]) -> forecast.Forecast:
        path = tmp_path / "series.csv"
        rows = [f"{year},{value}" for year, value in zip(years, values, strict=True)]
        path.write_text("\n".join(["year,spots", *rows]))
        return forecast.Forecast(forecast.ForecastRecipe(series="sunspots"), {"series.csv": path})

    whole = forecasting(values)
    other = forecasting([*values[:-66], *(900.0 for _ in range(66))])
    items = list(range(whole.training_items))
    assert_close(whole.batch(items), other.batch(items), rtol=0, atol=0)
    model = whole.build()
    nn.init.zeros_(model.quantiles.weight)
    nn.init.zeros_(model.quantiles.bias)
    with torch.no_grad():
        assert whole.quality(model, TEST) == 1.0


def test_quantiles_minimise_the_quantile_loss() -> None:
    truth = torch.linspace(0, 1, 10001)
    right = torch.tensor(forecast.QUANTILES)
    least = forecast.quantile_loss(right.expand(10001, 3), truth)
    for change in torch.eye(3) * 0.05:
        for moved in (right + change, right - change):
            assert forecast.quantile_loss(moved.expand(10001, 3), truth) > least


def test_without_matplotlib_it_says_that_no_plot_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run("sentiment", tmp_path, "--peer=none")
    assert "no plot.png: matplotlib cannot be imported" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["ratio"] is None


def test_data_comes_from_a_package_before_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_data(monkeypatch, tmp_path / "cache")
    with pytest.raises(MissingData):
        find("digits")
    cached = cache_folder("digits") / "digits.csv.gz"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert find("digits") == {"digits.csv.gz": cached}

    class Installed:
        def locate_file(self, path: str) -> Path:
            return tmp_path / "site" / path

    monkeypatch.setattr(data, "distribution", lambda package: Installed())
    assert find("digits") == {"digits.csv.gz": cached}, "a package that lacks the file"
    installed = tmp_path / "site" / "sklearn/datasets/data/digits.csv.gz"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert find("digits") == {"digits.csv.gz": installed}
    assert find("digits", cached) == find("digits", cached.parent) == {"digits.csv.gz": cached}


def archive_of(members: dict[str, bytes], kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "wheel":
        with zipfile.ZipFile(stream, "w") as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode="w:gz") as sdist:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                sdist.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_fetching_keeps_the_members_alone_and_fetches_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = archive_of({"in/a.txt": b"a"}, "sdist")
    archives = {
        "one": archive_of({"one/in.tar.gz": inner, "one/other": b""}, "sdist"),
        "two": archive_of({"two/b.txt": b"b", "two/c.txt": b"c"}, "wheel"),
    }
    sets = {
        "a": DataSet("one", "1", "sdist", "MIT", {"a.txt": ("one/in.tar.gz", "in/a.txt")}),
        "b": DataSet("two", "2", "wheel", "MIT", {"b.txt": ("two/b.txt",)}),
        "c": DataSet("two", "2", "wheel", "MIT", {"c.txt": ("two/c.txt",)}),
    }
    downloads: list[str] = []

    def download(data_set: DataSet, folder: Path) -> bytes:
        downloads.append(data_set.package)
        return archives[data_set.package]

    monkeypatch.setenv("RNNFUSED_DATA", str(tmp_path))
    monkeypatch.setattr(fetch_data, "_download", download)
    for module in (data, fetch_data):
        monkeypatch.setattr(module, "DATA_SETS", sets)
    assert fetch_data.main([]) == fetch_data.main([]) == 0
    assert downloads == ["one", "two"]
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.read_bytes() for path in files] == [b"a", b"b", b"c"]
    assert capsys.readouterr().out.count("downloading") == 2


def test_without_a_network_fetching_gets_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RNNFUSED_DATA", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert fetch_data.main(["digits"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip cannot download scikit-learn==" in line


@pytest.mark.parametrize("batch_first", [True, False])
def test_both_backends_give_the_same_of_ragged_sequences(batch_first: bool) -> None:
    peer = nn.LSTM(3, 5, batch_first=batch_first, bidirectional=True)
    ours = rnnfused.LSTM(3, 5, batch_first=batch_first, bidirectional=True)
    ours.load_state_dict(peer.state_dict())
    padded, lengths = pad([torch.randn(length, 3) for length in (2, 7, 1)], batch_first)
    assert mask(lengths).sum(1).tolist() == [2, 7, 1]
    found, expected = (run_ragged(layer, padded, lengths) for layer in (ours, peer))
    assert_close(found, expected)


def test_a_split_is_always_the_same_and_leaves_nothing_out() -> None:
    training, validation, held_out = shuffled_split(50, 0.1, 0.2)
    assert [len(part) for part in (training, validation, held_out)] == [35, 5, 10]
    assert sorted(training + validation + held_out) == list(range(50))
    assert shuffled_split(50, 0.1, 0.2) == [training, validation, held_out]
    assert list(map(len, shuffled_split(3, 0.1, 0.2))) == [1, 1, 1]
    with pytest.raises(ExampleError, match="expected at least 3 items, to train on and to hold out, got 2"):
        shuffled_split(2, 0.1, 0.2)


class Counting(Example):
    """The quality that each epoch brings is a list; the model only has to exist."""

    name = "counting"
    measure = Measure("error", "", higher_is_better=False)
    parts = (VALIDATION, TEST)
    training_items = 4

    def __init__(self) -> None:
        self.values = {VALIDATION: [3.0, 1.0, 2.0], TEST: [5.0, 6.0, 4.0]}

    def describe_data(self) -> str:
        return "none"

    def describe_model(self) -> str:
        return "linear"

    def build(self) -> nn.Module:
        return nn.Linear(1, 1)

    def batch(self, items: list[int]) -> torch.Tensor:
        return torch.tensor(items, dtype=torch.float32).unsqueeze(1)

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean()

    def quality(self, model: nn.Module, part: str) -> float:
        return self.values[part].pop(0)


def catalogue(path: Path, names: dict[str, str]) -> None:
    """Write names as gettext's compiled catalogue: two tables of lengths and offsets, then the texts."""
    texts = [text.encode() for column in zip(*sorted(names.items()), strict=True) for text in column]
    tables, content = b"", b""
    for text in texts:
        tables += struct.pack("<2I", len(text), 28 + 8 * len(texts) + len(content))
        content += text + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(names), 28, 28 + 4 * len(texts), 0, 0)
    path.write_bytes(header + tables + content)


def test_names_in_katakana_alone_are_transliterated(tmp_path: Path) -> None:
    header = {"": "Content-Type: text/plain; charset=UTF-8\n"}
    names = {
        "Île-A": "イルア",
        "Nueva B": "ヌエヴァ･ベ",  # with a half-width dot
        "East C": "東シー",
        "D, Republic of": "ディー",
        "E (city)": "イー",
    }
    catalogue(tmp_path / "iso3166-1.mo", header | names)
    catalogue(tmp_path / "iso4217.mo", header | {"Dollar": "ドル"})
    files = {path.name: path for path in tmp_path.iterdir()}
    assert transliterate.read(files) == [("i\u0302le-a", "イルア"), ("nueva b", "ヌエヴァ・ベ")]
    catalogue(files["iso3166-1.mo"], header)
    with pytest.raises(ExampleError, match="expected at least 2 names in katakana, got 0"):
        transliterate.read(files)
    for damaged in (b"", b"no catalogue at all"):
        files["iso3166-1.mo"].write_bytes(damaged)
        with pytest.raises(ExampleError, match=r"not a catalogue of translations: .*iso3166-1\.mo"):
            transliterate.read(files)


@pytest.mark.parametrize(
    "found, wanted, distance",
    [("", "", 0), ("", "アイ", 2), ("アイ", "", 2), ("カナダ", "カダナ", 2), ("ナナー", "カナダ", 2)],
)
def test_edits_are_counted(found: str, wanted: str, distance: int) -> None:
    assert transliterate.edits(found, wanted) == distance


def test_kana_have_latin_names() -> None:
    assert list(map(transliterate.latin_name, "カャヴッー")) == ["KA", "ya", "VU", "tu", "\N{EN DASH}"]


@torch.no_grad()
def test_a_written_token_that_is_no_character_has_a_label(tmp_path: Path) -> None:
    names = {"": "Content-Type: text/plain; charset=UTF-8\n", "A": "ア", "B": "ベ", "C": "シー"}
    catalogue(tmp_path / "iso3166-1.mo", names)
    recipe = transliterate.TransliterationRecipe(hidden=4, embedding=4)
    shown = transliterate.Transliteration(recipe, {"iso3166-1.mo": tmp_path / "iso3166-1.mo"})
    for token, label in enumerate(("(padding)", "(unknown)", "(begin)", "(end)")):
        model = shown.convert(shown.build()).eval()
        model.decoder.scores.bias[token] = 100  # it writes nothing else
        ((_, draw),) = shown.pictures(model).values()
        figure = Figure()
        draw(figure)
        assert {found.get_text() for found in figure.axes[0].get_yticklabels()} == {label}


@torch.no_grad()
def test_both_sides_transliterate_alike() -> None:
    """A whole sequence, its steps and what beam search finds."""
    recipe = transliterate.TransliterationRecipe(hidden=8, embedding=6)
    theirs = transliterate.TorchTransliterator(9, 7, recipe).eval()
    ours = transliterate.Transliterator(9, 7, recipe).eval()
    ours.load_state_dict(theirs.state_dict())
    lengths = torch.tensor([3, 5, 1])
    sources, targets = torch.randint(1, 9, (5, 3)), torch.randint(1, 7, (4, 3))
    assert_close(ours(sources, lengths, targets), theirs(sources, lengths, targets))
    found, expected = (model.write(sources, lengths, steps=6, width=3) for model in (ours, theirs))
    for best, other in zip(found, expected, strict=True):
        assert best.tokens == other.tokens
        assert_close(best.weights, other.weights)


def test_the_best_epoch_in_validation_counts() -> None:
    run = Run(Counting(), Recipe(epochs=3, batch=2), TORCH, 0)
    for _ in range(3):
        run.train_epoch(Interrupt())
    assert run.chosen_epoch == 1
    assert run.test_quality == 6.0
    assert run.is_finished


def test_the_ratio_is_the_median_over_steps() -> None:
    recipe = Recipe(epochs=1, batch=2)
    runs = {backend: [Run(Counting(), recipe, backend, 0)] for backend in (RNNFUSED, TORCH)}
    runs[RNNFUSED][0].history.seconds = [1.0, 2.0, 50.0]
    runs[TORCH][0].history.seconds = [2.0, 6.0, 50.0]
    assert ratio(runs) == 2.0
