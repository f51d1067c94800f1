"""The commands that print the manual: rules, causes, symptoms and the guide."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bnmonitor.cli.answers import FINE, fail
from bnmonitor.display import say, show

if TYPE_CHECKING:
    from rich.console import RenderableType


def rules(parsed: argparse.Namespace) -> int:
    """List rules."""
    from bnmonitor.rules import all_rules, described, search

    try:
        found = [described(rule) for rule in (search(parsed.words) if parsed.words else all_rules())]
    except ValueError as error:
        return fail(str(error))
    if parsed.json:
        print(json.dumps({"schema": 1, "rules": found}, indent=2))
    elif not sys.stdout.isatty():  # a line a rule, so that grep finds whole sentences
        for each in found:
            say(f"{each['code']}  {each['name']:<31}  {each['severity']:<7}  {each['finds']}")
    else:
        show(_table(found))
    return FINE


def _table(found: Sequence[Mapping[str, str]]) -> RenderableType:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("code", "name", "severity", "what it finds"):
        table.add_column(title, no_wrap=title != "what it finds", overflow="fold")
    for each in found:
        table.add_row(each["code"], each["name"], each["severity"], each["finds"])
    return table


def diagnose(parsed: argparse.Namespace) -> int:
    """Find causes by what a user sees."""
    from bnmonitor.symptoms import all_symptoms, described_symptom, plain_symptom, search_symptoms

    asked = " ".join(parsed.words)
    found = search_symptoms(asked) if asked.strip() else all_symptoms()
    if not found:
        return fail(f"no symptom is like {asked!r}; `bnmonitor diagnose` lists them")
    if parsed.json:
        print(json.dumps({"schema": 1, "symptoms": [described_symptom(each) for each in found]}, indent=2))
        return FINE
    if not asked.strip():
        for each in found:
            say(f"{each.name:<23}  {each.title}")
        return FINE
    best, *others = found
    say(plain_symptom(best, code=parsed.code))
    for each in others[:3]:
        say(f"or is it: {each.title}? bnmonitor diagnose {each.name}")
    return FINE


def guide(parsed: argparse.Namespace) -> int:
    """Show a page of the guide."""
    from bnmonitor.guide import all_pages, described_page, find_page, near_page, parts

    if not parsed.page:
        if parsed.json:
            print(json.dumps({"schema": 1, "pages": [described_page(page) for page in all_pages()]}, indent=2))
            return FINE
        group = ""
        for page in all_pages():
            if page.group != group:
                say(("\n" if group else "") + page.group)
                group = page.group
            say(f"  {page.name:<19}  {page.title}")
        return FINE
    try:
        page = find_page(parsed.page)
    except ValueError as error:
        return fail(f"{error}{near_page(parsed.page)}; `bnmonitor guide` lists the pages")
    if parsed.json:
        print(json.dumps({"schema": 1, **described_page(page)}, indent=2))
        return FINE
    for part in parts(page):
        if isinstance(part, str):
            say(part)
        else:
            show(_grid(part))
    return FINE


def _grid(rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in rows[0]:
        table.add_column(Text(title))
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def explain(parsed: argparse.Namespace) -> int:
    """Explain a rule or a cause."""
    from bnmonitor.diagnosis import CAUSES, Cause, explained_cause, find_cause, plain_cause
    from bnmonitor.rules import all_rules, explained, find, near, plain

    word, causes = parsed.rule.lower(), [cause.name for cause in CAUSES]
    try:
        found = find_cause(word) if word in causes else find(word)
    except ValueError:
        hint = near(word, all_rules(), causes)
        return fail(f"nothing is called {parsed.rule!r}{hint}; `bnmonitor rules` lists the rules")
    if parsed.json:
        parts = explained_cause(found) if isinstance(found, Cause) else explained(found)
        print(json.dumps({"schema": 1, **parts}, indent=2))
    else:
        say(plain_cause(found) if isinstance(found, Cause) else plain(found))
    return FINE
