"""How a command ends: its exit code, and one line on what went wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnmonitor._text import printable
from bnmonitor.cli.arguments import NEVER
from bnmonitor.results import Severity

if TYPE_CHECKING:
    from bnmonitor.results import Alert, Incident

FINE, FOUND, USAGE = 0, 1, 2
"""Exit codes: nothing was found, something was found, the input cannot be used."""


def verdict(parsed: argparse.Namespace, found: Sequence[Alert | Incident]) -> int:
    """Return the exit code for what was found and is open, by the severity that the user chose."""
    if parsed.fail_on == NEVER:
        return FINE
    least = Severity[parsed.fail_on.upper()]
    return FOUND if any(each.state == "open" and each.severity >= least for each in found) else FINE


def fail(message: str) -> int:
    """Print what went wrong, and return the exit code for it."""
    print(f"bnmonitor: {printable(message)}", file=sys.stderr)
    return USAGE
