"""Reading the tape one check late, as from a busy accelerator; on a CPU, by a transfer that holds back its newest."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from bnmonitor import Monitor
from bnmonitor.recording import recorder
from bnmonitor.recording.tape import Tape
from bnmonitor.sinks import Sink
from bnmonitor.transfer import HostTransfer
from bnmonitor.window import SERIES
from tests.models import ARCHITECTURES, train
from tests.watching import Windows, window_of

CPU = torch.device("cpu")
T = TypeVar("T")


class DelayedTransfer(HostTransfer[T]):
    """Behaves as from a device whose newest parcel is always on its way."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.coming: list[tuple[T, tuple[Tensor, ...]]] = []

    def send(self, label: T, *tensors: Tensor) -> None:
        super().send(label, *(t.clone() for t in tensors))

    def receive(self, *, wait: bool) -> list[tuple[T, tuple[Tensor, ...]]]:
        sent = [*self.coming, *super().receive(wait=True)]
        arrived = len(sent) if wait else max(0, len(sent) - 1)
        self.coming = sent[arrived:]
        return sent[:arrived]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "Tape", partial(Tape, transfer=DelayedTransfer))


def test_on_a_cpu_what_is_sent_is_there_at_once_and_not_copied() -> None:
    transfer: HostTransfer[str] = HostTransfer(CPU)
    x = torch.randn(3)
    transfer.send("a", x)
    [(label, (here,))] = transfer.receive(wait=False)
    assert label == "a"
    assert here.data_ptr() == x.data_ptr()
    assert transfer.receive(wait=True) == []


def test_a_late_parcel_holds_what_was_sent_and_comes_in_order() -> None:
    transfer: DelayedTransfer[int] = DelayedTransfer(CPU)
    x = torch.zeros(2)
    came = []
    for i in range(5):
        transfer.send(i, x.fill_(i))
        x.fill_(-1.0)  # the tape is written again before the parcel has arrived
        came += [(label, float(here[0])) for label, (here,) in transfer.receive(wait=False)]
        assert [label for label, _ in came] == list(range(i))
    came += [(label, float(here[0])) for label, (here,) in transfer.receive(wait=True)]
    assert came == [(i, float(i)) for i in range(5)]


def test_what_is_on_its_way_arrives_when_the_tensors_move_to_another_device() -> None:
    transfer = HostTransfer[str](CPU)
    transfer.send("before", torch.ones(2))
    transfer.follow(torch.device("cpu", 0))
    transfer.send("after", torch.zeros(2))
    assert transfer.device == torch.device("cpu", 0)
    assert [(label, here.tolist()) for label, (here,) in transfer.receive(wait=True)] == [
        ("before", [1.0, 1.0]),
        ("after", [0.0, 0.0]),
    ]


def watched(**settings: Any) -> tuple[Monitor, list[int]]:
    """Train a while; return the monitor and how far it had judged after each step."""
    architecture = ARCHITECTURES["residual"]
    model = architecture.build()
    judged: list[int] = []
    rule = Windows()
    usual = {"sinks": [], "check_every_n_steps": 4, "rules": [rule]}
    monitor = Monitor(model, on_alert="log", **{**usual, **settings})
    with monitor:
        train(
            model,
            architecture.batches(23),
            monitor=monitor,
            evaluate_every=9,
            after_step=lambda _: judged.append(rule.last_step),
        )
    return monitor, judged


def test_a_late_record_is_the_same_record(request: pytest.FixtureRequest) -> None:
    now, judged = watched()
    request.getfixturevalue("late")
    later, judged_later = watched()
    assert now.steps == later.steps == tuple(range(23))
    for name in now.layers.names:
        for statistic in SERIES:
            torch.testing.assert_close(
                now.history(name, statistic), later.history(name, statistic), rtol=0, atol=0, equal_nan=True
            )
    assert [(a.code, a.first_step) for a in now.alerts] == [(a.code, a.first_step) for a in later.alerts]
    assert judged[3::4] == [3, 7, 11, 15, 19]
    assert judged_later[3] < 3
    assert all(a <= b for a, b in zip(judged_later, judged, strict=True))


@pytest.mark.usefixtures("late")
def test_who_asks_is_given_everything_up_to_now_and_close_judges_the_last_step() -> None:
    architecture = ARCHITECTURES["mlp"]
    model, rule = architecture.build(), Windows()
    with Monitor(model, sinks=[], on_alert="log", check_every_n_steps=4, rules=[rule]) as monitor:
        train(model, architecture.batches(10), monitor=monitor)
        assert rule.last_step < 7, "the last check was after step 7"
        assert monitor.steps[-1] == 9
        assert monitor.summary().step == 9
        train(model, architecture.batches(3), monitor=monitor)
    assert rule.last_step == 12
    assert window_of(monitor).fresh == 0


@pytest.mark.usefixtures("late")
def test_frames_do_not_wait_and_epochs_do() -> None:
    class Told(Sink):
        def __init__(self) -> None:
            self.steps: list[tuple[str, int]] = []

        def frame(self, summary: Any) -> None:
            self.steps.append(("frame", summary.step))

        def epoch(self, summary: Any) -> None:
            self.steps.append(("epoch", summary.step))

    told = Told()
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    with Monitor(model, sinks=[told], on_alert="log", check_every_n_steps=4, log_every_n_steps=8) as monitor:
        train(model, architecture.batches(8), monitor=monitor)
        monitor.end_epoch(0)
    assert told.steps[-1] == ("epoch", 7)
    assert all(step < 7 for kind, step in told.steps if kind == "frame")
