"""What the rules and the causes say of one window."""

from __future__ import annotations

from collections.abc import Sequence

from bnmonitor.alerts import AlertBook
from bnmonitor.diagnosis import Diagnosis
from bnmonitor.results import Incident
from bnmonitor.rules import choose
from bnmonitor.window import Window


def diagnose(window: Window, select: Sequence[str] = ("default",)) -> tuple[Incident, ...]:
    """Return the incidents that a monitor would open after a window.

    Args:
        window: The window, such as one of :func:`make_window`.
        select: The rules to run: codes, prefixes, names, ``"default"`` or ``"all"``.
    """
    book, diagnosis = AlertBook(choose(select)), Diagnosis()
    book.check(window, {}, ("check", "evaluation", "end"))
    diagnosis.update(book.alerts, window)
    return diagnosis.incidents
