"""bench/, as far as it can be tested without taking times."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnfused import _attend

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import compare, exact, report, seq2seq, turns  # noqa: E402
from bench.cases import MODES, MODES_OF, QUICK_MODELS, Case, cases, inputs, states, weights  # noqa: E402
from bench.harness import TOLERANCES, Row  # noqa: E402
from bench.limits import Limits  # noqa: E402
from bench.peers import KNOWN, OURS, PEERS, peers_of, prepare  # noqa: E402
from bench.peers.torch_layers import measured, torch_layers  # noqa: E402
from bench.techniques import TECHNIQUES, Edit, Technique  # noqa: E402
from bench.worker import error  # noqa: E402


@pytest.mark.parametrize("technique", TECHNIQUES.values(), ids=TECHNIQUES)
def test_a_technique_can_be_taken_away(technique: Technique, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    technique.take_away(tmp_path)
    for edit in technique.edits:
        assert (tmp_path / edit.file).read_text(encoding="utf-8").count(edit.instead) >= 1
    assert technique.cases()


def test_the_loop_of_cells_uses_no_layer_that_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    native = _attend.attend

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return native(*arguments)

    monkeypatch.setattr(_attend, "attend", counted)
    row = seq2seq.Row("bahdanau", False, steps=2, source=3, batch=2, hidden=4)
    for way, expected in zip(seq2seq.WAYS, (1, 0), strict=True):
        calls.clear()
        seq2seq.prepare(row, way).run()
        assert len(calls) == expected, way


def test_an_edit_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("one two one", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.h: 'one' occurs 2 times"):
        Edit("a.h", "one", "three").apply(tmp_path)
    with pytest.raises(ValueError, match=r"a\.h: 'four' occurs 0 times"):
        Edit("a.h", "four", "three").apply(tmp_path)
    assert (tmp_path / "a.h").read_text(encoding="utf-8") == "one two one"


def test_a_technique_names_its_rows() -> None:
    rows = ("inference gru 128 1 64 4", "stacked lstm 128 1 64", "training rnn 512 16 64")
    cases = Technique("", "", (), rows).cases()
    assert [case.name for case in cases] == [
        "inference gru T128 B1 H64 L4",
        "stacked lstm T128 B1 H64",
        "training rnn T512 B16 H64",
    ]
    assert [(case.layers, case.bidirectional) for case in cases] == [(4, False), (2, True), (1, False)]


CALLS = cases(("calls",))
LIMITS = Limits(threads=2, fma=1e11, sgemm=1e11, l2=1e11, l3=1e11, barrier=1e-6)


def test_calls_cover_cells_and_layers() -> None:
    assert [case.called for case in CALLS] == [
        "rnn cell B8 H32 forward",
        "rnn cell B8 H32 forward and backward",
        "lstm cell B8 H32 forward",
        "lstm cell B8 H32 forward and backward",
        "gru cell B8 H32 forward",
        "gru cell B8 H32 forward and backward",
        "lstm cell 20 times B8 H32 forward and backward",
        "lstm T24 B32 I4 H16 forward and backward",
        "lstm T1 B1 H64 forward",
        "lstm T128 B1 H64 forward",
        "lstm T128 B1 H64 forward and backward",
    ]
    assert all(case.threads == 1 and case.name == f"calls {case.called}" for case in CALLS)
    assert cases(("calls",), quick=True) == CALLS
    assert all(case.cell == "gru" for case in cases(MODES, ("gru",)))
    assert {case.mode for case in cases()} == set(MODES)


@pytest.fixture
def threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize("peer", [name for name, peer in PEERS.items() if "calls" in peer.modes])
@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.called)
def test_a_call_is_checked(case: Case, peer: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    exact.write(case, tmp_path)
    given = {"x", *states(case)} if case.of_cells else {"x"}
    parameters = {name.removesuffix("_l0") if case.of_cells else name for name in weights(case)}
    checked = {"y", *given, *parameters} if case.backward else {"y"}
    assert {file.stem for file in tmp_path.glob("*.npy")} == checked

    torch.set_num_threads(2)
    prepared = prepare(peer, case, threads=2)
    assert torch.get_num_threads() == 1
    assert error(prepared, tmp_path) <= TOLERANCES[case.dtype]


MODELS = cases(("models",))


def test_models_are_called_as_they_are_published() -> None:
    assert [case.name for case in MODELS[4:8]] == [
        "models Tacotron2 encoder: lstm T60 B8 I512 H256 bidirectional forward",
        "models Tacotron2 encoder: lstm T60 B8 I512 H256 bidirectional forward and backward",
        "models Tacotron2 decoder: lstm cell B8 I1536 H1024 forward",
        "models Tacotron2 decoder: lstm cell B8 I1536 H1024 forward and backward",
    ]
    assert {case.model for case in cases(("models",), quick=True)} == set(QUICK_MODELS)
    assert len({case.name for case in MODELS}) == len(MODELS)


@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize("case", cases(("models",), quick=True), ids=lambda case: case.name)
def test_a_layer_of_a_model_is_checked(case: Case, tmp_path: Path) -> None:
    exact.write(case, tmp_path)
    expected = {"x", "y"} | {name.removesuffix("_l0") if case.of_cells else name for name in weights(case)}
    expected |= set(states(case)) if case.of_cells else set()
    assert {file.stem for file in tmp_path.glob("*.npy")} == (expected if case.backward else {"y"})
    assert error(prepare("rnnfused", case, threads=2), tmp_path) <= TOLERANCES[case.dtype]


def test_the_output_of_a_cell_is_its_next_input() -> None:
    twice = replace(next(case for case in CALLS if case.steps == 20), steps=2, backward=False)
    prepared = measured(torch_layers(twice), twice)
    with prepared.context():
        prepared.run()
        cell = torch_layers(twice)
        first = cell(torch.from_numpy(inputs(twice)[0]), tuple(map(torch.from_numpy, states(twice).values())))
        second = cell(first[0], first)
    torch.testing.assert_close(torch.from_numpy(prepared.results()["y"]), second[0])


@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize(
    "peer", [name for name, peer in peers_of("bfloat16").items() if "training" in peer.modes]
)
@pytest.mark.parametrize("mode", MODES_OF["bfloat16"])
def test_peers_in_16_bits_compute_the_same_numbers(mode: str, peer: str, tmp_path: Path) -> None:
    if not KNOWN[peer].runs():
        pytest.skip("torch.nn's layers do not run under autocast on this processor")
    case = Case(mode, "lstm", 6, 4, 24, dtype="bfloat16")
    assert all(
        torch.equal(torch.from_numpy(a).bfloat16().float(), torch.from_numpy(a))
        for a in weights(case).values()
    )
    exact.write(case, tmp_path)
    found = error(prepare(peer, case, threads=2), tmp_path)
    assert found <= TOLERANCES["float32" if peer == "float32" else "bfloat16"]


def test_rows_in_16_bits_are_held_against_float32_too() -> None:
    times = {"torch": 5e-4, "autocast": 4e-4, "float32": 3e-4, "rnnfused": 1e-4}
    found = [Row(Case("inference", "gru", 10, batch, 8, dtype="bfloat16"), times, {}, {}) for batch in (1, 8)]
    assert set(OURS) & set(times) == {"float32", "rnnfused"}
    assert found[0].best_peer() == ("autocast", 4e-4)
    lines = [line.split(" | ")[:7] for line in report.summary(found, LIMITS).splitlines()[2:]]
    assert lines == [
        [f"| {mode}", "1", "3.00", "3.00", "4.00", "4.00", "4.00"]
        for mode in ("inference, B = 1", "inference")
    ]


def _counting(step: int, parent: Connection) -> None:
    parent.send(step)
    count = 0
    while parent.recv():
        count += step
        parent.send({"count": count} if step > 1 else count)


def _ending(parent: Connection) -> None:
    parent.send("ready")
    parent.recv()


@pytest.mark.long
def test_ways_take_turns() -> None:
    seen: list[dict[str, int]] = []
    found = turns.in_turns(_counting, {"one": (1,), "two": (2,)}, 5, "go", seen.append)
    assert seen == [{"one": 1, "two": 2}] and found == {"one": 3, "two": {"count": 6}}
    assert turns.in_turns(_counting, {"one": (1,)}, 0, "go") == {}
    with pytest.raises(turns.Died, match="the process of a has ended"):
        turns.in_turns(_ending, {"a": ()}, 1, "go")


def row(case: Case, torch_seconds: float, our_seconds: float) -> Row:
    seconds = {"torch": torch_seconds, "rnnfused": our_seconds}
    return Row(case, seconds, {name: (s, s) for name, s in seconds.items()}, dict.fromkeys(seconds, 0.0))


def test_calls_have_a_table_of_their_own(tmp_path: Path) -> None:
    sequence = next(case for case in CALLS if case.steps == 128)
    rows = [row(Case("training", "gru", 10, 2, 8), 4e-4, 2e-4), row(sequence, 3e-4, 1e-4)]
    steps, calls = report.markdown(rows, LIMITS).split("\n\n")
    assert "| training | gru | 10 | 2 | 8 | 40.0 | 20.0 | torch | 2.00 |" in steps
    assert calls.splitlines() == [
        "| call | threads | torch us | rnnfused us | ratio |",
        "|---|---|---|---|---|",
        "| lstm T128 B1 H64 forward | 1 | 300 | 100 | 3.00 |",
    ]
    summary = report.summary(rows, LIMITS).splitlines()[-1]
    assert summary == "| calls | 1 | 3.00 | 3.00 | 3.00 | 3.00 | calls lstm T128 B1 H64 forward |  |"

    report.save(tmp_path / "cpu.json", rows, LIMITS, {})
    assert report.load(tmp_path / "cpu.json") == (rows, LIMITS)
    assert calls in (tmp_path / "cpu.md").read_text(encoding="utf-8")


def test_models_have_a_table_of_their_own() -> None:
    layer = replace(next(case for case in MODELS if case.backward and case.model == "docTR"), layers=1)
    assert report.markdown([row(layer, 3e-1, 1e-1)], LIMITS).splitlines() == [
        "| model | call | torch us | rnnfused us | ratio | of the limit |",
        "|---|---|---|---|---|---|",
        "| docTR | lstm T32 B8 I512 H128 bidirectional forward and backward | 300000 | 100000 | 3.00 | 10% |",
    ]


@pytest.mark.long
def test_calls_of_two_trees_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees = tmp_path / "base", tmp_path / "changed"
    for tree in trees:
        tree.mkdir()
        assert compare.build(str(ROOT), tree) == tree
        assert [path.name for path in tree.iterdir()] == ["rnnfused"]
    options = compare.parse(
        [str(ROOT), "--modes=calls", "--match=gru cell", "--rounds=1", "--seconds=0.001", "--threads=1"]
    )
    ratios = compare.compare(trees, compare.selected(options), options)
    lines = capsys.readouterr().out.splitlines()
    assert len(ratios) == 2
    assert [line.split(" | ")[0] for line in lines] == [f"| {case.name}" for case in CALLS[4:6]]
