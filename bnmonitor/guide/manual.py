"""A page of the guide for the terminal: text that is wrapped, and tables."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from bnmonitor._text import DOCS
from bnmonitor.guide.pages import Page

Table = list[list[str]]
"""Rows of cells, the head first."""


def parts(page: Page, width: int = 80) -> Iterator[str | Table]:
    """Return a page in parts, texts and tables in turn; pictures are left out, and where they are is said at the end.

    Args:
        page: The page.
        width: Columns to wrap at; code is not wrapped.
    """
    body = re.sub(r"^!\[[^\]]*\]\([^)]*\)\n\n", "", page.source, flags=re.MULTILINE)
    lines: list[str] = []
    for block in _blocks(body):
        if block.startswith("|"):
            yield "\n".join(lines).rstrip("\n")
            lines = []
            yield _table(block)
        else:
            lines += [_shown(block, width), ""]
    yield "\n".join([*lines, f"with pictures: {page_url(page)}"])


def page_url(page: Page) -> str:
    """Return the address of a page."""
    return f"{DOCS}/guide/{page.name}.md"


def described_page(page: Page) -> dict[str, Any]:
    """Return a page as plain types that JSON can hold."""
    return {
        "page": page.name,
        "title": page.title,
        "group": page.group,
        "markdown": page.source,
        "url": page_url(page),
    }


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs, lists, tables and blocks of code; a blank line within code does not part it."""
    for number, part in enumerate(re.split(r"^(```\w*\n.*?^```)$", text, flags=re.MULTILINE | re.DOTALL)):
        yield from [part] if number % 2 else filter(None, (block.strip("\n") for block in part.split("\n\n")))


def _shown(block: str, width: int) -> str:
    if block.startswith("```"):
        return textwrap.indent("\n".join(block.split("\n")[1:-1]), "    ")
    if block.startswith("#"):
        return _unmarked(block.lstrip("# "))
    items = re.split(r"\n(?=- |\d+\. )", block) if re.match(r"- |\d+\. ", block) else [block]
    return "\n".join(_wrapped(item, width, hanging=len(items) > 1 or items[0].startswith("- ")) for item in items)


def _wrapped(text: str, width: int, *, hanging: bool) -> str:
    return textwrap.fill(
        _unmarked(" ".join(text.split())), width, subsequent_indent="  " if hanging else "", break_on_hyphens=False
    )


def _table(block: str) -> Table:
    rows = [[_unmarked(cell.strip()) for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return [row for row in rows if set("".join(row)) - set("- ")]


def _unmarked(text: str) -> str:
    """Write a text without the marks of links, code and stress."""
    return re.sub(r"\*\*|`", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text))
