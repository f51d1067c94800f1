"""What a sink promises."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.diagnosis import Diagnosis
from bnmonitor.monitor import Monitor
from bnmonitor.results import Alert, Severity
from bnmonitor.sinks import Run, Sink
from bnmonitor.summary import Summary, summarize
from bnmonitor.testing.windows import make_window

METHODS = ("open", "frame", "alert", "incident", "epoch", "close")


class SinkContract:
    """A sink only listens: it changes nothing that it gets, it survives every order of calls, and prints nothing.

    Derive a class whose name begins with ``Test`` and override :meth:`make_sink`.
    """

    def make_sink(self, folder: Path) -> Sink:
        """Return a new sink that keeps its files, if it writes any, below a folder."""
        raise NotImplementedError

    def loggers(self, folder: Path) -> tuple[Any, ...]:
        """Return the loggers of the Trainer that the sink finds when it opens."""
        return ()

    def test_it_survives_every_order_of_calls(self, tmp_path: Path) -> None:
        """After ``open`` the other methods may be called in any order."""
        for number, order in enumerate(permutations(METHODS[1:])):
            folder = tmp_path / str(number)
            self._play(self.make_sink(folder), folder, ("open", *order))

    def test_it_can_be_closed_without_having_been_opened(self, tmp_path: Path) -> None:
        """A run that failed early closes sinks that it never opened."""
        self._play(self.make_sink(tmp_path), tmp_path, ("close",))

    def test_it_can_be_closed_twice(self, tmp_path: Path) -> None:
        """A second ``close`` does nothing."""
        self._play(self.make_sink(tmp_path), tmp_path, ("open", "frame", "close", "close"))

    def test_it_can_be_opened_again(self, tmp_path: Path) -> None:
        """A second ``start()`` opens the sink once more."""
        self._play(self.make_sink(tmp_path), tmp_path, (*METHODS, *METHODS))

    def test_it_changes_nothing_that_it_gets(self, tmp_path: Path) -> None:
        """The summary, the alert and the run are the same after each call."""
        sink = self.make_sink(tmp_path)
        given = arguments(tmp_path, self.loggers(tmp_path))
        summary, alert = given["frame"], given["alert"]
        words, tensors = repr((summary.to_dict(), alert)), list(_tensors(summary))
        for method in METHODS:
            getattr(sink, method)(given[method])
        assert repr((summary.to_dict(), alert)) == words
        assert all(torch.equal(a, b) for a, b in zip(_tensors(summary), tensors, strict=True))

    def test_it_pickles_or_names_itself_in_the_reason(self, tmp_path: Path) -> None:
        """A sink that was not opened goes to another process, or the error names its class."""
        sink = self.make_sink(tmp_path)
        refused = None
        try:
            self._play(pickle.loads(pickle.dumps(sink)), tmp_path, METHODS)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            refused = str(error)
        assert refused is None or type(sink).__name__ in refused

    def test_it_prints_nothing_unless_it_shows_alerts(self, tmp_path: Path, capsys: Any) -> None:
        """Only a sink with ``shows_alerts`` writes to standard output or standard error."""
        sink = self.make_sink(tmp_path)
        self._play(sink, tmp_path, METHODS)
        printed = capsys.readouterr()
        assert bool(printed.out or printed.err) == sink.shows_alerts

    def test_it_names_only_directories_that_exist(self, tmp_path: Path) -> None:
        """Every directory in ``history`` is there once the sink is closed."""
        sink = self.make_sink(tmp_path)
        self._play(sink, tmp_path, METHODS)
        assert all(Path(place).is_dir() for place in sink.history)

    def test_its_failure_stops_no_training(self, tmp_path: Path) -> None:
        """Whatever method raises is reported once, as BN002, and the training is the same to the last bit."""
        alone = train_with(None)[1]
        for method in METHODS:
            sink = self.make_sink(tmp_path / method)
            calls: list[object] = []
            setattr(sink, method, _raises(calls))
            monitor_alerts, left = train_with(sink)
            assert [a.code for a in monitor_alerts].count("BN002") == len(calls) == 1
            assert all(torch.equal(a, b) for a, b in zip(alone, left, strict=True))

    def test_it_does_not_change_training(self, tmp_path: Path) -> None:
        """Parameters, buffers and random state are the same with the sink and without it, to the last bit."""
        alerts, left = train_with(self.make_sink(tmp_path))
        assert "BN301" in {a.code for a in alerts}, "the training has a fault, so that every method is called"
        assert "BN002" not in {a.code for a in alerts}
        assert all(torch.equal(a, b) for a, b in zip(train_with(None)[1], left, strict=True))

    def _play(self, sink: Sink, folder: Path, methods: tuple[str, ...]) -> None:
        given = arguments(folder, self.loggers(folder))
        for method in methods:
            getattr(sink, method)(given[method])


def arguments(folder: Path, loggers: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Return what each method of a sink gets."""
    alert = Alert(
        code="BN106",
        rule="variance-explosion",
        severity=Severity.WARNING,
        layer="layer0",
        layers=("layer0",),
        channels=(1,),
        first_step=40,
        last_step=49,
        state="open",
        value=250.0,
        threshold=100.0,
        message="batch variance is 250 times its usual value",
        advice="lower the learning rate",
        url="",
    )
    window, diagnosis = make_window(channels=(3, 3)), Diagnosis()
    diagnosis.update([alert], window)
    summary = replace(summarize(window, (alert,), {}, epoch=0), incidents=diagnosis.incidents)
    run = Run(layers=summary.layers, log_dir=folder, loggers=loggers)
    [incident] = diagnosis.incidents
    return {
        "open": run, "frame": summary, "alert": alert, "incident": incident, "epoch": summary, "close": summary,
    }  # fmt: skip


def train_with(sink: Sink | None) -> tuple[tuple[Alert, ...], list[Tensor]]:
    """Train a small network with a fault; return the alerts and all that is left: state, gradients, random state.

    Args:
        sink: The only sink of the monitor; None: there is no monitor.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, momentum=0.99), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = None
    if sink is not None:
        monitor = Monitor(model, optimizer=optimizer, sinks=[sink], on_alert="log", log_every_n_steps=3)
        monitor.start()
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(32, 4)).square().mean().backward()
        optimizer.step()
        if monitor is not None:
            monitor.step()
    if monitor is not None:
        monitor.end_epoch(0)
        monitor.close()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    left = [*model.state_dict().values(), *gradients, torch.get_rng_state()]
    return () if monitor is None else monitor.alerts, left


def _tensors(summary: Summary) -> Iterator[Tensor]:
    for value in (summary.table, *vars(summary.window).values()):
        if isinstance(value, Tensor):
            yield value.nan_to_num().clone()


def _raises(calls: list[object]) -> Any:
    def method(argument: object) -> None:
        calls.append(argument)
        raise OSError("on purpose")

    return method
