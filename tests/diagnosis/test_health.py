"""A layer whose health is that of a warning or an error always says of which one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bnmonitor import Severity
from bnmonitor.diagnosis import Diagnosis
from bnmonitor.results import Alert, health_severity
from bnmonitor.rules import CATALOGUE
from bnmonitor.summary import summarize
from bnmonitor.testing import make_window

WINDOW = make_window(channels=(2, 2, 2, 2))
NAMES = WINDOW.layers.names
RULES = [rule for rule in CATALOGUE if not rule.about_monitor]


@st.composite
def alerts(draw: Any) -> Alert:
    rule = draw(st.sampled_from(RULES))
    layers = draw(st.lists(st.sampled_from(NAMES), max_size=4, unique=True))
    first = draw(st.integers(0, 60))
    return Alert(
        code=rule.code,
        rule=rule.name,
        severity=draw(st.sampled_from(Severity)),
        layer=layers[0] if layers else None,
        layers=tuple(layers),
        channels=(),
        first_step=first,
        last_step=first + draw(st.integers(0, 3)),
        state=draw(st.sampled_from(["open", "cleared"])),
        value=2.0,
        threshold=1.0,
        message="it is so",
        advice="mend it",
        url="",
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(alerts(), max_size=6), st.booleans())
def test_no_layer_has_the_health_of_a_warning_without_a_reason(log: list[Alert], lost: bool) -> None:
    window = replace(WINDOW, facts=replace(WINDOW.facts, losses=(float("nan"),) * len(WINDOW) if lost else ()))
    diagnosis = Diagnosis()
    for i in range(len(log)):
        diagnosis.update([replace(a, state="open") for a in log[: i + 1]], window)
    diagnosis.update(log, window)
    found = summarize(window, log, {}, incidents=diagnosis.incidents)
    serious = {name for a in log if a.severity > Severity.INFO for name in a.layers}
    for row in found.rows:
        if health_severity(row.health) > Severity.INFO:
            assert row.alerts, row
            assert row.name in serious, row
        elif any(a.state == "open" and a.severity > Severity.INFO and row.name in a.layers for a in log):
            raise AssertionError(f"{row} has an open alert, and a health of none")
