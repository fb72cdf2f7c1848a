"""bench.features: the runner, the table, and what the committed table says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.features.layers import COLUMNS  # noqa: E402
from bench.features.probes import Probe, load  # noqa: E402
from bench.features.runner import Answer, run  # noqa: E402
from bench.features.table import Line, covers, lines, markdown, parse  # noqa: E402

CHEAP = ("behaviour.empty_batch", "behaviour.relu", "observing.opcheck")


@pytest.mark.long
def test_probes_run_in_both_columns(tmp_path: Path) -> None:
    probes = [found for found in load() if found.name in CHEAP]
    assert len(probes) == len(CHEAP)
    answers = run(probes, jobs=2, cache=tmp_path)
    assert len(answers) == len(COLUMNS) * sum(len(found.variants) for found in probes)
    for name in CHEAP[:2]:
        got = {answer for key, answer in answers.items() if key[1] == name}
        assert got == {Answer("yes")}
    assert answers["torch.nn", "observing.opcheck", "GRU"] == Answer("not an op")
    table = lines(probes, answers)
    assert parse(markdown(table, "2.0", "AVX2")) == table


@pytest.mark.long
def test_a_crash_and_a_hang_cost_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_probes.py").write_text(
        "import os, time\n"
        "from bench.features.probes import probe\n"
        "@probe('crashes', '')\n"
        "def a(layers): os.abort()\n"
        "@probe('works', '')\n"
        "def b(layers): pass\n"
        "@probe('hangs', '', seconds=1)\n"
        "def c(layers): time.sleep(60)\n"
        "@probe('raises', '')\n"
        "def d(layers): raise ValueError('first\\nsecond')\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    probes = [
        Probe(f"broken_probes.{name}", "broken_probes", name, "", print, seconds=seconds)
        for name, seconds in (("a", 60), ("b", 60), ("c", 1), ("d", 60))
    ]
    answers = run(probes, jobs=2, cache=tmp_path)
    assert [answers["torch.nn", found.name, ""] for found in probes] == [
        Answer("no", "the process died of SIGABRT"),
        Answer("yes"),
        Answer("no", "no answer after 1 s"),
        Answer("no", "ValueError: first"),
    ]


@pytest.mark.parametrize(
    ("torch_nn", "rnnfused", "covered"),
    [
        ("yes", "yes", True),
        ("yes", "no", False),
        ("yes", "only LSTM", False),
        ("yes", "refused, by design: a reason", True),
        ("yes", "refused, by design", False),
        ("no", "no", True),
        ("only LSTM, GRU", "only GRU, RNN, LSTM", True),
        ("only LSTM, GRU", "only LSTM", False),
        ("only LSTM", "no", False),
        ("not an op", "yes", True),
    ],
)
def test_covers(torch_nn: str, rnnfused: str, covered: bool) -> None:
    assert covers(Line("theme", "feature", "what", torch_nn, rnnfused)) == covered


def test_the_table_has_no_row_that_only_torch_has() -> None:
    table = parse((ROOT / "docs" / "features.md").read_text(encoding="utf-8"))
    assert len(table) >= 40
    assert [(line.feature, line.torch, line.fused) for line in table if not covers(line)] == []
