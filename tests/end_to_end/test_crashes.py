"""Failures around a training: the training ends as without the monitor, and what was written can be read."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnmonitor import AlertError, BatchNormMonitor, Monitor, Rule
from bnmonitor.report.read import read
from bnmonitor.sinks import BlackBox, TensorBoard
from tests.end_to_end.test_promises import AlwaysFinds, Faulty, Raises, attributes, hooks, same
from tests.lightning.test_callback import PACKAGES, a_module, a_trainer, loader

STEPS = 40
MIDDLE = 20

pytestmark = [
    # TensorBoard's own thread says what stopped it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*Detected KeyboardInterrupt"),
]


def left_behind(monitor_of: Callable[[nn.Module], Monitor] | None, middle: Callable[[], object]) -> dict[str, Any]:
    """Train, let something happen halfway, and return all that the training leaves behind."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
    before = attributes(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    monitor = monitor_of(model) if monitor_of is not None else None
    ended: type[BaseException] | None = None
    try:
        with monitor or contextlib.nullcontext():
            for step in range(STEPS):
                optimizer.zero_grad()
                loss = model(torch.randn(32, 4)).square().mean()
                if step == MIDDLE:
                    middle()
                loss.backward()
                optimizer.step()
                if monitor is not None:
                    monitor.step()
    except BaseException as error:
        ended = type(error)
    assert hooks(model) == 0
    assert attributes(model) == before
    return {
        "state": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "ended": ended,
    }


def watched(log_dir: Path, middle: Callable[[], object] = lambda: None, **settings: Any) -> Monitor:
    """Train with a frame for every step; assert that the training is what it would be without the monitor."""
    monitors = []

    def monitor_of(model: nn.Module) -> Monitor:
        given = {"sinks": [TensorBoard(log_dir)], "log_dir": log_dir, "on_alert": lambda alert: None, **settings}
        monitors.append(Monitor(model, log_every_n_steps=1, check_every_n_steps=5, sample_every_n_steps=7, **given))
        return monitors[0]

    assert same(left_behind(None, middle), left_behind(monitor_of, middle))
    return monitors[0]


WRITERS = ["sink TensorBoard raised", "the flight record raised"]


def reported(monitor: Monitor, code: str = "BN002") -> list[str]:
    return [alert.message for alert in monitor.alerts if alert.code == code]


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond a size."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Run without the rights of the superuser, who may write anywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


# -- the disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 500, 5_000, 20_000])
def test_a_full_disk_stops_the_record_and_the_written_part_is_readable(tmp_path: Path, size: int) -> None:
    with full_disk(size):
        monitor = watched(tmp_path)
    assert [who for who in WRITERS if any(who in said for said in reported(monitor))] == WRITERS[: 1 + (size < 20_000)]
    assert len(reported(monitor)) == 1 + (size < 20_000)
    assert monitor.steps == tuple(range(STEPS))
    if size >= 5_000:
        [report] = read(tmp_path)
        assert 0 < report.frames < STEPS
        assert report.first_step == 0
        assert report.step == report.frames - 1
        assert not report.ended
        assert report.ending(report.written + 1e6).endswith("what came after the last flush is missing")


def test_a_full_disk_leaves_no_half_black_box(tmp_path: Path) -> None:
    with full_disk(2_000):
        monitor = watched(tmp_path, rules=[AlwaysFinds()], sinks=[])
    assert [who for who in ("the flight record", "the black box") if any(who in s for s in reported(monitor))] == [
        "the flight record",
        "the black box",
    ]
    assert list(tmp_path.rglob("*.npz")) == list(tmp_path.rglob("*.part")) == []
    assert monitor.black_boxes == ()


def test_a_thread_that_cannot_be_started_costs_the_black_box_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("bnmonitor.sinks.black_box.Thread.start", refuse)
    monitor = watched(tmp_path, rules=[AlwaysFinds()], sinks=[])
    refused = "raised RuntimeError: can't start new thread"
    assert sorted(reported(monitor)) == [f"the black box {refused}", f"the flight record {refused}"]
    assert monitor.steps == tuple(range(STEPS))


def test_a_directory_that_cannot_be_written_is_reported_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o500)
    importlib.import_module("torch.utils.tensorboard")
    with without_privileges():
        monitor = watched(folder, rules=[AlwaysFinds()])
    reasons = reported(monitor)
    assert sorted(reason.split(" raised PermissionError")[0] for reason in reasons) == [
        "sink TensorBoard",
        "the black box",
        "the flight record",
    ]
    assert list(folder.iterdir()) == []
    assert monitor.steps == tuple(range(STEPS))


def test_a_directory_that_vanishes_is_reported_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    monitor = watched(folder, lambda: shutil.rmtree(folder, ignore_errors=True))
    assert len(reported(monitor)) == 1
    assert "sink TensorBoard raised" in reported(monitor)[0]
    assert monitor.steps == tuple(range(STEPS))


# -- exceptions --------------------------------------------------------------------------------------------------------


def whole(log_dir: Path, steps: int) -> None:
    """Assert that everything reported is on disk."""
    [report] = read(log_dir)
    assert (report.frames, report.first_step, report.step) == (steps, 0, steps - 1)
    assert report.ended


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_exception_in_the_training_step_is_the_same_and_every_frame_is_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def fail() -> None:
        raise error("in the middle")

    monitor = watched(tmp_path, fail)
    assert monitor.steps == tuple(range(MIDDLE))
    assert reported(monitor) == []
    whole(tmp_path, MIDDLE)


def test_a_rule_that_raises_costs_its_findings_only(tmp_path: Path) -> None:
    monitor = watched(tmp_path, rules=[Raises()])
    assert len(reported(monitor, "BN001")) == 1
    whole(tmp_path, STEPS)
    assert "BN001" in {alert.code for alert in read(tmp_path)[0].alerts}


@pytest.mark.parametrize("method", ["open", "frame", "alert", "close"])
def test_a_sink_that_raises_costs_no_other_sink_anything(tmp_path: Path, method: str) -> None:
    monitor = watched(tmp_path, sinks=[Faulty(method), TensorBoard(tmp_path)], rules=[AlwaysFinds()])
    assert len(reported(monitor)) == 1
    whole(tmp_path, STEPS)
    assert "BN002" in {alert.code for alert in read(tmp_path)[0].alerts}


class Interrupts(Rule):
    """A rule that Ctrl-C hits."""

    code = "BN993"
    name = "interrupts"
    severity = Raises.severity

    def check(self, window: Any) -> list[Any]:
        if window.steps[-1] >= MIDDLE:
            raise KeyboardInterrupt
        return []


def test_ctrl_c_while_the_monitor_works_ends_the_training_there(tmp_path: Path) -> None:
    model, done = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), 0
    monitor = Monitor(model, rules=[Interrupts()], sinks=[TensorBoard(tmp_path)], log_every_n_steps=1)
    try:
        with monitor:
            for step in range(STEPS):
                model(torch.randn(32, 4)).square().mean().backward()
                done = step
                monitor.step()
    except KeyboardInterrupt:
        pass
    assert done == MIDDLE + 9
    assert hooks(model) == 0
    assert not monitor.running
    assert read(tmp_path)[0].step == done


def test_if_the_monitor_itself_breaks_all_that_it_reported_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise IndexError("a bug of ours")

    trainings = []

    def break_it() -> None:
        trainings.append(1)
        if len(trainings) == 2:  # the first is the one without the monitor
            monkeypatch.setattr("bnmonitor.recording.tape.Tape.step", broken)

    with pytest.warns(UserWarning, match="stopped watching, training goes on: IndexError"):
        watched(tmp_path, break_it)
    whole(tmp_path, MIDDLE)
    assert "stopped watching" in read(tmp_path)[0].skipped["every rule"]


# -- Lightning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_fit_that_fails_is_what_it_would_be_and_its_history_whole(tmp_path: Path, error: type[BaseException]) -> None:
    lightning: Any = importlib.import_module(PACKAGES[0])
    loggers = importlib.import_module(f"{PACKAGES[0]}.loggers")

    def fit(callbacks: list[Any], logger: Any) -> dict[str, Any]:
        def during(module: Any, batch_idx: int) -> None:
            if batch_idx == 5:
                raise error("in the middle")

        module = a_module(lightning, during=during)
        trainer = a_trainer(lightning, *callbacks, logger=logger, log_every_n_steps=1)
        with pytest.raises((error, SystemExit)) as caught:
            trainer.fit(module, loader(8))
        return {"state": dict(module.state_dict()), "torch": torch.get_rng_state(), "ended": caught.type}

    logger = loggers.TensorBoardLogger(tmp_path, name=None, version="run")
    alone = fit([], False)
    assert same(alone, fit([BatchNormMonitor()], logger))
    whole(tmp_path / "run", 5)


def test_an_alert_that_raises_does_not_replace_the_error_that_ended_the_fit() -> None:
    lightning: Any = importlib.import_module(PACKAGES[0])

    def during(module: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            raise ValueError("the cause")

    callback = BatchNormMonitor(sinks=[], rules=[AtTheEnd()], on_alert="raise")
    with pytest.raises(ValueError, match="the cause"):
        a_trainer(lightning, callback).fit(a_module(lightning, during=during), loader(8))
    with pytest.raises(AlertError):
        a_trainer(lightning, BatchNormMonitor(sinks=[], rules=[AtTheEnd()], on_alert="raise")).fit(
            a_module(lightning), loader(8)
        )


class AtTheEnd(AlwaysFinds):
    """A rule that finds something as the run ends."""

    code = "BN994"
    name = "at-the-end"
    moment = "end"


# -- kill -9 -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_it_loses_nothing_it_reported_as_kept_when_killed_at_any_moment() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "kills.py"
    done = subprocess.run([sys.executable, script, "4"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["survived"] == figures["tried"] == 4
    assert figures["lost_most"] <= 12


def test_a_half_written_black_box_is_not_listed(tmp_path: Path) -> None:
    box = BlackBox(tmp_path)
    assert box.files == []
    watched(tmp_path, rules=[AlwaysFinds()])
    [report] = read(tmp_path)
    assert len(report.black_boxes) >= 1
    report.black_boxes[0].rename(report.black_boxes[0].with_suffix(".part"))
    assert len(read(tmp_path)[0].black_boxes) == len(report.black_boxes) - 1
