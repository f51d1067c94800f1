"""Incidents and the course of a training are read back: from one session, several, a killed one, and an old one."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnmonitor import Monitor
from bnmonitor.history import encode
from bnmonitor.history.course import course, record
from bnmonitor.history.incidents import health, replay, severities
from bnmonitor.history.run import Run, open_history
from bnmonitor.history.schema import incident_session, incident_tag
from bnmonitor.report.read import read
from bnmonitor.results import Incident, Severity
from bnmonitor.sinks import Run as Opened
from bnmonitor.sinks import TensorBoard
from tests import histories
from tests.histories import Writer, an_alert, an_incident
from tests.sinks.test_sinks import a_summary

NAMES = ("stem.bn", "block.bn", "head.bn")


def run_of(log_dir: Path) -> Run:
    return open_history(log_dir).run(".")


def train(log_dir: Path, *, rate: float = 0.1, steps: int = 40, state: Any = None, start: int = 0) -> Monitor:
    """A short training in two epochs; from a checkpoint if there is one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(
        [{"params": model[:2].parameters()}, {"params": model[2:].parameters(), "lr": rate / 2}], rate
    )
    monitor = Monitor(model, optimizer=optimizer, log_every_n_steps=5, on_alert="log", sinks=[TensorBoard(log_dir)])
    if state is not None:
        monitor.load_state_dict(state)
    with monitor:
        for step in range(start, start + steps):
            loss = (model(torch.randn(32, 4)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(step, loss=loss)
            if step % 20 == 19:
                monitor.end_epoch(step // 20)
    return monitor


# -- a real run --------------------------------------------------------------------------------------------------------


def test_the_incidents_of_a_run_are_those_of_its_monitor(tmp_path: Path) -> None:
    monitor = train(tmp_path, rate=1e4)
    assert monitor.incidents
    assert run_of(tmp_path).incidents == monitor.incidents
    [report] = read(tmp_path)
    assert report.incidents == monitor.incidents
    assert report.open_incidents() == monitor.summary().open_incidents()
    alerts = {alert.key: alert.incident for alert in report.alerts}
    assert all(alerts[each.key] == incident for incident in report.incidents for each in incident.evidence)


def test_the_course_of_a_run_is_that_of_its_steps(tmp_path: Path) -> None:
    monitor = train(tmp_path)
    run = run_of(tmp_path)
    found = run.course
    assert found.steps.tolist() == run.frames.steps.tolist() == [0, 4, 9, 14, 19, 24, 29, 34, 39]
    assert found.learning_rates.tolist() == [[0.1] * 9, [0.05] * 9]
    assert found.epochs.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert (np.diff(found.wall_times) >= 0).all()
    assert np.isfinite(found.loss).all()
    assert found.last_loss == monitor.summary().loss
    [report] = read(tmp_path)
    assert (report.loss, report.learning_rates, report.epoch) == (found.last_loss, (0.1, 0.05), 1)
    plain = report.to_dict()
    assert (plain["loss"], plain["learning_rates"], plain["incidents"]) == (found.last_loss, [0.1, 0.05], [])


def test_a_run_that_was_killed_keeps_its_incidents(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib, tests.history.test_incidents as t; from bnmonitor.sinks import TensorBoard\n"
        "class Kill(TensorBoard):\n"
        "    def incident(self, incident):\n"
        "        super().incident(incident); os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.TensorBoard = Kill; t.train(pathlib.Path(sys.argv[1]), rate=1e4)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env={**os.environ}, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    [incident] = run_of(tmp_path).incidents
    assert (incident.state, incident.index) == ("open", 0)
    [report] = read(tmp_path)
    assert [each.index for each in report.open_incidents()] == [0]


def test_a_resumed_run_has_each_incident_once(tmp_path: Path) -> None:
    first = train(tmp_path, rate=1e4, steps=20)
    second = train(tmp_path, rate=1e4, steps=20, state=first.state_dict(), start=20)
    assert second.incidents[0].first_step == first.incidents[0].first_step
    assert run_of(tmp_path).incidents == second.incidents


def test_a_session_that_begins_anew_replaces_what_it_trains_again(tmp_path: Path) -> None:
    train(tmp_path, rate=1e4)
    assert run_of(tmp_path).incidents
    train(tmp_path, rate=0.1)
    assert run_of(tmp_path).incidents == ()
    assert (run_of(tmp_path).frames.of("health") > 60).all()


# -- records made to order ---------------------------------------------------------------------------------------------


def rows(*incidents: dict[str, Any], session: int = 1) -> list[tuple[int, dict[str, Any]]]:
    return [(session, incident) for incident in incidents]


EARLY = an_incident(an_alert("stem.bn", 10))
LATE = an_incident(an_alert("block.bn", 50), index=1)


def test_the_last_record_of_an_incident_counts() -> None:
    worse = {**EARLY, "title": "it is worse", "last_step": 300}
    [found] = replay(rows(EARLY, worse), {1: 0}, [])
    assert found == Incident.from_dict(worse)


def test_an_incident_of_steps_that_were_trained_anew_is_left_out_and_another_one_ends() -> None:
    found = replay(rows(EARLY, LATE), {1: 0, 2: 40}, [])
    assert [(each.first_step, each.last_step, each.state) for each in found] == [(10, 39, "resolved")]


def test_an_incident_that_a_later_session_knows_is_as_that_session_says() -> None:
    again = {**EARLY, "last_step": 90}
    found = replay([*rows(EARLY, LATE), *rows(again, session=2)], {1: 0, 2: 40}, [])
    assert [(each.first_step, each.last_step, each.state) for each in found] == [(10, 90, "open")]


def test_another_incident_with_the_same_index_does_not_replace_one() -> None:
    other = an_incident(an_alert("head.bn", 60))
    found = replay([*rows(EARLY), *rows(other, session=2)], {1: 0, 2: 40}, [])
    assert [(each.index, each.layer, each.state) for each in found] == [
        (0, "stem.bn", "resolved"),
        (1, "head.bn", "open"),
    ]


def test_damaged_records_are_passed_over() -> None:
    damaged = [{}, {"index": 0}, {**EARLY, "severity": "bad"}, {**EARLY, "evidence": 3}, {**EARLY, "more": 1}]
    assert replay(rows(*damaged), {}, [{}, {"code": "BN1"}]) == ()


def test_a_warning_without_an_incident_is_one_of_its_own_and_a_note_is_not() -> None:
    note = an_alert("head.bn", 5, severity="info", code="BN801")
    bare = an_alert("head.bn", 30, severity="warning", rule="dead-channels", state="cleared")
    found = replay(rows(EARLY), {1: 0}, [*EARLY["evidence"], note, bare])
    assert [(each.title, each.severity, each.state) for each in found] == [
        ("variance explosion", Severity.ERROR, "open"),
        ("dead channels", Severity.WARNING, "resolved"),
    ]
    assert found[1].evidence[0].to_dict() == bare


def test_the_tag_of_an_incident_names_its_session() -> None:
    assert incident_session(incident_tag(12, 3)) == 12
    assert [incident_session("bnmonitor/incident/" + rest) for rest in ("", "x/1", "9" * 99)] == [1, 1, 1]


def test_a_run_of_before_there_were_incidents_shows_its_alerts(tmp_path: Path) -> None:
    histories.write(tmp_path, NAMES, range(0, 300, 3), sick=(1,), incidents=False)
    [report] = read(tmp_path)
    assert [(each.title, each.state) for each in report.incidents] == [
        ("stale statistics", "resolved"),
        ("variance explosion", "open"),
    ]
    assert math.isnan(report.loss)
    assert report.learning_rates == ()
    assert [row.name for row in report.ill()] == ["block.bn"]


# -- what the incidents make of health ---------------------------------------------------------------------------------


def test_a_layer_has_a_severity_from_where_an_incident_reached_it_until_it_ends() -> None:
    second = an_alert("block.bn", 30, severity="warning", state="cleared")
    over = Incident.from_dict(an_incident(an_alert("stem.bn", 10, state="cleared", last_step=50), second, last_step=50))
    still = Incident.from_dict(an_incident(an_alert("head.bn", 40, severity="warning"), index=1, last_step=45))
    steps = np.arange(0, 100, 10)
    found = severities([over, still, replace(still, layers=("gone",))], NAMES, steps)
    assert found.tolist() == [
        [0, 30, 30, 30, 30, 30, 0, 0, 0, 0],
        [0, 0, 0, 30, 30, 30, 0, 0, 0, 0],
        [0, 0, 0, 0, 20, 20, 20, 20, 20, 20],
    ]


def test_health_agrees_with_the_severities_and_keeps_what_is_above_them() -> None:
    recorded = np.array([[95.0, 60.0, 20.0, 88.0, np.nan, 60.0]])
    worst = np.array([[0, 0, 0, 20, 30, 30]])
    lag = np.array([[0.0, 0.1, 0.05, 0.0, 0.0, np.nan]])
    found = health(recorded, worst, lag, np.full_like(lag, np.nan))
    np.testing.assert_allclose(found, [[95.0, 70.0, 92.5, 60.0, np.nan, 20.0]])


# -- the course --------------------------------------------------------------------------------------------------------


def test_a_course_is_read_where_it_is_known() -> None:
    at = {
        0: record(math.nan, (), None),
        1: record(math.inf, (0.1,), None),
        2: record(2.5, (0.1, math.nan, 0.3), 3),
        4: {"loss": "much", "lr": 7, "epoch": []},
    }
    steps = np.arange(5)
    found = course(steps, steps.astype(float), at)
    np.testing.assert_array_equal(found.loss, [math.nan, math.inf, 2.5, math.nan, math.nan])
    np.testing.assert_array_equal(
        found.learning_rates,
        [[math.nan, 0.1, 0.1, math.nan, math.nan], [math.nan] * 5, [math.nan, math.nan, 0.3, math.nan, math.nan]],
    )
    np.testing.assert_array_equal(found.epochs, [2, 2, 3, math.nan, math.nan])
    names, table = found.table()
    assert names == ("loss", "lr 0", "lr 2", "epoch", "seconds")
    rows = [found.loss, found.learning_rates[0], found.learning_rates[2], found.epochs, steps]
    np.testing.assert_array_equal(table, np.float32(rows))
    assert (found.last_rates, found.last_epoch) == ((), None)
    assert course(steps[:0], steps[:0], {}).table()[1].shape == (0, 0)


def test_the_course_of_a_resumed_run_is_that_of_its_frames(tmp_path: Path) -> None:
    for number, (begin, rate) in enumerate(((0, 0.1), (20, 0.2)), 1):
        steps = range(begin, begin + 40, 10)
        with Writer(tmp_path, NAMES, 4, session=number) as writer:
            writer.add(0, 1e9, encode.plain("bnmonitor/about", {"session": number}))
            writer.frames(steps, histories.course(3, 4))
            writer.course(steps, [float(step) for step in steps], [[rate]] * 4)
    found = run_of(tmp_path).course
    assert found.steps.tolist() == [0, 10, 20, 30, 40, 50]
    assert found.loss.tolist() == [0, 10, 20, 30, 40, 50]
    assert found.learning_rates.tolist() == [[0.1, 0.1, 0.2, 0.2, 0.2, 0.2]]


@pytest.mark.parametrize("numbered", [True, False])
def test_epochs_are_counted_where_their_ends_have_no_number(tmp_path: Path, numbered: bool) -> None:
    sink, summary = TensorBoard(tmp_path), replace(a_summary(), epoch=None)
    sink.open(Opened(layers=summary.layers))
    for step in range(6):
        sink.frame(replace(summary, step=step))
        if step % 2:
            sink.epoch(replace(summary, step=step, epoch=7 + step // 2 if numbered else None))
    sink.close(replace(summary, step=5))
    assert run_of(tmp_path).course.epochs.tolist() == [e + 7 * numbered for e in (0, 0, 1, 1, 2, 2)]
