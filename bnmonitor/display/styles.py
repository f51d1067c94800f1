"""Every style of the terminal, by what it says: to change a color of the terminal, change it here."""

from __future__ import annotations

from bnmonitor.results import Severity

OF_SEVERITY = {Severity.INFO: "none", Severity.WARNING: "yellow", Severity.ERROR: "red"}
"""An incident, an alert, and a layer that has one."""

HEALTHY = "none"
"""A layer or an alert with nothing left to do."""

NEAR = "cyan"
"""A value near its limit, where no incident is open. Yellow and red are for open incidents alone."""

WORSE = "magenta"
"""What got worse from one run to another, and what went wrong."""

STRONG = "bold"
"""What a reader should see first."""

QUIET = "dim"
"""What can be read later."""


def strong(style: str) -> str:
    """Return a style that a reader sees first.

    >>> strong("red")
    'bold red'
    """
    return f"{STRONG} {style}"
