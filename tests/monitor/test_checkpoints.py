"""Checkpoints of a monitor that failed, and checkpoints that hold something else than a monitor's state."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnmonitor import BatchNormWarning, Monitor
from bnmonitor.recording import Recorder
from bnmonitor.sinks import Run, Sink


def a_monitor(**keywords: Any) -> tuple[nn.Module, Monitor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8))
    settings = {"sinks": [], "on_alert": "log", "check_every_n_steps": 2, "sample_every_n_steps": 4, **keywords}
    return model, Monitor(model, **settings)


def train(model: nn.Module, monitor: Monitor, steps: int = 6) -> None:
    for _ in range(steps):
        model(torch.randn(4, 4)).square().mean().backward()
        monitor.step()


def saved() -> dict[str, Any]:
    model, monitor = a_monitor()
    with monitor:
        train(model, monitor)
        state = monitor.state_dict()
    assert state["book"]["alerts"], "the batch of 4 must be reported"
    return copy.deepcopy(state)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))[:1] if isinstance(value, list) else []
    for key in keys:
        yield (*path, key)
        yield from paths(value[key], (*path, key))


def test_a_checkpoint_with_any_field_missing_or_of_another_type_begins_anew_or_continues_and_ends_nothing() -> None:
    whole, outcomes = saved(), []
    for path in paths(whole):
        for change in ("missing", "other"):
            state = copy.deepcopy(whole)
            place = state
            for key in path[:-1]:
                place = place[key]
            if change == "missing":
                del place[path[-1]]
            else:
                place[path[-1]] = 5 if isinstance(place[path[-1]], str) else "changed"
            model, monitor = a_monitor()
            with warnings.catch_warnings(record=True) as given:
                warnings.simplefilter("always")
                if len(path) == 1 and path[0] != "version" and change == "missing":
                    with pytest.raises(ValueError, match=r"^the state is not one of Monitor"):
                        monitor.load_state_dict(state)
                    continue
                monitor.load_state_dict(state)
            refused = ["the record begins anew" in str(w.message) for w in given]
            if not refused:  # then the state has to do
                with monitor:
                    train(model, monitor, 3)
            outcomes.append((path, change, monitor.failure, refused))
    assert len(outcomes) > 100
    assert [each for each in outcomes if each[2] or each[3] not in ([], [True])] == []
    assert sum(each[3] == [True] for each in outcomes) > 50


def test_a_refused_state_leaves_no_trace() -> None:
    state = saved()
    state["book"]["candidates"] = "changed"
    model, monitor = a_monitor()
    with pytest.warns(BatchNormWarning, match=r"^the checkpoint's state of bnmonitor is not continued.*: ValueError"):
        monitor.load_state_dict(state)
    with monitor:
        train(model, monitor, 3)
    assert (monitor.steps, monitor.failure) == ((0, 1, 2), "")


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.warns(BatchNormWarning, match=r"it is of version 99, and this bnmonitor reads version 1$"):
        a_monitor()[1].load_state_dict({**saved(), "version": 99})


def test_a_monitor_that_failed_still_answers_and_its_checkpoint_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model, monitor = a_monitor()

    def broken(*_: object, **__: object) -> None:
        raise MemoryError("out of memory")

    with monitor:
        train(model, monitor, 3)
        with monkeypatch.context() as patch:
            patch.setattr(Recorder, "collect", broken)
            with pytest.warns(BatchNormWarning, match="stopped watching"):
                state = monitor.state_dict()
            assert (monitor.steps, monitor.window()) == ((0, 1), None)
            assert monitor.history("1", "batch_mean").shape == (2, 8)
            assert monitor.summary().skipped == {"every rule": monitor.failure}
    said = "bnmonitor stopped watching, training goes on: MemoryError: out of memory"
    assert state == {"version": 1, "failure": said}
    model, second = a_monitor()
    with pytest.warns(BatchNormWarning, match="the record begins anew: the run before it had failed: .*out of memory$"):
        second.load_state_dict(state)
    with second:
        train(model, second)
    assert second.failure == ""


def test_ctrl_c_in_the_start_leaves_no_hook() -> None:
    class Interrupted(Sink):
        def open(self, run: Run) -> None:
            raise KeyboardInterrupt

    model, monitor = a_monitor(sinks=[Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        monitor.start()
    assert not monitor.running
    assert [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks] == []


def test_a_step_may_be_an_integer_of_numpy() -> None:
    model, monitor = a_monitor()
    with monitor:
        model(torch.randn(4, 4))
        monitor.step(np.int64(5))  # type: ignore[arg-type]
    assert monitor.steps == (5,)
    assert type(monitor.steps[0]) is int
