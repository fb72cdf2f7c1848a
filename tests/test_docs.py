"""The snippets of pages that promise to run, in order, each page in a namespace of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("page", ["precision", "sequences", "reinforcement-learning", "seq2seq"])
def test_snippets_run(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(snippets) > 2
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, f"{page}.md", "exec"), names)
