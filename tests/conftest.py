"""What a run of the tests says at its end."""

from __future__ import annotations

from typing import Any

MARGIN = "margin"
"""The property under which a test records how far a value is beyond its threshold."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, ())]
    lines = sorted(text for r in reports for name, text in getattr(r, "user_properties", ()) if name == MARGIN)
    if lines:
        terminalreporter.section("margins of the injected faults")
        for line in lines:
            terminalreporter.write_line(line)
