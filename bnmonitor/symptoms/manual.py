"""The pages of the symptoms as Markdown for the documentation, and as plain text for the terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from bnmonitor._text import DOCS
from bnmonitor.symptoms.pages import TEXTS, Reason, Symptom, all_symptoms, setup

_BEGIN = "Every program of this page begins with this. When it has run, `monitor.incidents` holds what was found."


def symptom_page(symptom: Symptom) -> str:
    """Return the Markdown page of a symptom."""
    text = re.sub(r"<!-- words: .*? -->\n\n", "", symptom.source, flags=re.DOTALL)
    text = re.sub(r"^```text\n", "bnmonitor says:\n\n```text\n", text, flags=re.MULTILINE)
    head, _, rest = text.partition("\n\n## ")
    text = f"{head}\n\nThe programs begin with [the same setup](#the-setup-of-the-programs).\n\n## {rest}"
    return f"{text.rstrip()}\n\n## The setup of the programs\n\n{_BEGIN}\n\n```python\n{setup()}```\n"


def symptom_index() -> str:
    """Return the Markdown page that lists the symptoms: a table, and a tree of questions."""
    rows = [
        f"| [{symptom.title}](symptoms/{symptom.name}.md) | "
        + "; ".join(f"{reason.title[0].lower()}{reason.title[1:]}" for reason in symptom.reasons)
        + " |"
        for symptom in all_symptoms()
    ]
    head = (TEXTS / "index.md").read_text(encoding="utf-8")
    return head.replace("<!-- table -->", "\n".join(["| what you see | what it may be |", "|---|---|", *rows]))


def symptom_url(symptom: Symptom) -> str:
    """Return the address of the page of a symptom."""
    return f"{DOCS}/symptoms/{symptom.name}.md"


def plain_symptom(symptom: Symptom, *, code: bool = False, width: int = 80) -> str:
    """Return the page of a symptom as plain text, for the terminal.

    Args:
        symptom: The symptom.
        code: Whether to show the wrong and the right programs.
        width: Columns to wrap at; code is not wrapped.
    """
    lines = [symptom.title, "", *_wrapped(symptom.text, width, ""), ""]
    for number, reason in enumerate(symptom.reasons, 1):
        lines += [f"{number}. {reason.title}", *_wrapped(reason.text, width)]
        lines += [*_programs(reason), ""] if code else []
        lines += [f"   bnmonitor explain {reason.cause}", ""]
    lines += ["The setup of the programs", "", *textwrap.indent(setup(), "   ").splitlines(), ""] if code else []
    more = [] if code else [f"wrong and right code: bnmonitor diagnose {symptom.name} --code"]
    return "\n".join([*lines, *more, symptom_url(symptom)])


def described_symptom(symptom: Symptom) -> dict[str, Any]:
    """Return the page of a symptom as plain types that JSON can hold."""
    return {
        "symptom": symptom.name,
        "title": symptom.title,
        "text": _unmarked(symptom.text),
        "url": symptom_url(symptom),
        "causes": [
            {
                "title": reason.title,
                "cause": reason.cause,
                "text": _unmarked(reason.text),
                "wrong": reason.wrong,
                "says": reason.says,
                "right": reason.right,
            }
            for reason in symptom.reasons
        ],
    }


def code_of(reason: Reason, *, right: bool) -> str:
    """Return a program of a page as it is run: with the setup before it."""
    return f"{setup()}\n\n{reason.right if right else reason.wrong}"


def _programs(reason: Reason) -> Iterator[str]:
    note = f" {_unmarked(reason.note)}" if reason.note else ""
    for title, text in (("Wrong:", reason.wrong), ("bnmonitor says:", reason.says), (f"Right{note}:", reason.right)):
        yield from ["", f"   {title}", "", *textwrap.indent(text.rstrip(), "     ").splitlines()]


def _wrapped(text: str, width: int, indent: str = "   ") -> list[str]:
    return textwrap.wrap(
        _unmarked(text), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _unmarked(text: str) -> str:
    """Write a paragraph without the marks of links and code."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "")
