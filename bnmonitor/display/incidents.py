"""How an incident looks in a terminal: three lines when it opens, one line when it changes and at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bnmonitor._text import count, printable, shorten, thousands
from bnmonitor.display import styles
from bnmonitor.display.lines import Line, Lines
from bnmonitor.results import Incident

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_INDENT = 2


def incident_block(incident: Incident) -> RenderableType:
    """Return an incident in three lines: what, since when and where; the numbers; the fix."""
    detail = Line(_clauses(incident.detail), indent=_INDENT)
    return Lines(_what(incident), *([detail] if incident.detail else []), _fix(incident))


def incident_line(incident: Incident) -> RenderableType:
    """Return an incident in one line."""
    return Lines(_resolved(incident) if incident.state == "resolved" else _what(incident))


def incident_change(incident: Incident, before: Incident) -> RenderableType:
    """Return in one line how an incident that was shown has changed.

    Args:
        incident: The incident now.
        before: The incident as it was shown last.
    """
    if incident.state == "resolved":
        return Lines(_resolved(incident))
    if incident.severity > before.severity and (incident.title == before.title or before.state == "resolved"):
        return Lines(_worse(incident, before))
    if before.state == "resolved":
        return Lines(_what(incident, "again: "))
    return Lines(_revised(incident, before))


def incident_rest(incidents: Sequence[Incident], most: int) -> RenderableType | None:
    """Return the count of the incidents after the first few; None if there are no more."""
    from rich.text import Text

    left = len(incidents) - most
    return Text(count(left, "more incident"), style=styles.QUIET) if left > 0 else None


def _mark(incident: Incident) -> Text:
    from rich.text import Text

    return Text(incident.severity.mark, style=styles.strong(styles.OF_SEVERITY[incident.severity]))


def _head(incident: Incident, before: str = "") -> Text:
    from rich.text import Text

    return Text(before).append(printable(incident.title), style=styles.strong(styles.OF_SEVERITY[incident.severity]))


def _what(incident: Incident, before: str = "") -> Line:
    """What it is, since when and where; a terminal that is narrow gets a shorter name of the layer."""
    from rich.text import Text

    head = _head(incident, before).append(f" · since step {thousands(incident.first_step)}")
    ends = [f" · {place}" if place else "" for place in _places(incident)]
    return Line([head.copy().append_text(Text(end)) for end in dict.fromkeys(ends)], _mark(incident), _INDENT)


def _places(incident: Incident) -> Iterable[str]:
    """Where it is, in full, and shorter and shorter."""
    if incident.layer is None:
        return [""]
    name, place = printable(incident.layer), printable(incident.where)
    shorter = [place.replace(name, shorten(name, width)) for width in (28, 20)]
    return [place, *shorter, *([incident.extent, ""] if len(incident.layers) > 1 else [])]


def _clauses(detail: str) -> list[Text]:
    """The numbers, then with fewer and fewer of them; the report has all."""
    from rich.text import Text

    parts = printable(detail).split("; ")
    return [Text("; ".join(parts[:n])) for n in range(len(parts), 0, -1)]


def _fix(incident: Incident) -> Line:
    from rich.text import Text

    text = Text.assemble(("fix: ", styles.STRONG), printable(incident.advice))
    if incident.url:
        text.append(printable(f" · bnmonitor explain {incident.code}"), style=styles.QUIET)
    return Line([text], indent=_INDENT)


def _worse(incident: Incident, before: Incident) -> Line:
    """The two severities, what it is, and the numbers as far as there is room for them."""
    from rich.text import Text

    mark = Text.assemble(before.severity.mark, " → ", _mark(incident))
    head = _head(incident).append(f" · {incident.severity} at step {thousands(incident.last_step)}")
    numbers = [head.copy().append(" · ").append_text(each) for each in _clauses(incident.detail) if incident.detail]
    return Line([*numbers, head], mark, len("! → ✗ "))


def _revised(incident: Incident, before: Incident) -> Line:
    """What it is now, what it was taken for, and the new fix; it may have become worse with that."""
    from rich.text import Text

    worse = incident.severity > before.severity
    mark = Text.assemble(before.severity.mark, " → ", _mark(incident)) if worse else _mark(incident)
    fix = Text.assemble((" · fix: ", styles.STRONG), printable(incident.advice))
    taken = f" (shown before as: {printable(before.title)})" if before.title != incident.title else ""
    head = _head(incident)
    forms = [head.copy().append(taken).append_text(fix), head.copy().append_text(fix)]
    return Line(forms, mark, len("! → ✗ ") if worse else _INDENT)


def _resolved(incident: Incident) -> Line:
    from rich.text import Text

    head = Text(f"resolved: {printable(incident.title)}", style=styles.HEALTHY)
    end = f" · last seen at step {thousands(incident.last_step)}"
    return Line([head.copy().append(end, style=styles.QUIET), head], Text("✓", style=styles.HEALTHY), _INDENT)
