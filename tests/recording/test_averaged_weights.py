"""Averaged weights: whose statistics they are evaluated with, and what the extra forward adds without a trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from bnmonitor import Alert, BatchNormMonitor, Monitor, Severity
from bnmonitor.recording.updates import UpdateLedger
from bnmonitor.rules.bookkeeping.stale_averaged_weights import StaleAveragedWeights
from bnmonitor.testing import make_window
from bnmonitor.window import EvaluationGap, Ledger
from tests.end_to_end.faults.injection import swapped
from tests.end_to_end.test_promises import hooks, same
from tests.lightning.test_callback import a_module, a_trainer, lightning, loader, one_thread
from tests.rules.test_modes import data, net
from tests.sampling.test_probe import state
from tests.watching import window_of

__all__ = ["lightning", "one_thread"]


class Run:
    """A training under watch with a copy of its model, and evaluations of either."""

    def __init__(self, *, watch_copy: bool = True, probe: bool = False, **average: Any) -> None:
        torch.manual_seed(0)
        self.model = net()
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), **average)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.inputs: list[Tensor] = []
        watched: Any = {"net": self.model, "copy": self.average} if watch_copy else self.model
        usual: dict[str, Any] = {"sinks": [], "on_alert": "log", "select": ("all",), "sample_every_n_steps": 20}
        self.monitor = Monitor(watched, optimizer=self.optimizer, probe=probe, **usual)

    def steps(self, number: int, follow: Callable[[], None] | None = None, shift: float = 0.0) -> None:
        for _ in range(number):
            x, y = data(64, shift=shift)
            self.inputs.append(x)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            (follow or (lambda: self.average.update_parameters(self.model)))()
            self.monitor.step()

    def evaluate(self, model: nn.Module | None = None) -> None:
        model = model or self.average
        with self.monitor.evaluation(), torch.no_grad():
            model.eval()(data(64)[0])
            model.train()

    @contextmanager
    def swap(self) -> Iterator[None]:
        with self.monitor.evaluation(), torch.no_grad(), swapped(self.model, self.average.module):
            self.model.eval()
            yield
            self.model.train()

    @property
    def ledger(self) -> Ledger:
        return window_of(self.monitor).ledger

    @property
    def told(self) -> list[Alert]:
        return [a for a in self.monitor.alerts if a.code == "BN505"]


def following(run: Run) -> None:
    """Average the weights and leave the buffers behind."""
    kept = [b.clone() for b in run.average.module.buffers()]
    run.average.update_parameters(run.model)
    for buffer, value in zip(run.average.module.buffers(), kept, strict=True):
        buffer.copy_(value)


def copied(run: Run) -> None:
    """The state that a copy is to fall behind from."""
    run.average.module.load_state_dict(run.model.state_dict())


@pytest.mark.parametrize("watch_copy", [True, False])
def test_statistics_that_stay_behind_later(watch_copy: bool) -> None:
    run = Run(watch_copy=watch_copy)
    with run.monitor:
        run.steps(25)
        copied(run)
        for shift in (0.2, 1.0):
            run.steps(25, lambda: following(run), shift)
            if watch_copy:
                run.evaluate()
            else:
                with run.swap():
                    run.model(data(64)[0])
    assert [a.layer for a in run.told] == ["copy.module.1" if watch_copy else "1"]
    assert run.told[0].severity is Severity.ERROR
    assert "have not changed for " in run.told[0].message
    where = [name.startswith("copy") == watch_copy for name in run.monitor.layers.names]
    assert [b > 0 for b in run.ledger.steps_stale.tolist()] == where


def test_weights_swapped_in_without_their_statistics() -> None:
    run = Run(watch_copy=False)
    with run.monitor:
        run.steps(40)
        with run.swap():
            run.model(data(64)[0])
    assert [a.layers for a in run.told] == [("1", "4")]
    assert run.ledger.swapped.all()
    assert run.ledger.uses_training_statistics.all()


def test_statistics_of_training_a_few_steps_ago() -> None:
    """A copy that is brought up to date now and then has the buffers of that step, and the weights of none."""
    run = Run()
    with run.monitor:
        run.steps(40)
        run.steps(4, lambda: None)
        run.evaluate()
    assert [a.layers for a in run.told] == [("copy.module.1", "copy.module.4")]


def test_a_copy_of_a_step_as_a_whole_fits() -> None:
    run = Run()
    with run.monitor:
        run.steps(40, lambda: copied(run))
        run.steps(15, lambda: None)
        run.evaluate()
        assert not run.ledger.uses_training_statistics.any()
    assert run.told == []


@pytest.mark.parametrize("watch_copy", [True, False])
@pytest.mark.parametrize("how", ["averaged", "estimated", "estimated inside"])
def test_statistics_of_its_own(watch_copy: bool, how: str) -> None:
    run = Run(watch_copy=watch_copy, probe=True, use_buffers=how == "averaged")
    with run.monitor:
        for _ in range(3):
            run.steps(30)
            if how == "estimated":
                update_bn([data()[0] for _ in range(10)], run.average)
            if not watch_copy:
                with run.swap():
                    if how == "estimated inside":
                        run.model.train()
                        update_bn([data()[0] for _ in range(10)], run.model)
                        run.model.eval()
                    run.model(data(64)[0])
            else:
                with run.monitor.evaluation(), torch.no_grad():
                    if how == "estimated inside":
                        update_bn([data()[0] for _ in range(10)], run.average)
                    run.average.eval()(data(64)[0])
                    run.average.train()
    assert run.told == []


def test_a_network_whose_statistics_stand_still_on_purpose() -> None:
    run = Run(probe=True)
    for _ in range(20):
        run.model(data()[0])
    copied(run)
    for i in (1, 4):
        run.model[i].eval()
    with run.monitor:
        for _ in range(3):
            run.steps(30)
            run.evaluate()
        assert not run.ledger.uses_training_statistics.any()
        assert not run.ledger.distance.gt(0).any()
    assert run.told == []


@pytest.mark.parametrize("watch_copy", [True, False])
def test_the_probe_measures_averaged_weights_and_leaves_no_trace(watch_copy: bool) -> None:
    run = Run(watch_copy=watch_copy, probe=True)
    with run.monitor:
        run.steps(40)
        if watch_copy:
            run.average.eval()
            before = state(run.average)
            with run.monitor.evaluation(), torch.no_grad():
                run.average(torch.zeros(4, 3, 8, 8))
            assert same(before, state(run.average))
        else:
            with run.swap():
                before = state(run.model)
                run.model(torch.zeros(4, 3, 8, 8))
                assert same(before, state(run.model))
        gaps = window_of(run.monitor).facts.averaged_gaps
    assert gaps is not None
    names = run.monitor.layers.names
    mine = {n: float(g) for n, g in zip(names, gaps.gap, strict=True) if not g.isnan()}
    assert list(mine) == (["copy.module.1", "copy.module.4"] if watch_copy else ["1", "4"])
    assert hooks(run.model) == hooks(run.average) == 0


def test_what_the_probe_measures_is_true() -> None:
    """Against the layer by hand: the kept batch, through the averaged weights, in both modes."""
    run = Run(probe=True)
    with run.monitor:
        run.steps(40)
        x = run.inputs[run.monitor.samples[-1].step].double()
        run.evaluate()
        gaps = window_of(run.monitor).facts.averaged_gaps
    assert gaps is not None
    twin = copy.deepcopy(run.average.module).double()
    for i in (1, 4):
        twin.train()
        inside = twin[:i](x)
        batch = copy.deepcopy(twin[i]).train()(inside)
        still = copy.deepcopy(twin[i]).eval()(inside)
        batch, still = batch.detach(), still.detach()
        gap = float((batch - still).norm() / batch.norm())
        at = run.monitor.layers.index(f"copy.module.{i}")
        assert float(gaps.gap[at]) == pytest.approx(gap, rel=1e-3)


def test_a_training_with_the_probe_of_averaged_weights_is_the_same_as_without() -> None:
    def trained(probe: bool) -> list[Any]:
        run = Run(watch_copy=False, probe=probe)
        run.model.insert(8, nn.Dropout(0.3))
        run.average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        with run.monitor:
            for _ in range(3):
                run.steps(20)
                with run.swap():
                    run.model(data()[0])
        return [part for i, part in enumerate(state(run.model)) if i != 4]

    assert same(trained(False), trained(True))


def test_a_probe_that_fails_does_not_end_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("on purpose")

    run = Run(watch_copy=False, probe=True)
    with run.monitor:
        run.steps(40)
        monkeypatch.setattr(UpdateLedger, "averaged", fail)
        with run.swap():
            assert run.model(data()[0]).isfinite().all()
        assert "on purpose" in run.monitor.skipped["train-eval-gap"]
    assert [a.layers for a in run.told] == [("1", "4")], "what needs no probe is seen all the same"


def test_the_probe_says_how_much_it_matters() -> None:
    def judged(gap: float, **ledger: Any) -> list[Severity]:
        gaps = EvaluationGap(step=63, gap=torch.tensor([gap]), size=torch.tensor([64]))
        window = make_window(
            start_mean=1.0, facts={"averaged_gaps": gaps}, ledger={"averaged": True, "evaluated": True, **ledger}
        )
        return [f.severity for f in StaleAveragedWeights().check(window)]

    assert judged(0.9) == [], "an average that moves has a gap of its own while it is young"
    assert judged(0.1, uses_training_statistics=True) == [Severity.WARNING]
    assert judged(0.6, uses_training_statistics=True) == [Severity.ERROR]
    assert judged(0.1, steps_stale=3) == []
    assert judged(0.3, steps_stale=3) == [Severity.WARNING]
    assert judged(0.0, steps_stale=40, distance=0.05) == []
    assert judged(0.0, steps_stale=40, distance=0.15) == [Severity.WARNING]
    assert judged(0.0, steps_stale=5, distance=0.15) == [], "fewer than 1 / momentum steps"


def test_bn505_a_test_after_the_fit_of_an_average_that_was_left_in_the_model(lightning: Any) -> None:
    callback, module = BatchNormMonitor(sinks=[], on_alert="log"), a_module(lightning)
    module.test_step = lambda batch, batch_idx: module(batch[0])
    averaging = lightning.callbacks.EMAWeightAveraging(use_buffers=False, decay=0.9)
    trainer = a_trainer(lightning, callback, averaging, max_epochs=6)
    trainer.fit(module, loader())
    assert callback.alerts == ()
    trainer.test(module, loader(1))
    assert [(a.code, a.layers) for a in callback.alerts] == [("BN505", ("body.1", "body.4"))]


def test_averaged_weights_whose_statistics_a_callback_estimates_after_the_swap(lightning: Any) -> None:
    class Refreshed(lightning.callbacks.EMAWeightAveraging):  # type: ignore[misc]
        def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_validation_epoch_start(trainer, pl_module)
            update_bn([x for x, _ in loader()], pl_module)
            pl_module.eval()

    callback, module = BatchNormMonitor(sinks=[], on_alert="log", probe=True), a_module(lightning)
    trainer = a_trainer(lightning, callback, Refreshed(use_buffers=False, decay=0.9), max_epochs=6)
    trainer.fit(module, loader(), loader(1))
    assert [a.code for a in callback.alerts if a.code == "BN505"] == []


@pytest.mark.parametrize("buffers", ["left behind", "averaged", "estimated"])
def test_weights_that_stay_swapped_in_beyond_the_evaluation(buffers: str) -> None:
    """As a schedule-free optimizer swaps them in: before the evaluation, and back after it."""
    run = Run(watch_copy=False)
    average = copy.deepcopy(run.model)

    @torch.no_grad()
    def follow() -> None:
        for mine, theirs in zip(average.parameters(), run.model.parameters(), strict=True):
            mine.lerp_(theirs, 0.03)
        for mine, theirs in zip(average.buffers(), run.model.buffers(), strict=True):
            mine.copy_(mine.lerp(theirs, 0.03) if mine.is_floating_point() else theirs)

    run.optimizer.param_groups[0]["lr"] = 0.2
    with run.monitor:
        for _ in range(2):
            run.steps(40, follow)
            kept = copy.deepcopy(run.model.state_dict())
            swapped_in = dict(average.named_parameters()) if buffers != "averaged" else average.state_dict()
            run.model.load_state_dict({**kept, **swapped_in})
            if buffers == "estimated":
                update_bn([data()[0] for _ in range(10)], run.model)
            run.evaluate(run.model)
            run.model.load_state_dict(kept)
    assert [(a.layers, a.severity) for a in run.told] == (
        [(("1", "4"), Severity.WARNING)] if buffers == "left behind" else []
    )


@pytest.mark.parametrize("pull", [0.5, 0.2])
def test_weights_that_are_pulled_back_now_and_then(pull: float) -> None:
    """As Lookahead and Reptile do, after a step was read."""
    run = Run(watch_copy=False)
    slow = [p.detach().clone() for p in run.model.parameters()]
    with run.monitor:
        for step in range(100):
            run.steps(1)
            if step % 5 == 4:
                for fast, kept in zip(run.model.parameters(), slow, strict=True):
                    fast.data.copy_(kept.lerp_(fast.data, pull))
            if step % 25 == 24:
                run.evaluate(run.model)
    assert run.told == []


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_an_average_of_networks_that_were_trained_long_ago(with_optimizer: bool) -> None:
    torch.manual_seed(0)
    nets = {name: net() for name in ("one", "two", "three")}
    optimizer = torch.optim.SGD([p for each in nets.values() for p in each.parameters()], lr=0.1)
    average = copy.deepcopy(nets["one"])
    given: Any = {"optimizer": optimizer} if with_optimizer else {}
    monitor = Monitor({**nets, "average": average}, sinks=[], on_alert="log", sample_every_n_steps=20, **given)
    with monitor:
        for step in range(160):
            for name in ("one", "two") if step < 60 else ("three",):
                x, y = data(64)
                optimizer.zero_grad()
                nn.functional.cross_entropy(nets[name](x), y).backward()
                optimizer.step()
            monitor.step()
        average.load_state_dict(nets["two"].state_dict())
        with torch.no_grad():
            for mine, one, two in zip(*(m.parameters() for m in (average, nets["one"], nets["two"])), strict=True):
                mine.copy_((one + two) / 2)
        with monitor.evaluation("test"), torch.no_grad():
            average.eval()(data(64)[0])
    told = [(a.layers, a.severity) for a in monitor.alerts if a.code == "BN505"]
    assert told == [(("average.1", "average.4"), Severity.WARNING)]


def test_copied_buffers_of_a_teacher_are_an_info() -> None:
    run = Run(watch_copy=False)
    teacher = copy.deepcopy(run.model).eval().requires_grad_(False)
    settings: Any = {"sinks": [], "on_alert": "log", "sample_every_n_steps": 20}
    run.monitor = Monitor({"net": run.model, "teacher": teacher}, optimizer=run.optimizer, **settings)

    @torch.no_grad()
    def follow() -> None:
        for mine, theirs in zip(teacher.parameters(), run.model.parameters(), strict=True):
            mine.lerp_(theirs, 0.05)
        for mine, theirs in zip(teacher.buffers(), run.model.buffers(), strict=True):
            mine.copy_(theirs)

    with run.monitor:
        for _ in range(3):
            run.steps(30, follow)
            run.evaluate(teacher)
            teacher.eval()
    assert {a.severity for a in run.told} <= {Severity.INFO}
