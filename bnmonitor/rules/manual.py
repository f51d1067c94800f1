"""The manual of the rules, from their docstrings: Markdown pages, an index, and plain text for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from bnmonitor._docstring import Docstring
from bnmonitor._text import DOCS
from bnmonitor.rules.base import Rule
from bnmonitor.rules.catalogue import CATALOGUE, FAMILIES
from bnmonitor.rules.needs import NEEDS

_OWN = "own rules"


def page(rule: Rule) -> str:
    """Return the Markdown page of a rule."""
    doc = Docstring.of(type(rule))
    lines = [f"# {rule.code} {rule.name}", "", doc.markdown_summary, "", *_facts(rule), ""]
    # What a user reads comes first, and what shows how the rule judges a window last.
    for title, body in sorted(_with_thresholds(rule, doc.sections), key=lambda section: section[0] == "Example"):
        lines += [*_settings(rule)] if title == "Example" else []
        lines += [f"## {title}", ""]
        if title == "Thresholds":
            lines += [*_table(rule), ""] if fields(rule) else []
        text = doc.markdown(body)
        lines += [_linked(line) for line in text] if title == "References" else text
        if title == "Example":
            lines = _import_first(rule, lines)
    return "\n".join(lines).rstrip() + "\n"


def index(rules: Sequence[Rule]) -> str:
    """Return the Markdown page that lists rules by family and links to the page of each."""
    families: dict[str, list[Rule]] = {}
    for rule in rules:
        families.setdefault(_family(rule), []).append(rule)
    lines = [
        "# Rules",
        "",
        "The rules of bnmonitor. A code and a name never change their meaning. An info is a matter of good practice, a",
        "warning means lost accuracy, an error means a wrong result. The tables give the usual severity of a rule.",
        "What explains several alerts together is a [cause](causes.md).",
        "",
    ]
    for family, members in families.items():
        prefix = next((f"{code}: " for code, title in FAMILIES.items() if title == family), "")
        lines += [f"## {prefix}{family}", "", "| code | name | severity | what it finds |", "|---|---|---|---|"]
        for rule in members:
            summary = Docstring.of(type(rule)).markdown_summary.replace("\n", " ").replace("|", "\\|")
            lines.append(f"| [{rule.code}](rules/{rule.code}.md) | {rule.name} | {rule.severity} | {summary} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def plain(rule: Rule, width: int = 80) -> str:
    """Return the manual of a rule as plain text, for the terminal: without the examples that are run.

    Args:
        rule: The rule.
        width: Columns to wrap at; code is not wrapped.
    """
    doc = Docstring.of(type(rule))
    needs = [f"Needs {_needs(rule)}.", ""] if rule.needs else []
    lines = [f"{rule.code} {rule.name} · {rule.severity}", "", *doc.summary_text(width), "", *needs]
    for title, body in _with_thresholds(rule, doc.shown()):
        lines += [title]
        if title == "Thresholds":
            lines += [f"  {name} = {value}" for name, value in _values(rule)]
            lines += [""] if fields(rule) and body else []
        lines += [*doc.text(body, width), ""]
    if url := _url(rule):
        lines.append(url)
    return "\n".join(lines).rstrip()


def described(rule: Rule) -> dict[str, Any]:
    """Return what a rule is as plain types that JSON can hold, without its manual."""
    return {
        "code": rule.code,
        "name": rule.name,
        "severity": str(rule.severity),
        "family": _family(rule),
        "default": rule.default,
        "needs": sorted(rule.needs),
        "finds": Docstring.of(type(rule)).sentence,
        "url": _url(rule),
    }


def explained(rule: Rule) -> dict[str, Any]:
    """Return the manual of a rule as plain types that JSON can hold."""
    thresholds = {field.name: getattr(rule, field.name) for field in fields(rule)}
    return {**described(rule), "thresholds": thresholds, "sections": Docstring.of(type(rule)).to_list()}


def _url(rule: Rule) -> str:
    return f"{DOCS}/rules/{rule.code}.md" if type(rule) in CATALOGUE else ""


# -- what a rule says of itself ----------------------------------------------------------------------------------------


def _with_thresholds(rule: Rule, sections: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The sections, plus one for the thresholds if the docstring lacks it although the rule has thresholds."""
    yield from sections
    if fields(rule) and "Thresholds" not in dict(sections):
        yield "Thresholds", ""


def _values(rule: Rule) -> list[tuple[str, str]]:
    values = [(f.name, getattr(rule, f.name)) for f in fields(rule)]
    return [(name, f"{v:g}" if isinstance(v, int | float) else repr(v)) for name, v in values]


def _needs(rule: Rule) -> str:
    return "; ".join(need.meaning for need in NEEDS if need.word in rule.needs)


def _family(rule: Rule) -> str:
    return next((title for prefix, title in FAMILIES.items() if rule.code.startswith(prefix)), _OWN)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def _facts(rule: Rule) -> list[str]:
    opens = f"once it has held for more than {rule.confirm} steps" if rule.confirm else "at once"
    judged = f"| judged | once in {rule.every} steps at most, and at each check once it has found something |"
    return [
        "| | |",
        "|---|---|",
        f"| severity | {rule.severity} |",
        f"| family | {_family(rule)} |",
        f"| needs | {_needs(rule) or 'nothing beyond the layers themselves'} |",
        f"| runs by default | {'yes' if rule.default else 'no'} |",
        f"| an alert opens | {opens} |",
        *([judged] if rule.every else []),
    ]


def _table(rule: Rule) -> list[str]:
    return ["| threshold | default |", "|---|---|", *(f"| `{name}` | {value} |" for name, value in _values(rule))]


def _settings(rule: Rule) -> list[str]:
    if _family(rule) == FAMILIES["BN0"]:
        return []
    lines = ["## Settings", "", f'Switch the rule off with `ignore=("{rule.name}",)`.']
    for name, value in _values(rule)[:1]:
        lines += [f'Set a threshold with `rules={{"{rule.name}": {{"{name}": {value}}}}}`.']
    return [*lines, ""]


def _linked(text: str) -> str:
    """Turn every ``owner/project#7``, and a ``#8`` that follows it, into a link."""
    project = ""

    def link(found: re.Match[str]) -> str:
        nonlocal project
        project = found[1] or project
        return f"[{found[0]}](https://github.com/{project}/issues/{found[2]})" if project else found[0]

    return re.sub(r"([\w.-]+/[\w.-]+)?#(\d+)", link, text)


def _import_first(rule: Rule, lines: list[str]) -> list[str]:
    """Import the rule at the start of its first example that is run, so that the example runs as printed."""
    line = f">>> from {type(rule).__module__} import {type(rule).__name__}\n"
    return "\n".join(lines).replace("```python\n>>>", f"```python\n{line}>>>", 1).split("\n")
