"""Incidents in Python's logging: one record each, and nothing printed where nobody has configured it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from bnmonitor import Incident, Monitor

TRAIN = """
import torch
from torch import nn
from bnmonitor import Monitor
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99))
with Monitor(model, select=("BN301",){more}) as monitor:
    for _ in range(12):
        model(torch.randn(16, 4)).sum().backward()
        monitor.step()
print(len(monitor.incidents))
"""


def test_an_incident_is_one_record_that_holds_it(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    with caplog.at_level(logging.INFO, "bnmonitor"), Monitor(model, sinks=[], select=("BN301",)) as monitor:
        for step in range(200):
            norm.momentum = 0.99 if step < 12 else 0.1
            model(torch.randn(16, 4)).sum().backward()
            monitor.step()
    opened, resolved = [record for record in caplog.records if hasattr(record, "incident")]
    assert (opened.name, opened.levelname, resolved.levelname) == ("bnmonitor", "ERROR", "INFO")
    for record, state in ((opened, "open"), (resolved, "resolved")):
        incident = vars(record)["incident"]
        assert isinstance(incident, Incident)
        assert (incident.code, incident.layer, incident.state) == ("BN301", "1", state)
    assert opened.getMessage() == " · ".join(vars(opened)["incident"].lines())
    assert resolved.getMessage() == f"resolved: {monitor.incidents[0].title}"


@pytest.mark.parametrize(("more", "lines"), [(", sinks=[]", 1), ("", None)])
def test_without_a_configuration_logging_prints_nothing(more: str, lines: int | None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN.format(more=more)], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stderr == ""
    assert done.stdout.count("momentum is too large") == (0 if lines else 2), "when it opens, and at the end"


def test_the_logger_has_a_handler_that_does_nothing() -> None:
    assert [type(handler) for handler in logging.getLogger("bnmonitor").handlers].count(logging.NullHandler) == 1
