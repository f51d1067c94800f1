"""A report in the terminal, and as Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnmonitor._text import count, number, printable
from bnmonitor.display import QUIET, final_summary, sparkline
from bnmonitor.report.read import Report
from bnmonitor.results import Incident

if TYPE_CHECKING:
    from rich.console import RenderableType


def terminal(reports: Sequence[Report], *, rows: int = 8) -> RenderableType:
    """Return the newest run in full, and a line for each of the others.

    Args:
        reports: The runs, the newest first.
        rows: Layers that the table shows; the rest is counted.
    """
    from rich.console import Group
    from rich.text import Text

    newest, *others = reports
    parts: list[RenderableType] = [Text(printable(line), style=QUIET, overflow="fold") for line in newest.about()]
    parts.append(final_summary(newest, rows=rows))
    if others:
        parts += [Text(""), Text(f"{count(len(others), 'older run')} (--run NAME shows one):", style=QUIET)]
        parts += [Text(printable(f"{each.run}: {each.headline()}"), overflow="fold") for each in others]
    return Group(*parts)


def markdown(reports: Sequence[Report], *, rows: int = 8) -> str:
    """Return Markdown for a pull request: a section for each run, the newest first."""
    return "\n\n".join(_section(each, rows) for each in reports) + "\n"


def _section(report: Report, rows: int) -> str:
    lines = [f"### {_plain(report.headline())}", "", f"`{printable(report.run)}`: {_plain(report.about()[0])}"]
    ill = report.ill()
    if ill:
        lines += ["", "| layer | health | batch σ² | | running gap | γ min | alerts |", "|---|--:|---|--:|--:|--:|---|"]
        for row in ill[:rows]:
            now = number(row.batch_var[-1]) if row.batch_var else "–"
            cells = [
                _plain(row.name),
                f"{row.health:.0f}",
                sparkline(row.batch_var),
                now,
                f"{row.running_gap:.2f}σ",
                f"{row.gamma_min:.2f}",
                _plain(", ".join(row.alerts)),
            ]
            lines.append("| " + " | ".join("–" if cell in ("nan", "nanσ") else cell for cell in cells) + " |")
        rest = len(report.rows) - len(ill[:rows])
        lines += ["", f"{count(rest, 'more layer')}."] if rest else []
    ordered = [*report.open_incidents(), *(each for each in report.incidents if each.state == "resolved")]
    lines += ["", *(_item(incident) for incident in ordered)] if ordered else []
    skipped = [f"`{printable(rule)}` ({_plain(why)})" for rule, why in report.skipped.items()]
    lines += ["", f"<details><summary>{count(len(skipped), 'rule')} not checked</summary>", ""] if skipped else []
    lines += [*(f"- {each}" for each in skipped), "", "</details>"] if skipped else []
    return "\n".join(lines)


def _item(incident: Incident) -> str:
    where = f", {_plain(incident.where)}" if incident.where else ""
    code = f"[{incident.code}]({incident.url})" if incident.url else incident.code
    head = f"- {incident.severity.mark} **{_plain(incident.title)}** ({code}){where}, since step {incident.first_step}"
    if incident.state == "resolved":
        return f"{head}; resolved, last seen at step {incident.last_step}: {_plain(incident.detail)}"
    return f"{head}: {_plain(incident.detail)}  \n  fix: {_plain(incident.advice)}"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is; line breaks and HTML are escaped."""
    text = printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "\\`*_[]|":
        text = text.replace(sign, f"\\{sign}")
    return text
