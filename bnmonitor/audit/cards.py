"""An audit for people who are to use the file: a card in Markdown, and a badge."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bnmonitor._text import as_markdown, count, number, printable, thousands
from bnmonitor._version import __version__
from bnmonitor.audit.judge import Audit
from bnmonitor.results import Alert, Severity

_BLANK = "–"
_COLORS = {Severity.ERROR: "#b3261e", Severity.WARNING: "#a76400"}
_SOUND, _UNKNOWN, _LABEL = "#2c6e63", "#5a6672", "#3a4149"
_NARROW, _WIDE = frozenset("fijlrt.,:;!'|·()[] "), frozenset("mwMWN%✓✗σγ")


@dataclass(frozen=True, kw_only=True)
class Audited:
    """An audit with what it is of.

    Attributes:
        name: Its name.
        path: The file; None for a model that is made.
        audit: The audit.
    """

    name: str
    path: Path | None
    audit: Audit


def card(audited: Sequence[Audited], *, rows: int = 12) -> str:
    """Return a card: the verdict, the facts, what was found, the layers, and what was not looked at.

    Args:
        audited: What was audited.
        rows: Layers in the table of each; the rest is counted.
    """
    return "\n\n".join(_section(each, rows) for each in audited) + "\n"


def _section(one: Audited, rows: int) -> str:
    found = one.audit
    name = one.path.name if one.path is not None else one.name
    key = one.name.removeprefix(str(one.path)).lstrip(":") if one.path is not None else ""
    title = f"{name} · {key}" if key else name
    lines = [
        f"# BatchNorm card: {as_markdown(title)}",
        "",
        f"**{as_markdown(verdict(found))}**",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {title} | {text} |" for title, text in _facts(one)]
    serious = [a for a in found.alerts if a.severity > Severity.INFO]
    notes = [a for a in found.alerts if a.severity is Severity.INFO]
    if serious:
        lines += ["", "## What is wrong", "", *map(_item, serious)]
    if notes:
        lines += ["", "## Worth knowing", "", *map(_item, notes)]
    if found.rows:
        lines += ["", "## Layers", "", *_table(found, rows)]
    lines += ["", "## What this card does not say", "", _limits(found)]
    reasons = [f"- {as_markdown(rule)}: {as_markdown(why)}" for rule, why in _reasons(found)]
    lines += ["", "Not looked at:", "", *reasons] if reasons else []
    return "\n".join([*lines, "", f"Made by `bnmonitor audit` {__version__}."])


def verdict(found: Audit) -> str:
    """Return what the audit says, for a reader who does not know bnmonitor."""
    return found.headline().removeprefix("BatchNorm ")


def _facts(one: Audited) -> list[tuple[str, str]]:
    found, facts = one.audit, []
    if one.path is not None and one.path.is_file():
        digest = hashlib.sha256()
        with one.path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        facts.append(("file", f"{_size(one.path.stat().st_size)}, SHA-256 `{digest.hexdigest()[:16]}…`"))
    channels = sum(row.channels for row in found.rows)
    facts.append(("layers", f"{thousands(len(found.rows))} with {count(channels, 'channel')}"))
    known = [n for n in found.updates if n is not None]
    span = thousands(min(known)) if known else "not in the file"
    facts.append(
        ("updates counted", f"{span} to {thousands(max(known))}" if known and min(known) < max(known) else span)
    )
    if channels:
        dead = sum(part * row.channels for part, row in zip(found.dead, found.rows, strict=True))
        facts.append(("channels switched off by γ", f"{number(100 * dead / channels)} %"))
    far = [(offset, row.name) for offset, row in zip(found.offset, found.rows, strict=True) if offset == offset]
    if far:
        offset, name = max(far)
        facts.append(("furthest mean", f"{number(offset)}σ from 0 in the median channel of {as_markdown(name)}"))
    if found.moved:
        moved = found.moved[0]
        facts.append(
            ("against the reference", f"means moved by {number(moved.mean)}σ at most, in {as_markdown(moved.layer)}")
        )
    if found.estimates is not None:
        facts.append(("on images", as_markdown(found.estimates.sentence())))
    return facts


def _size(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size} {unit}"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:.3g} GB"


def _item(alert: Alert) -> str:
    where = f" · {as_markdown(alert.layer)}{alert.extent}" if alert.layer is not None else ""
    return (
        f"- {alert.severity.mark} **[{alert.code}]({alert.url}) {as_markdown(alert.rule)}**{where}: "
        f"{as_markdown(alert.message)}  \n  fix: {as_markdown(alert.advice)}"
    )


def _table(found: Audit, rows: int) -> list[str]:
    order = sorted(range(len(found.rows)), key=lambda i: found.rows[i].health)
    lines = [
        "| layer | channels | least σ² | median σ² | most σ² | mean/σ | off | updates | found |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for i in order[:rows]:
        row, updates = found.rows[i], found.updates[i]
        numbers = [*found.spread[i], found.offset[i]]
        cells = [as_markdown(row.name), thousands(row.channels), *(_BLANK if v != v else number(v) for v in numbers)]
        cells += [f"{100 * found.dead[i]:.0f} %", _BLANK if updates is None else thousands(updates)]
        lines.append("| " + " | ".join([*cells, ", ".join(dict.fromkeys(row.alerts))]) + " |")
    rest = len(found.rows) - rows
    return [*lines, "", f"{count(rest, 'more layer')}."] if rest > 0 else lines


def _limits(found: Audit) -> str:
    if any(found.kinds):
        return "The layers were judged as they are, without training: nothing is said of data, loss or accuracy."
    return (
        "A file holds what the layers are, not how they are called or trained: nothing is said of modes, data, loss or "
        "accuracy."
    )


def _reasons(found: Audit) -> list[tuple[str, str]]:
    """What was not looked at, by reason."""
    by_reason: dict[str, list[str]] = {}
    for rule, why in found.skipped.items():
        by_reason.setdefault(why, []).append(rule)
    return [(", ".join(rules), why) for why, rules in by_reason.items()]


def badge(audited: Sequence[Audited]) -> str:
    """Return an SVG of one line: how many layers, and the worst that was found in them."""
    found = [each.audit for each in audited]
    layers = sum(len(each.rows) for each in found)
    serious = [a for each in found for a in each.alerts if a.severity > Severity.INFO]
    if not layers:
        text, color = "no layer to judge", _UNKNOWN
    elif serious:
        worst = max(serious, key=lambda a: a.severity)
        more = len({(a.code, a.layer) for a in serious}) - 1
        text = f"{worst.severity.mark} {worst.rule.replace('-', ' ')}" + (f", {more} more" if more else "")
        color = _COLORS[worst.severity]
    else:
        text, color = f"✓ {count(layers, 'layer')} · nothing wrong found", _SOUND
    return _drawn("BatchNorm", printable(text), color)


def _drawn(label: str, text: str, color: str) -> str:
    left, right = (round(_width(part)) + 16 for part in (label, text))
    whole, said = left + right, html.escape(f"{label}: {text}")
    written = "".join(
        f'<text x="{x}" y="14" textLength="{width - 16}" lengthAdjust="spacingAndGlyphs">{html.escape(part)}</text>'
        for x, width, part in ((8, left, label), (left + 8, right, text))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="20" role="img" aria-label="{said}">'
        f'<title>{said}</title><rect width="{whole}" height="20" rx="4" fill="{color}"/>'
        f'<path d="M4 0H{left}V20H4A4 4 0 0 1 0 16V4A4 4 0 0 1 4 0Z" fill="{_LABEL}"/>'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{written}</g></svg>\n'
    )


def _width(text: str) -> float:
    """Width of a text in pixels; viewers stretch it to exactly that, whatever font they have."""
    return sum(4.1 if c in _NARROW else 9.4 if c in _WIDE else 6.9 for c in text)
