"""A report as one HTML page: a summary for anyone, and the views of the BatchNorm tab with their numbers inside."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from bnmonitor import viewer
from bnmonitor._text import count, number, thousands
from bnmonitor.display import sparkline
from bnmonitor.history.run import Channels, Frames, History, Run
from bnmonitor.history.source import Array
from bnmonitor.history.statistics import CHANNEL, LAYER, Statistic, logarithmic
from bnmonitor.history.thin import before, extent, pool
from bnmonitor.report.read import Report, report
from bnmonitor.report.template import STYLE, TEMPLATE
from bnmonitor.results import Alert, Incident, LayerSummary, Severity

BUDGET = 720_000
"""Bytes of numbers in the page, as encoded; with the drawing code and the text the page stays below a megabyte."""

LEAST_COLUMNS = 160
"""Fewest columns of a map: a model of more than about 80 layers makes a larger page instead."""

COLUMNS = 1200
"""Most columns of a map: more than most screens show."""

CHANNEL_COLUMNS = 96
_KEPT_BITS = 12

# The page loads nothing, and the browser forbids it to.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def page(history: History, name: str) -> str:
    """Return a page that shows a run, needs no network, and has less than a megabyte for up to about 80 layers.

    A history that does not fit is thinned: each column keeps the value that is furthest from the usual one. Numbers
    keep three to four significant digits.
    """
    run, state = history.run(name), report(history, name)
    content, numbers = _content(run, state)
    return TEMPLATE.format(
        policy=_POLICY,
        title=escape(f"BatchNorm: {_called(state)}"),
        style=viewer.styles() + STYLE,
        verdict=_verdict(state),
        summary=_summary(state),
        content=_json(content),
        numbers=base64.b64encode(numbers).decode(),
        code=viewer.page(),
    )


# -- the numbers -------------------------------------------------------------------------------------------------------


class _Sheets:
    """Blocks of numbers laid end to end."""

    def __init__(self) -> None:
        self._blocks: list[Array] = []
        self._length = 0

    def add(
        self, names: tuple[str, ...], of: tuple[Statistic, ...], steps: Array, values: Array, columns: int
    ) -> dict[str, Any]:
        """Add ``[sheets, rows, steps]``, thinned to some columns, and return its description.

        Args:
            names: Name of each sheet.
            of: The table of statistics that the names are from.
            steps: The step of each column.
            values: The numbers.
            columns: The most columns to keep.
        """
        thin: list[Array] = []
        edges = np.arange(1)
        logs = [logarithmic(name, of) for name in names]
        for name, log, rows in zip(names, logs, values, strict=True):
            pooled, edges = pool(rows, columns, logarithmic=log, lowest=name == "health")
            thin.append(pooled)
        block = np.ascontiguousarray(np.stack(thin), "<f4")
        about = {
            "at": self._length,
            "shape": block.shape,
            "sheets": names,
            "ends": steps[edges[1:] - 1].tolist(),
            "before": before(steps),
            "frames": len(steps),
            "extents": [extent(rows, logarithmic=log) for log, rows in zip(logs, values, strict=True)],
        }
        self._blocks.append(block.ravel())
        self._length += block.size
        return about

    def packed(self) -> bytes:
        """Return all numbers, rounded to 12 bits of mantissa, byte by byte in planes, compressed."""
        values = np.concatenate(self._blocks) if self._blocks else np.zeros(0, "<f4")
        bits = values.view("<u4")
        cut = 23 - _KEPT_BITS
        finite = np.isfinite(values)
        rounded = np.where(finite, (bits + np.uint32(1 << (cut - 1))) & np.uint32(~((1 << cut) - 1) & 0xFFFFFFFF), bits)
        # The planes of sign and exponent repeat themselves, which the numbers as they are do not.
        planes = rounded.astype("<u4").view(np.uint8).reshape(-1, 4).T
        return gzip.compress(planes.tobytes(), 6, mtime=0)


def _content(run: Run, state: Report) -> tuple[dict[str, Any], bytes]:
    frames = run.frames
    columns = min(COLUMNS, max(1, len(frames)))
    sheets = _Sheets()
    layers = _layers(sheets, frames, columns)
    while (size := _size(sheets)) > BUDGET and columns > LEAST_COLUMNS:
        columns = max(LEAST_COLUMNS, int(columns * min(0.9, 0.97 * BUDGET / size)))
        sheets = _Sheets()
        layers = _layers(sheets, frames, columns)
    course = _course(sheets, run, columns)
    channels = _channels(sheets, run, state)
    facts = run.facts
    content = {
        "index": {
            "runs": [{"name": _called(state), "layers": len(frames.layers), "last": state.step, "wall": state.written}],
            "statistics": [s.to_dict() for s in LAYER],
            "channelStatistics": [s.to_dict() for s in CHANNEL],
            "columns": COLUMNS,
        },
        "run": {
            "name": _called(state),
            "layers": [
                {"name": name, "channels": of, **facts.get(name, {}), "detailed": name in channels}
                for name, of in zip(frames.layers, frames.channels, strict=True)
            ],
            "metrics": frames.metrics,
            "frames": len(frames),
            "steps": [max(0, state.first_step), max(0, state.step)],
            "alerts": [alert.to_dict() for alert in state.alerts],
            "incidents": [incident.to_dict() for incident in state.incidents],
            "boxes": [],
        },
        "layers": layers,
        "course": course,
        "channels": channels,
        "manual": {name: found for name in _told(state) if (found := viewer.manual_page(name)) is not None},
    }
    return content, sheets.packed()


def _told(state: Report) -> list[str]:
    """Return the names of the manual's pages that the incidents and notes of a run link to."""
    codes = [alert.code for alert in state.alerts]
    return list(dict.fromkeys([*(incident.cause for incident in state.incidents), *codes]))


def _called(state: Report) -> str:
    """Return the run's name, or the name of its directory if the run has none."""
    return state.run if state.run != "." else state.path.resolve().name


def _layers(sheets: _Sheets, frames: Frames, columns: int) -> dict[str, Any]:
    if not len(frames):
        return {"at": 0, "shape": (0, 0, 0), "sheets": (), "ends": [], "before": -1, "frames": 0, "extents": []}
    return sheets.add(frames.metrics, LAYER, frames.steps, frames.values, columns)


def _course(sheets: _Sheets, run: Run, columns: int) -> dict[str, Any] | None:
    """Add the loss and the learning rates, a sheet each; None if none is known."""
    names, values = run.course.table()
    return sheets.add(names, LAYER, run.course.steps, values[:, None], columns) if names else None


def _channels(sheets: _Sheets, run: Run, state: Report) -> dict[str, Any]:
    """Add the channels of as many layers as fit, those with alerts first."""
    urgent = {name: i for i, name in enumerate(n for a in state.alerts for n in a.layers)}
    known = [name for name in run.frames.layers if name in run.detailed]
    order = sorted(known, key=lambda name: urgent.get(name, len(urgent)))
    spent, found = _size(sheets), {}
    for name in order:
        detail: Channels | None = run.channels(name)
        if detail is None or not len(detail.steps):
            continue
        thin = min(CHANNEL_COLUMNS, len(detail.steps))
        # Two bytes and a half is what a number takes, a third more in base64.
        spent += int(detail.values.shape[0] * detail.values.shape[1] * thin * 2.5 * 4 / 3)
        if spent > BUDGET:
            break
        found[name] = sheets.add(detail.statistics, CHANNEL, detail.steps, detail.values, thin)
    return found


def _size(sheets: _Sheets) -> int:
    return len(sheets.packed()) * 4 // 3


# -- the words ---------------------------------------------------------------------------------------------------------


def _json(thing: object) -> str:
    """Return JSON that can stand inside a script element."""
    text = json.dumps(thing, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _verdict(state: Report) -> str:
    """Return what a manager understands: how the run is, since when, what is wrong, and what to do about it."""
    found = state.open_incidents()
    about = f'<p class="quiet">{escape(state.headline())}</p>'
    if not found:
        return f"<h1>{escape(state.headline())}</h1>"
    worst, more = found[0], len(found) - 1
    how = "has been failing" if worst.severity is Severity.ERROR else "has had a fault"
    others = f" {count(more, 'more incident')} below." if more else ""
    said = f"This run {how} since step {thousands(worst.first_step)}: {worst.title}."
    return f"<h1>{escape(said)}</h1><p><b>What to do:</b> {escape(worst.advice)}.{others}</p>{about}".replace(
        "..<", ".<"
    )


def _summary(state: Report) -> str:
    lines = [f'<p class="quiet">{escape(line)}</p>' for line in state.about()]
    ordered = [*state.open_incidents(), *(each for each in state.incidents if each.state == "resolved")]
    lines += [_incident(incident) for incident in ordered]
    notes = [a for a in state.alerts if a.incident is None and a.severity is Severity.INFO]
    if notes:
        items = "".join(f"<li>{_evidence(alert)}</li>" for alert in notes)
        lines.append(f"<details><summary>{count(len(notes), 'note')}</summary><ul>{items}</ul></details>")
    ill = state.ill()
    if ill:
        lines.append(f'<div class="wide">{_table(ill[:12])}</div>')
        rest = len(state.rows) - len(ill[:12])
        lines += [f'<p class="quiet">{count(rest, "more layer")}</p>'] if rest else []
    if state.skipped:
        items = "".join(f"<li>{escape(rule)}: {escape(why)}</li>" for rule, why in state.skipped.items())
        lines.append(
            f"<details><summary>{count(len(state.skipped), 'rule')} not checked</summary><ul>{items}</ul></details>"
        )
    lines += [f'<p class="quiet">{escape(line)}</p>' for line in state.beside()]
    return "\n".join(lines)


def _table(rows: Sequence[LayerSummary]) -> str:
    head = "".join(f"<th>{t}</th>" for t in ("layer", "health", "", "batch σ²", "running gap", "γ min", "alerts"))
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(row: LayerSummary) -> tuple[str, ...]:
    return (
        # A name that is too long for a phone is broken where its parts end.
        escape(row.name).replace(".", ".<wbr>"),
        f"{row.health:.0f}",
        sparkline(row.batch_var),
        number(row.batch_var[-1]) if row.batch_var else "–",
        f"{row.running_gap:.2f}σ" if row.running_gap == row.running_gap else "–",
        f"{row.gamma_min:.2f}" if row.gamma_min == row.gamma_min else "–",
        escape(", ".join(row.alerts)),
    )


def _incident(incident: Incident) -> str:
    """Return an incident: its cause, where, since when, its numbers, its fix, and its evidence folded away."""
    over = f", resolved: last seen at step {incident.last_step}" if incident.state == "resolved" else ""
    where = f"<b>{escape(incident.where)}</b>, " if incident.where else ""
    evidence = "".join(f"<li>{_evidence(alert)}</li>" for alert in incident.evidence)
    shown = f"{count(len(incident.evidence), 'finding')} behind it, in causal order"
    return (
        f'<article class="said {incident.severity} {incident.state}">'
        f"<h2>{incident.severity.mark} {escape(incident.title)}</h2>"
        f"<p>{where}since step {incident.first_step}{over} · {incident.severity} · "
        f"{_link(incident.code, incident.url)}</p>"
        f"<p>{escape(incident.detail)}</p><p><b>fix:</b> {escape(incident.advice)}</p>"
        f"<details><summary>{shown}</summary><ol>{evidence}</ol></details></article>"
    )


def _evidence(alert: Alert) -> str:
    where = f" · {escape(alert.layer)}{alert.extent}" if alert.layer is not None else ""
    over = f", cleared, last seen at step {alert.last_step}" if alert.state == "cleared" else ""
    name = _link(f"{alert.code} {alert.rule}", alert.url)
    return f"{name}{where} · since step {alert.first_step}{over}: {escape(alert.message)}"


def _link(text: str, url: str) -> str:
    if not url.startswith("https://"):
        return escape(text)
    return f'<a href="{escape(url)}" rel="noreferrer">{escape(text)}</a>'
