"""The order of writing is the order of reading, whatever the clocks say; two writers of one directory are noticed."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bnmonitor import Monitor
from bnmonitor.history.run import merge
from bnmonitor.history.schema import Schema
from bnmonitor.history.source import Record
from bnmonitor.report.read import read
from bnmonitor.sinks import TensorBoard
from bnmonitor.sinks.sessions import WriterSession

REAL = time.time
MODEL = nn.Sequential(nn.BatchNorm1d(4))


def monitor(log_dir: Path, model: nn.Module = MODEL) -> Monitor:
    return Monitor(model, log_dir=log_dir, log_every_n_steps=1, on_alert="log", sinks=[TensorBoard(log_dir)])


def steps(watched: Monitor, numbers: range, model: nn.Module = MODEL) -> None:
    for step in numbers:
        model(torch.randn(8, 4))
        watched.step(step)


def skewed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(time, "time", lambda: REAL() + seconds)


def test_no_frame_is_lost_when_the_clock_goes_back_in_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monitor(tmp_path) as watched:
        steps(watched, range(6))
        skewed(monkeypatch, -86400)
        steps(watched, range(6, 12))
    (report,) = read(tmp_path)
    assert (report.frames, report.step, report.ended, report.overlap) == (12, 11, True, "")


@pytest.mark.parametrize("skews", [(0, -300), (0, 86400, 1)])
def test_no_frame_is_lost_when_a_run_is_resumed_by_a_clock_that_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skews: tuple[float, ...]
) -> None:
    for number, skew in enumerate(skews):
        skewed(monkeypatch, skew)
        with monitor(tmp_path) as watched:
            steps(watched, range(5 * number, 5 * number + 5))
    (report,) = read(tmp_path)
    assert (report.frames, report.step, report.ended) == (5 * len(skews), 5 * len(skews) - 1, True)


def test_a_source_without_places_orders_by_session_and_not_by_clock() -> None:
    first, second = Schema(("a",), (2,), ("m",)), Schema(("a",), (2,), ("m",), session=2)

    def records(begin: int, wall: float) -> list[Record]:
        return [Record(begin + i, wall - i, np.full((1, 1), begin + i, np.float32)) for i in range(3)]

    frames = merge([(second, records(3, 100.0)), (first, records(0, 900.0))])
    assert frames.steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert frames.values[0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_session_is_part_of_the_schema_from_the_second_on() -> None:
    first, second = Schema(("a",), (2,), ("m",)), Schema(("a",), (2,), ("m",), session=2)
    assert first.key != second.key
    assert Schema.decode(first.encode()) == first
    assert Schema.decode(second.encode()) == second


def test_two_sessions_at_the_same_time_are_told_apart(tmp_path: Path) -> None:
    other = nn.Sequential(nn.BatchNorm1d(4))
    one, two = monitor(tmp_path), monitor(tmp_path, other)
    with one:
        steps(one, range(4))
        with two:
            steps(two, range(2), other)
            steps(one, range(4, 8))
            steps(two, range(2, 5), other)
    (report,) = read(tmp_path)
    assert (report.frames, report.step) == (5, 4)
    assert "from step 0 on only the one that began last is shown" in report.overlap
    assert report.overlap in report.about()
    assert report.to_dict()["overlap"] == report.overlap


def test_a_process_that_joins_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bnmonitor"), monitor(tmp_path) as watched:
        steps(watched, range(2))
        watched.end_epoch()
        (tmp_path / "events.out.tfevents.1.other.host.4242.0").touch()
        watched.end_epoch()
        watched.end_epoch()
    named = [record.getMessage() for record in caplog.records if "writes into" in record.getMessage()]
    assert len(named) == 1
    assert named[0].startswith(f"process 4242 on other.host writes into {tmp_path} as well")


def test_the_clock_of_a_session_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    session = WriterSession(())
    before = session.now()
    skewed(monkeypatch, -1000)
    assert before <= session.now() <= session.now()
    skewed(monkeypatch, 5000)
    assert session.now() > before + 3000
