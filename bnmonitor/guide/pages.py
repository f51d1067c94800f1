"""The pages of the guide, read from the Markdown files beside this module, which ``benchmarks/guide`` writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bnmonitor._text import nearest

TEXTS = Path(__file__).parent / "texts"

_LISTED = re.compile(r"^\| \[([^\]]+)\]\(guide/([\w-]+)\.md\)", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        name: Its name, such as ``learning-rate``.
        title: The question that it answers.
        group: What it is about, with the pages beside it.
        source: Its Markdown.
    """

    name: str
    title: str
    group: str
    source: str


@cache
def all_pages() -> tuple[Page, ...]:
    """Return the pages, in the order of the guide."""
    found = []
    for section in re.split(r"^## ", _text("index"), flags=re.MULTILINE)[1:]:
        group = section.partition("\n")[0]
        found += [Page(name, title, group, _text(name)) for title, name in _LISTED.findall(section)]
    return tuple(found)


@cache
def introduction() -> str:
    """Return the first paragraph of the guide, as Markdown."""
    return _text("index").split("\n\n")[1]


def find_page(name: str) -> Page:
    """Return the page of a name.

    >>> find_page("learning-rate").title
    'How high can the learning rate be?'

    Args:
        name: The name, or the beginning of only one.

    Raises:
        ValueError: There is none, or there are several.
    """
    pages = [page for page in all_pages() if page.name == name]
    pages = pages or [page for page in all_pages() if name and page.name.startswith(name)]
    if len(pages) != 1:
        raise ValueError(f"no page is called {name!r}")
    return pages[0]


def near_page(name: str) -> str:
    """Return a hint at the page whose name is most like a word: empty if none is."""
    return nearest(name, [page.name for page in all_pages()])


def _text(name: str) -> str:
    return (TEXTS / f"{name}.md").read_text(encoding="utf-8")
