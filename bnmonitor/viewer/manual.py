"""The manual's pages as the tab shows them, read from the sources of rules and causes: no server needs torch."""

from __future__ import annotations

import ast
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

from bnmonitor._docstring import Docstring, blocks, is_code
from bnmonitor._text import DOCS

_PACKAGE = Path(__file__).parents[1]
_SOURCES = ("rules/*/*.py", "diagnosis/causes/*.py")
_HEAD = re.compile(r'\A"""()(BN\d+)\b')
"""The code of a rule at the head of its file, where the class takes it from elsewhere."""

_CALLED = re.compile(r'^    (code|name): ClassVar\[str\] = "([\w-]+)"$', re.MULTILINE)


def manual_page(name: str) -> dict[str, Any] | None:
    """Return the page of a rule, by its code or name, or of a cause, by its name; None if there is none.

    Returns:
        ``title``, ``summary``, ``url``, and ``sections``: ``title`` and ``blocks`` of each, a block being ``["text",
        words]``, with code in double backticks, ``["code", lines]``, or ``["values", {name: default}]``.
    """
    path = _files().get(name)
    found = None if path is None else _documented(path)
    if found is None:
        return None
    doc, words, values = found
    title = " ".join(words)
    sections = [
        {"title": head, "blocks": _blocks(text)} for head, text in ((s["title"], s["text"]) for s in doc.to_list())
    ]
    if values and not any(section["title"] == "Thresholds" for section in sections):
        sections.append({"title": "Thresholds", "blocks": []})
    for section in sections:
        if values and section["title"] == "Thresholds":
            section["blocks"] = [["values", values], *section["blocks"]]
    page = f"rules/{words[0]}" if len(words) > 1 else f"causes/{words[0]}"
    return {"title": title, "summary": doc.sentence, "url": f"{DOCS}/{page}.md", "sections": sections}


def _blocks(text: str) -> list[Any]:
    found: list[Any] = []
    for block in blocks(text):
        if is_code(block):
            found.append(["code", textwrap.dedent(block)])
        else:
            found.append(["text", " ".join((block[:-1] if block.endswith("::") else block).split())])
    return found


@cache
def _files() -> dict[str, Path]:
    """The file of each rule and each cause, by code and by name; a cause before a rule of the same name."""
    found: dict[str, Path] = {}
    for pattern in _SOURCES:
        for path in sorted(_PACKAGE.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            found.update((word, path) for _, word in [*_CALLED.findall(text), *_HEAD.findall(text)])
    return found


@cache
def _documented(path: Path) -> tuple[Docstring, tuple[str, ...], dict[str, Any]] | None:
    """Return the docstring of the rule or the cause in a file, its code and its name, and its thresholds."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        set_ = {
            part.target.id: part
            for part in node.body
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.value is not None
        }
        if "name" not in set_:
            continue
        values: dict[str, Any] = {}
        for name, part in set_.items():
            if "ClassVar" not in ast.unparse(part.annotation):
                values[name] = ast.unparse(part.value) if part.value is not None else ""
        said = [each.value for key in ("code", "name") if (each := set_.get(key)) is not None]
        head = _HEAD.findall(path.read_text(encoding="utf-8"))
        words = [
            str(value.value) if isinstance(value, ast.Constant) else head[0][1] for value in said if value is not None
        ]
        return Docstring.parse(ast.get_docstring(node) or ""), tuple(words), values if "code" in set_ else {}
    return None
