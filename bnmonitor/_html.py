"""HTML for notebooks: without scripts, and readable on a light page as on a dark one."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_STYLE = "font-family:system-ui,sans-serif;font-size:13px;line-height:1.5"
_CELL = "text-align:left;padding:2px 12px 2px 0;vertical-align:top"
SEVERITY = {"error": "#b3261e", "warning": "#a76400", "info": "#5a6672"}


def block(*parts: str) -> str:
    """Return parts, one below the other."""
    return f'<div style="{_STYLE}">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'


def strong(text: str, severity: str = "") -> str:
    """Return a text in bold, in the color of a severity if there is one."""
    color = f' style="color:{SEVERITY[severity]}"' if severity in SEVERITY else ""
    return f"<b{color}>{html.escape(text)}</b>"


def plain(text: str) -> str:
    """Return a text."""
    return html.escape(text)


def link(text: str, url: str) -> str:
    """Return a link; the text alone without an address."""
    return f'<a href="{html.escape(url)}">{html.escape(text)}</a>' if url else html.escape(text)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; empty without rows."""
    lines = ["".join(f'<td style="{_CELL}">{html.escape(str(cell))}</td>' for cell in row) for row in rows]
    if not lines:
        return ""
    top = "".join(f'<th style="{_CELL}">{html.escape(each)}</th>' for each in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table style="font-size:inherit;border-collapse:collapse"><tr>{top}</tr>{body}</table>'
