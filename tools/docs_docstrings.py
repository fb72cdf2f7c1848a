"""How mkdocstrings shows our docstrings: prose, in which arguments, results and errors begin a line."""

from __future__ import annotations

import re
from typing import Any

import griffe

# Markdown joins lines; in a terminal, where docstrings are read too, a line is enough.
_BEGINS = re.compile(r"\n(?=\w+(?:, \w+)*: |Returns |Raises )")


class Paragraphs(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _BEGINS.sub("\n\n", obj.docstring.value)
