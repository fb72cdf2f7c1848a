"""bench/, as far as it can be tested without taking times."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.techniques import TECHNIQUES, Edit, Technique  # noqa: E402


@pytest.mark.parametrize("technique", TECHNIQUES.values(), ids=TECHNIQUES)
def test_a_technique_can_be_taken_away(technique: Technique, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    technique.take_away(tmp_path)
    for edit in technique.edits:
        assert (tmp_path / edit.file).read_text(encoding="utf-8").count(edit.instead) >= 1
    assert technique.cases()


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
