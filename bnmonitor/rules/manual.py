"""The manual of the rules, from their docstrings: Markdown pages, an index, and plain text for the terminal."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields

from bnmonitor._text import DOCS
from bnmonitor.rules.base import Rule
from bnmonitor.rules.catalogue import CATALOGUE, FAMILIES
from bnmonitor.rules.needs import NEEDS

_OWN = "own rules"
_PROMPTS = (">>>", "...")


def page(rule: Rule) -> str:
    """Return the Markdown page of a rule."""
    summary, sections = _parts(rule)
    lines = [f"# {rule.code} {rule.name}", "", _markdown(summary), "", *_facts(rule), ""]
    for title, body in _with_thresholds(rule, sections):
        lines += [f"## {title}", ""]
        if title == "Thresholds":
            lines += [*_table(rule), ""] if fields(rule) else []
        for block in _blocks(body):
            lines += [_fence(block) if _is_example(block) else _prose(title, block), ""]
        if title == "Example":
            lines = _import_first(rule, lines)
    lines += _settings(rule)
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
        "",
    ]
    for family, members in families.items():
        prefix = next((f"{code}: " for code, title in FAMILIES.items() if title == family), "")
        lines += [f"## {prefix}{family}", "", "| code | name | severity | what it finds |", "|---|---|---|---|"]
        for rule in members:
            summary = _markdown(_parts(rule)[0]).replace("\n", " ").replace("|", "\\|")
            lines.append(f"| [{rule.code}](rules/{rule.code}.md) | {rule.name} | {rule.severity} | {summary} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def plain(rule: Rule, width: int = 80) -> str:
    """Return the manual of a rule as plain text, for the terminal.

    Args:
        rule: The rule.
        width: Columns to wrap at; examples are not wrapped.
    """
    summary, sections = _parts(rule)
    needs = [f"Needs {_needs(rule)}.", ""] if rule.needs else []
    lines = [f"{rule.code} {rule.name} · {rule.severity}", "", *_wrap(summary, width), "", *needs]
    for title, body in _with_thresholds(rule, sections):
        lines += [title]
        if title == "Thresholds":
            lines += [f"  {name} = {value}" for name, value in _values(rule)]
            lines += [""] if fields(rule) and body else []
        for i, block in enumerate(_blocks(body)):
            lines += [""] if i and lines[-1] else []
            lines += textwrap.indent(block, "  ").splitlines() if _is_example(block) else _wrap(block, width, "  ")
        lines.append("")
    if type(rule) in CATALOGUE:
        lines.append(f"{DOCS}/rules/{rule.code}.md")
    return "\n".join(lines).rstrip()


# -- the docstring in parts --------------------------------------------------------------------------------------------


def _parts(rule: Rule) -> tuple[str, list[tuple[str, str]]]:
    """The first paragraph of the docstring, and its sections as title and body."""
    text = inspect.cleandoc(type(rule).__doc__ or "")
    summary, *rest = re.split(r"^## +", text, flags=re.MULTILINE)
    sections = [part.partition("\n") for part in rest]
    return summary.strip(), [(title.strip(), body.strip()) for title, _, body in sections]


def _with_thresholds(rule: Rule, sections: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The sections, plus one for the thresholds if the docstring lacks it although the rule has thresholds."""
    yield from sections
    if fields(rule) and "Thresholds" not in dict(sections):
        yield "Thresholds", ""


def _blocks(body: str) -> list[str]:
    """Paragraphs and examples of a section, split even without a blank line between them."""
    blocks: list[list[str]] = [[]]
    for line in body.splitlines():
        if not line.strip():
            blocks.append([])
        elif line.startswith(">>>") and blocks[-1] and not _is_example(blocks[-1][0]):
            blocks.append([line])
        else:
            blocks[-1].append(line)
    return ["\n".join(block) for block in blocks if block]


def _is_example(block: str) -> bool:
    return block.startswith(_PROMPTS)


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
    return [
        "| | |",
        "|---|---|",
        f"| severity | {rule.severity} |",
        f"| family | {_family(rule)} |",
        f"| needs | {_needs(rule) or 'nothing beyond the layers themselves'} |",
        f"| runs by default | {'yes' if rule.default else 'no'} |",
        f"| an alert opens | {opens} |",
    ]


def _table(rule: Rule) -> list[str]:
    return ["| threshold | default |", "|---|---|", *(f"| `{name}` | {value} |" for name, value in _values(rule))]


def _settings(rule: Rule) -> list[str]:
    if _family(rule) == FAMILIES["BN0"]:
        return []
    lines = ["## Settings", "", f'Switch the rule off with `ignore=("{rule.name}",)`.']
    for name, value in _values(rule)[:1]:
        lines += [f'Set a threshold with `rules={{"{rule.name}": {{"{name}": {value}}}}}`.']
    return lines


def _markdown(text: str) -> str:
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _prose(title: str, text: str) -> str:
    text = _markdown(text)
    return _linked(text) if title == "References" else text


def _linked(text: str) -> str:
    """Turn every ``owner/project#7``, and a ``#8`` that follows it, into a link."""
    project = ""

    def link(found: re.Match[str]) -> str:
        nonlocal project
        project = found[1] or project
        return f"[{found[0]}](https://github.com/{project}/issues/{found[2]})" if project else found[0]

    return re.sub(r"([\w.-]+/[\w.-]+)?#(\d+)", link, text)


def _fence(block: str) -> str:
    return f"```python\n{block}\n```"


def _import_first(rule: Rule, lines: list[str]) -> list[str]:
    """Import the rule at the start of its first example, so that the example runs as printed."""
    line = f">>> from {type(rule).__module__} import {type(rule).__name__}\n"
    text = "\n".join(lines)
    return text.replace("```python\n", f"```python\n{line}", 1).split("\n")


# -- the terminal ------------------------------------------------------------------------------------------------------


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    flat = " ".join(text.replace("``", "").split())
    return textwrap.wrap(flat, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
