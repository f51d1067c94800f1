"""Headline, table and health say the same of any incidents, at any width."""

from __future__ import annotations

import io
import re
from typing import Any

import rich.console
from hypothesis import given, settings
from hypothesis import strategies as st

from bnmonitor import Incident, Severity, Summary
from bnmonitor.display import final_summary
from bnmonitor.results import HEALTH_CAPS
from bnmonitor.summary import summarize
from bnmonitor.testing import make_window
from tests.sinks.test_sinks import a_window, an_alert, an_incident

NAMES = tuple(f"layer{i}" for i in range(6))


@st.composite
def incidents(draw: Any) -> list[Incident]:
    """A few incidents, open and resolved, each in some of the layers."""
    found = []
    for index in range(draw(st.integers(0, 3))):
        layers = tuple(draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)))
        severity = draw(st.sampled_from([Severity.WARNING, Severity.ERROR]))
        state = draw(st.sampled_from(["open", "cleared"]))
        alert = an_alert(layers[0], severity, layers=layers, state=state, first_step=draw(st.integers(0, 60)))
        found.append(an_incident(alert, index=index, of_layers=len(NAMES)))
    return found


def drawn(summary: Summary, width: int, **options: Any) -> str:
    file = io.StringIO()
    console = rich.console.Console(file=file, width=width, force_terminal=True, color_system="standard")
    console.print(final_summary(summary, rows=len(NAMES), **options))
    return file.getvalue()


@settings(max_examples=40, deadline=None)
@given(found=incidents(), width=st.sampled_from([60, 80, 120]), well=st.booleans())
def test_headline_table_and_health_agree(found: list[Incident], width: int, well: bool) -> None:
    summary = summarize(a_window(*NAMES), [i.evidence[0] for i in found], {}, epoch=1, incidents=found)
    by_layer = {
        name: max((i.severity for i in found if i.state == "open" and name in i.layers), default=Severity.INFO)
        for name in NAMES
    }
    worst = max(by_layer.values())
    assert summary.headline().startswith(f"BatchNorm {'✓' if worst is Severity.INFO else worst.mark} ")
    assert {row.name for row in summary.ill()} == {name for name, s in by_layer.items() if s > Severity.INFO}
    assert [row.health for row in summary.rows] == [HEALTH_CAPS[by_layer[row.name]] for row in summary.rows]
    text = drawn(summary, width, well=well)
    colors = set(re.findall(r"\x1b\[(?:[\d;]*;)?(3\d)m", text))
    allowed = {"33" if i.severity is Severity.WARNING else "31" for i in found if i.state == "open"}
    assert colors == allowed
    lines = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()
    rows = {name: line.split()[1] for line in lines for name in NAMES if line.startswith(f"{name} ")}
    marks = {name: s.mark if s > Severity.INFO else "✓" for name, s in by_layer.items()}
    assert {name: marks[name] for name in rows} == rows
    began = {i.layer for i in found if i.state == "open"}
    assert began <= rows.keys(), "the layer where an incident began has a row"


def test_without_a_step_the_headline_names_none() -> None:
    alert = an_alert("layer0")
    summary = summarize(make_window(channels=(2,)), [alert], {}, incidents=[an_incident(alert, of_layers=1)])
    assert ", since step 41" in summary.headline()
    before = Summary(**{**{name: getattr(summary, name) for name in summary.__dataclass_fields__}, "step": -1})
    assert before.headline() == "BatchNorm ! the batch variance exploded (layer0)"
