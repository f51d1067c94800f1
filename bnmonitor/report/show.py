"""A report in the terminal, and as Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnmonitor._text import count, listing, number, printable
from bnmonitor.display import QUIET, final_summary, sparkline
from bnmonitor.report.read import Report
from bnmonitor.results import Alert

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
    ordered = sorted(report.alerts, key=lambda a: (a.state != "open", -a.severity, a.first_step))
    lines += ["", *(_item(alert) for alert in ordered)] if ordered else []
    skipped = [f"`{printable(rule)}` ({_plain(why)})" for rule, why in report.skipped.items()]
    lines += ["", f"<details><summary>{count(len(skipped), 'rule')} not checked</summary>", ""] if skipped else []
    lines += [*(f"- {each}" for each in skipped), "", "</details>"] if skipped else []
    return "\n".join(lines)


def _item(alert: Alert) -> str:
    more = f" and {count(len(alert.layers) - 1, 'more layer')}" if len(alert.layers) > 1 else ""
    channels = f", channels {listing(alert.channels)}" if alert.channels else ""
    where = f" in {_plain(alert.layer)}{more}{channels}" if alert.layer is not None else ""
    code = f"[{alert.code}]({alert.url})" if alert.url else alert.code
    head = f"- {alert.severity.mark} **{code} {_plain(alert.rule)}**{where}, since step {alert.first_step}"
    if alert.state == "cleared":
        return f"{head}; cleared, last seen at step {alert.last_step}: {_plain(alert.message)}"
    return f"{head}: {_plain(alert.message)}  \n  fix: {_plain(alert.advice)}"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is; line breaks and HTML are escaped."""
    text = printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "\\`*_[]|":
        text = text.replace(sign, f"\\{sign}")
    return text
