"""What `mkdocs.yml` needs beside MkDocs: the site shows Markdown files from all over the repository.

The pages are written to be read in the repository. So a few files outside docs/ become pages, links are
followed from where the file lies, and what has no page (a source file, a JSON file) is named by its path.
Nothing that a page shows may come from elsewhere.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

# What a browser fetches before anybody follows a link.
_FETCHED = re.compile(r'<(?:script|img|iframe)\b[^>]*\bsrc="https?:[^"]*"|<link\b[^>]*\bhref="https?:[^"]*"')

# A fenced block, a code span or a link, whichever begins first: what looks like a link within code is none.
_LINK = re.compile(
    r"^```.*?^```|`[^`\n]+`|\[(?P<label>[^\[\]]*)\]\((?P<target>[^()\s]+)\)", re.DOTALL | re.MULTILINE
)

_log = logging.getLogger("mkdocs.hooks.docs_site")  # below "mkdocs", whose warnings strict mode counts


def _uris() -> dict[str, str]:
    """Of each file outside docs/ that is a page: where the site has it."""
    top = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    results = sorted((ROOT / "bench" / "results").glob("*.md"))
    return top | {f"bench/results/{path.name}": f"results/{path.name}" for path in results}


_SITE_OF = _uris()
_REPOSITORY_OF = {site: repository for repository, site in _SITE_OF.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for repository, site in _SITE_OF.items():
        files.append(File.generated(config, site, abs_src_path=str(ROOT / repository)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    source = _REPOSITORY_OF.get(here, f"docs/{here}")

    def follow(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or target.startswith("#") or "://" in target:
            return match[0]
        name, hash_mark, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        site = _SITE_OF.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(site):
            link = posixpath.relpath(site, posixpath.dirname(here) or ".")
            return f"[{match['label']}]({link}{hash_mark}{anchor})"
        if not os.path.exists(ROOT / path):
            _log.warning(f"{source}: the link '{target}' leads nowhere")
        return f"`{path}`" if match["label"].strip("`") in path else f"{match['label']} (`{path}`)"

    return _LINK.sub(follow, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> None:
    """The site is for readers without a network, too."""
    for fetched in _FETCHED.findall(output):
        _log.warning(f"{page.file.src_uri}: is fetched from elsewhere: {fetched}")
