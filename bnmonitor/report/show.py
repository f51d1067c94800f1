"""A report in the terminal, and as Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnmonitor._text import as_markdown, count, number, printable, thousands
from bnmonitor.display import QUIET, aside, final_summary, sparkline
from bnmonitor.report.read import Report
from bnmonitor.results import Alert, Incident

if TYPE_CHECKING:
    from rich.console import RenderableType


def terminal(reports: Sequence[Report], *, rows: int = 8, verbose: bool = False) -> RenderableType:
    """Return the newest run in full, and a line for each of the others.

    Args:
        reports: The runs, the newest first.
        rows: Layers that the table shows; the rest is counted.
        verbose: Show the evidence of each incident, notes, what was not checked and what could not be recovered.
    """
    from rich.console import Group
    from rich.text import Text

    newest, *others = reports
    parts: list[RenderableType] = [aside(line) for line in newest.about()]
    parts.append(final_summary(newest, rows=rows, verbose=verbose))
    parts += [aside(line) for line in newest.beside()]
    if others:
        parts += [Text(""), Text(f"{count(len(others), 'older run')} (--run NAME shows one):", style=QUIET)]
        parts += [Text(printable(f"{each.run}: {each.headline()}"), overflow="fold") for each in others]
    return Group(*parts)


def markdown(reports: Sequence[Report], *, rows: int = 8) -> str:
    """Return Markdown for a pull request: a section for each run, the newest first."""
    return "\n\n".join(_section(each, rows) for each in reports) + "\n"


def _section(report: Report, rows: int) -> str:
    lines = [
        f"### {as_markdown(report.headline())}",
        "",
        f"`{printable(report.run)}`: {as_markdown(report.about()[0])}",
    ]
    ill = report.ill()
    if ill:
        lines += ["", "| layer | health | batch σ² | | running gap | γ min | what |", "|---|--:|---|--:|--:|--:|---|"]
        for row in ill[:rows]:
            now = number(row.batch_var[-1]) if row.batch_var else "–"
            cells = [
                as_markdown(row.name),
                f"{row.health:.0f}",
                sparkline(row.batch_var),
                now,
                f"{row.running_gap:.2f}σ",
                f"{row.gamma_min:.2f}",
                as_markdown(", ".join(row.alerts)),
            ]
            lines.append("| " + " | ".join("–" if cell in ("nan", "nanσ") else cell for cell in cells) + " |")
        rest = len(report.rows) - len(ill[:rows])
        lines += ["", f"{count(rest, 'more layer')}."] if rest else []
    ordered = sorted(report.explained, key=lambda i: (i.state != "open", -i.severity, i.first_step))
    lines += ["", *(_item(incident) for incident in ordered)] if ordered else []
    notes = [_note(alert) for alert in report.notes]
    lines += _folded(count(len(notes), "note"), notes)
    skipped = [f"- `{printable(rule)}` ({as_markdown(why)})" for rule, why in report.skipped.items()]
    lines += _folded(f"{count(len(skipped), 'rule')} not checked", skipped)
    return "\n".join(lines)


def _folded(title: str, items: Sequence[str]) -> list[str]:
    return ["", f"<details><summary>{title}</summary>", "", *items, "", "</details>"] if items else []


def _item(incident: Incident) -> str:
    code = f" ([{incident.code}]({incident.url}))" if incident.url else ""
    where = f" · {as_markdown(incident.where)}" if incident.where else ""
    since = f"since step {thousands(incident.first_step)}"
    head = f"- {incident.severity.mark} **{as_markdown(incident.title)}**{code}, {since}"
    detail = f"  \n  {as_markdown(incident.detail)}" if incident.detail else ""
    if incident.state == "resolved":
        return f"- ✓ resolved: {head[4:]}{where}, last seen at step {thousands(incident.last_step)}{detail}"
    return f"{head}{where}{detail}  \n  fix: {as_markdown(incident.advice)}"


def _note(alert: Alert) -> str:
    where = f" in {as_markdown(alert.layer)}" if alert.layer is not None else ""
    return (
        f"- {alert.code} {as_markdown(alert.rule)}{where}, since step {alert.first_step}: {as_markdown(alert.message)}"
    )
