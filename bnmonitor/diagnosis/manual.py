"""The manual of the causes, from their docstrings: Markdown pages, an index, and plain text for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bnmonitor._docstring import Docstring
from bnmonitor._text import DOCS
from bnmonitor.diagnosis.base import Cause, matches
from bnmonitor.rules import Rule, all_rules


def cause_url(cause: Cause) -> str:
    """Return the address of the page of a cause."""
    return f"{DOCS}/causes/{cause.name}.md"


def cause_page(cause: Cause) -> str:
    """Return the Markdown page of a cause."""
    doc = Docstring.of(type(cause))
    lines = [f"# {cause.name}", "", doc.markdown_summary, ""]
    for title, body in doc.sections:
        lines += [f"## {title}", "", *doc.markdown(body)]
    lines += ["## Rules", "", "What speaks for it:", "", *map(_item, speakers(cause)), ""]
    if others := followers(cause):
        lines += ["What follows from it, and opens no incident of its own:", "", *map(_item, others), ""]
    return "\n".join(lines).rstrip() + "\n"


def cause_index(causes: Iterable[Cause]) -> str:
    """Return the Markdown page that lists the causes and links to the page of each."""
    lines = [
        "# Causes",
        "",
        "An incident is one root cause with every alert that follows from it. Its `cause` is one of these names; where",
        "no cause explains an alert, it is the name of the [rule](rules.md). A name never changes its meaning. Where",
        "the evidence speaks for two causes, the one that is higher in the table leads the incident.",
        "",
        "| cause | what is wrong | what speaks for it |",
        "|---|---|---|",
    ]
    for cause in causes:
        codes = ", ".join(f"[{rule.code}](rules/{rule.code}.md)" for rule in speakers(cause))
        sentence = Docstring.of(type(cause)).markdown_summary.replace("\n", " ").replace("|", "\\|")
        lines.append(f"| [{cause.name}](causes/{cause.name}.md) | {sentence} | {codes} |")
    return "\n".join(lines) + "\n"


def plain_cause(cause: Cause, width: int = 80) -> str:
    """Return the manual of a cause as plain text, for the terminal: without the examples that are run.

    Args:
        cause: The cause.
        width: Columns to wrap at; code is not wrapped.
    """
    doc = Docstring.of(type(cause))
    lines = [cause.name, "", *doc.summary_text(width), ""]
    for title, body in doc.shown():
        lines += [title, *doc.text(body, width), ""]
    lines += ["Rules that speak for it"]
    lines += [f"  {rule.code} {rule.name}" for rule in speakers(cause)]
    return "\n".join([*lines, "", cause_url(cause)])


def explained_cause(cause: Cause) -> dict[str, Any]:
    """Return the manual of a cause as plain types that JSON can hold."""
    doc = Docstring.of(type(cause))
    return {
        "cause": cause.name,
        "finds": doc.sentence,
        "rules": [rule.code for rule in speakers(cause)],
        "follows": [rule.code for rule in followers(cause)],
        "url": cause_url(cause),
        "sections": doc.to_list(),
    }


def speakers(cause: Cause) -> list[Rule]:
    """Return the rules whose alerts speak for a cause."""
    return [rule for rule in all_rules() if rule.code in cause.leads]


def followers(cause: Cause) -> list[Rule]:
    """Return the other rules whose alerts follow from a cause."""
    explains: Sequence[str] = sorted(cause.explains)
    return [rule for rule in all_rules() if matches(rule.code, explains) and rule.code not in cause.leads]


def _item(rule: Rule) -> str:
    return f"- [{rule.code} {rule.name}](../rules/{rule.code}.md)"
