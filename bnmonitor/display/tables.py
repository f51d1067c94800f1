"""The state of a run in a terminal: its headline, its layers, its incidents, and what was not checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bnmonitor._text import count, listing, printable
from bnmonitor.display import styles
from bnmonitor.display.alerts import alert_brief
from bnmonitor.display.incidents import incident_block, incident_line, incident_rest
from bnmonitor.display.layers import LayerTable
from bnmonitor.display.lines import Line, Lines
from bnmonitor.results import ROLLED_BACK, Alert, Severity, StepSummary

if TYPE_CHECKING:
    from rich.console import RenderableType


def headline(summary: StepSummary, ends: Sequence[str] = ()) -> RenderableType:
    """Return the headline in one line, shorter in a narrow terminal.

    Args:
        summary: The state.
        ends: Ends of the line, the most complete first; by default the epoch and the step.
    """
    from rich.text import Text

    worst = max((incident.severity for incident in summary.open_incidents()), default=Severity.INFO)
    style = styles.strong(styles.OF_SEVERITY[worst])
    short = summary.place[max(0, summary.place.find(" · step")) :]
    forms = [f"{verdict}{end}" for verdict in summary.verdicts() for end in ends or (summary.place, short)]
    forms += summary.verdicts()
    return Lines(Line([Text(printable(form), style=style) for form in dict.fromkeys(forms)]))


def health_table(summary: StepSummary, *, rows: int = 8, well: bool = False) -> RenderableType:
    """Return the headline and a table of the layers with an incident.

    Args:
        summary: The state.
        rows: Rows of the table; the rest is counted.
        well: Show healthy layers too.
    """
    from rich.console import Group

    table = LayerTable(summary, rows=rows, well=well)
    return Group(headline(summary), *([table] if table else []))


def final_summary(summary: StepSummary, *, rows: int = 8, well: bool = False, verbose: bool = False) -> RenderableType:
    """Return the report on a run: headline, layers, incidents with their fix.

    Args:
        summary: The state.
        rows: Rows of the table, and incidents that are resolved; the rest is counted.
        well: Show healthy layers too.
        verbose: Show the evidence of each incident, notes, what was not checked and what could not be recovered.
    """
    from rich.console import Group
    from rich.text import Text

    parts = [health_table(summary, rows=rows, well=well)]
    for incident in summary.open_incidents():
        parts += [Text(""), incident_block(incident)]
        parts += [alert_brief(alert) for alert in incident.evidence] if verbose else []
    gone = [incident for incident in summary.explained if incident.state == "resolved"]
    parts += [Text("")] if gone else []
    for incident in gone[:rows]:
        parts.append(incident_line(incident))
        parts += [alert_brief(alert) for alert in incident.evidence] if verbose else []
    parts += [done(note) for note in summary.notes if note.code == ROLLED_BACK and not verbose]
    rest = incident_rest(gone, rows)
    parts += [rest] if rest is not None else []
    return Group(*parts, *(_beside(summary) if verbose else [_hidden(summary)]))


def unchecked(skipped: Mapping[str, str]) -> list[str]:
    """Say which rules could not run, a line for each reason.

    >>> unchecked({"a": "needs x", "b": "needs y", "c": "needs x"})
    ['a, c: needs x', 'b: needs y']
    """
    reasons: dict[str, list[str]] = {}
    for rule, why in skipped.items():
        reasons.setdefault(why, []).append(rule)
    return [f"{', '.join(rules)}: {why}" for why, rules in reasons.items()]


def _hidden(summary: StepSummary) -> RenderableType:
    """Return what a reader can ask for."""
    notes, skipped = len(summary.notes), len(summary.skipped)
    parts = [count(notes, "note")] if notes else []
    parts += [f"{count(skipped, 'rule')} not checked"] if skipped else []
    return aside(f"--verbose shows {' and '.join(parts)}") if parts else Lines()


def aside(text: str) -> RenderableType:
    """Return a line that can be read later."""
    from rich.text import Text

    return Lines(Line([Text(printable(text), style=styles.QUIET)]))


def done(note: Alert) -> RenderableType:
    """Return a line that says what bnmonitor has done to the training."""
    from rich.text import Text

    text = f"{note.severity.mark} {note.rule.replace('-', ' ')}: {note.message}"
    return Lines(Line([Text(printable(text), style=styles.STRONG)]))


def _beside(summary: StepSummary) -> list[RenderableType]:
    """Return the notes, what was not checked, and what could not be recovered."""
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    if summary.notes:
        parts += [Text(""), Text("only worth knowing:", style=styles.QUIET)]
        parts += [alert_brief(alert) for alert in summary.notes]
    blind: dict[str, list[str]] = {}
    for row in summary.rows:
        if row.recovery:
            blind.setdefault(row.recovery, []).append(printable(row.name))
    lines = {
        "cost:": [summary.cost] if summary.cost else [],
        "not checked:": unchecked(summary.skipped),
        "no batch σ²:": [f"{listing(names, 3)}: {why}" for why, names in sorted(blind.items())],
    }
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, style=styles.QUIET)
    table.add_column(overflow="fold", style=styles.QUIET)
    for label, texts in lines.items():
        for place, text in enumerate(texts):
            table.add_row(Text("" if place else label), Text(printable(text), overflow="fold"))
    return [*parts, Text(""), table] if any(lines.values()) else parts
