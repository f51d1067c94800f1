"""What TensorBoard's own tabs show: the alerts as text, and a layout of few charts."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bnmonitor._text import count, listing
from bnmonitor.history import statistics
from bnmonitor.results import Alert, Incident

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto

PER_LAYER = {statistic.tag: statistic.name for statistic in statistics.LAYER if statistic.tag}
"""Scalars with a value per layer: group of tags, and the metric it shows."""

ROWS = 50
"""Alerts in the text of the Text tab, which is rewritten at each alert; the BatchNorm tab shows all."""

_LAYOUT = b"custom_scalars__config__"
_HEAD = 4 * 2**20
"""As much of an event file is searched for a layout: it is written before a training begins."""


def alerts_text(alerts: Sequence[Alert], incidents: Sequence[Incident]) -> str:
    """Return each incident with its fix and its alerts, the open and worst first, then what is in no incident.

    It is a list: TensorBoard gives a table of seven columns so little room that it breaks words into letters.
    """
    known = {alert.key: alert for alert in sorted(alerts, key=lambda a: -a.first_step)[:ROWS]}
    left, lines = dict(known), list[str]()
    for incident in sorted(incidents, key=lambda i: (i.state != "open", -i.severity, i.first_step)):
        state = "" if incident.state == "open" else ", resolved"
        where = f" · {_cell(incident.where)}" if incident.where else ""
        title = f"**{incident.severity.mark} {_cell(incident.title)}**"
        lines += [f"{title} · since step {incident.first_step}{state}{where}", "", f"fix: {_cell(incident.advice)}", ""]
        own = [left.pop(each.key) for each in incident.evidence if each.key in left]
        lines += [*(_entry(each, incident.advice) for each in own), ""]
    lines += [_entry(each) for each in left.values()]
    lines += ["", f"{count(len(alerts) - ROWS, 'older alert')} in the BatchNorm tab."] if len(alerts) > ROWS else []
    return "\n".join(lines)


def _entry(a: Alert, said: str = "") -> str:
    more = f" (+{len(a.layers) - 1})" if len(a.layers) > 1 else ""
    channels = f", channels {listing(a.channels)}" if a.channels else ""
    where = f" · {_cell(a.layer)}{more}{channels}" if a.layer is not None else ""
    state = "" if a.state == "open" else f", cleared, last seen at step {a.last_step}"
    fix = "" if a.advice == said else f"; fix: {_cell(a.advice)}"
    return f"- {a.code} {a.rule} · {a.severity} · since step {a.first_step}{state}{where}: {_cell(a.message)}{fix}"


def _cell(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    plain = html.escape(" ".join(text.split()))
    for sign in "|*_`[]~":
        plain = plain.replace(sign, f"&#{ord(sign)};")
    return plain


def layout() -> SummaryProto:
    """Return the charts of TensorBoard's CUSTOM SCALARS tab: one for each number, with a line for each layer."""
    from torch.utils.tensorboard.summary import custom_scalars

    charts = {statistics.BY_NAME[name].label: ["Multiline", [f"{tag}/.*"]] for tag, name in PER_LAYER.items()}
    make: Callable[..., SummaryProto] = custom_scalars
    return make(
        {
            "BatchNorm": {
                "health of the worst layer": ["Multiline", ["bnmonitor/health"]],
                "open incidents": ["Multiline", ["bnmonitor/errors", "bnmonitor/warnings"]],
                **charts,
            }
        }
    )


def has_layout(directory: Path) -> bool:
    """Return whether a run has a layout already, its own or one of an earlier session: a second one would hide it."""
    for path in directory.glob("*tfevents*"):
        with suppress(OSError), path.open("rb") as file:
            if _LAYOUT in file.read(_HEAD):
                return True
    return False
