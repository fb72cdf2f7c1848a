"""The documentation holds: its snippets run, its commands exist, every public name is in it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import has_gpu

import rnnfused

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

# The snippets that not every machine can run, and what each needs: they run where it is.
NEEDS = {
    "cuda": ["a GPU", "a GPU"],
    "interop": ["keras", "flax"],
    "migrating-from-keras": ["keras"],
    "reinforcement-learning": ["sb3_contrib"],
}
LANGUAGES = {"python", "sh", "cpp", "diff", "text"}


class Block(NamedTuple):
    language: str
    needs: str  # the title says `needs ...`
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    result = []
    for info, body in found:
        match = re.fullmatch(r'(\w+)(?: title="needs ([^"]+)")?', info)
        assert match, f"{page.name}: a block begins with ```{info}"
        result.append(Block(match[1], match[2] or "", body))
    return result


def is_there(need: str) -> bool:
    if need == "a GPU":
        return has_gpu()
    return importlib.util.find_spec(need) is not None


# One page compiles models ahead of time.
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=pytest.mark.long if page.stem == "export" else ())
        for page in PAGES
    ],
)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, each page in a namespace and a folder of its own."""
    snippets = [block for block in blocks(page) if block.language == "python"]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for snippet in snippets:
        if not snippet.needs or is_there(snippet.needs):
            exec(compile(snippet.text, str(page), "exec"), names)


def test_few_snippets_need_more() -> None:
    needs = {page.stem: [block.needs for block in blocks(page) if block.needs] for page in PAGES}
    assert {page: found for page, found in needs.items() if found} == NEEDS
    assert {block.language for page in PAGES for block in blocks(page)} <= LANGUAGES


def commands(page: Path) -> Iterator[str]:
    """What a reader may type: lines of shell blocks, without their comments, and code within a sentence."""
    for block in blocks(page):
        if block.language == "sh":
            yield from (re.sub(r"(^|\s)#.*", "", line) for line in block.text.splitlines())
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", prose)


SCRIPT = re.compile(
    r"(?:^|-m )(?P<module>bench\.\w+)"
    r"|(?P<path>(?:bench|examples|tests)/[\w/]+\.(?:py|sh)|tools/\w+(?:\.\w+)?)"
)


def mistakes(command: str) -> Iterator[str]:
    """What a command names and the repository does not have: targets, modules, scripts, their options."""
    for target in re.findall(r"(?:^|\s)make ([a-z][\w-]*)", command):
        if target not in TARGETS:
            yield f"make {target}"
    if match := SCRIPT.search(command):
        name = match["path"] or match["module"].replace(".", "/")
        script = ROOT / name
        if match["module"]:
            script = script / "__main__.py" if script.is_dir() else script.with_suffix(".py")
        if not script.exists():
            yield name
            return
        # A script's options stand in one of the files of its folder.
        folder = ROOT / name.split("/")[0]
        sources = "".join(p.read_text(encoding="utf-8") for p in [script, *folder.rglob("*.py")])
        options = re.findall(r"(?<!\S)--[a-z][\w-]*", command[match.end() :])
        yield from (f"{name} {option}" for option in options if option not in sources)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page: Path) -> None:
    assert [wrong for command in commands(page) for wrong in mistakes(command)] == []


def test_commands_that_do_not_exist_are_found() -> None:
    for command in ("make coffee", "python -m bench.coffee", "python -m bench.cpu --coffee", "tools/coffee"):
        assert list(mistakes(command)), command


MODULES = ("functional", "attention", "seq2seq", "adapters", "interop", "onnx", "cells", "reference")


def test_the_reference_has_every_public_name() -> None:
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    documented = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    public = [
        f"rnnfused.{name}"
        for name, value in vars(rnnfused).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
    ]
    for module in MODULES:
        public += [f"rnnfused.{module}.{n}" for n in importlib.import_module(f"rnnfused.{module}").__all__]
    assert sorted(documented) == sorted(public)
