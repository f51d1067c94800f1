"""How the evidence of an incident, a note and a finding of an audit look in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnmonitor._text import listing, printable, thousands
from bnmonitor.display import styles
from bnmonitor.results import Alert

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def alert_brief(alert: Alert) -> RenderableType:
    """Return an alert without its fix; one that was cleared takes a line."""
    if alert.state == "cleared":
        return _block(alert, _cleared(alert))
    return _block(alert, _what(alert) + _when(alert), _message(alert))


def finding_block(alert: Alert) -> RenderableType:
    """Return a finding of an audit, which knows no steps, in full."""
    return _block(alert, _what(alert), _message(alert), *_fix(alert))


def finding_brief(alert: Alert) -> RenderableType:
    """Return a finding of an audit without its fix."""
    return _block(alert, _what(alert), _message(alert))


def _block(alert: Alert, *lines: Text) -> RenderableType:
    """Return lines under one another, with the alert's sign before the first."""
    from rich.table import Table
    from rich.text import Text

    gone = alert.state == "cleared"
    style = styles.strong(styles.HEALTHY if gone else styles.OF_SEVERITY[alert.severity])
    block = Table.grid(padding=(0, 1))
    block.add_column()
    block.add_column(overflow="fold")
    for place, line in enumerate(lines):
        sign = "" if place else "✓" if gone else alert.severity.mark
        block.add_row(Text(sign, style=style), line)
    return block


def _what(alert: Alert) -> Text:
    """Return the severity, the rule, the layer and its channels."""
    from rich.text import Text

    head = Text()
    head.append(f"{alert.severity} ", style=styles.strong(styles.OF_SEVERITY[alert.severity]))
    head.append(printable(f"{alert.code} {alert.rule}"), style=styles.STRONG)
    if alert.layer is not None:
        head.append(f" · {printable(alert.layer)}")
    head.append(alert.extent, style=styles.QUIET)
    if alert.channels:
        head.append(f" · channels {listing(alert.channels)}")
    return head


def _when(alert: Alert) -> Text:
    from rich.text import Text

    return Text(f" · since step {thousands(alert.first_step)}")


def _cleared(alert: Alert) -> Text:
    from rich.text import Text

    return Text.assemble(
        (printable(f"{alert.code} {alert.rule}"), styles.STRONG),
        f" · {printable(alert.layer or 'model')}",
        (f" · cleared, last seen at step {alert.last_step}", styles.QUIET),
    )


def _message(alert: Alert) -> Text:
    from rich.text import Text

    return Text(printable(alert.message))


def _fix(alert: Alert) -> list[Text]:
    from rich.text import Text

    return [
        Text.assemble(("fix: ", styles.STRONG), printable(alert.advice)),
        Text(printable(f"more: bnmonitor explain {alert.code}"), style=styles.QUIET),
    ]
