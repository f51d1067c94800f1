"""One command and one query: what advances the recorder, and what changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnmonitor import Monitor
from bnmonitor.measures import averages, lag, typical_variance
from bnmonitor.monitor import Settings
from bnmonitor.recording import Moment, Recorder
from bnmonitor.testing import make_window
from bnmonitor.window import STATISTICS, Baseline, Sample, Window
from tests.models import ARCHITECTURES, train
from tests.watching import window_of


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def recorded(steps: int = 7) -> Recorder:
    """A recorder that has seen some steps and was never asked for a window."""
    torch.manual_seed(0)
    model = small()
    recorder = Recorder({"": model}, Settings(check_every_n_steps=20, sample_every_n_steps=3))
    recorder.begin()
    for step in range(steps):
        model(torch.randn(16, 4)).square().mean().backward()
        recorder.step(step, 0.1)
    return recorder


def advanced(recorder: Recorder, **moment: Any) -> Window:
    window = recorder.advance(Moment(**moment))
    assert window is not None
    return window


def tensors(holder: Baseline | Window | Sample) -> dict[str, Tensor]:
    return {f.name: v for f in fields(holder) if isinstance(v := getattr(holder, f.name), Tensor)}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    plain = [{name: t.double().nan_to_num(7.0) for name, t in each.items()} for each in (a, b)]
    return a.keys() == b.keys() and all(torch.equal(plain[0][name], plain[1][name]) for name in a)


def same(a: Any, b: Any) -> bool:
    return equal(tensors(a), tensors(b))


def none_held(window: Window) -> Tensor:
    return torch.zeros(len(window.layers), dtype=torch.bool)


def test_a_window_changes_nothing_and_shows_what_was_collected() -> None:
    recorder = recorded()
    assert recorder.window() is None, "nothing was collected yet"
    recorder.collect()
    first, second = recorder.window(), recorder.window()
    assert first is not None
    assert second is not None
    assert first.steps == second.steps == tuple(range(7))
    assert first.fresh == second.fresh == 7
    assert same(first, second)
    assert same(first.baseline, second.baseline)
    assert first.baseline.updates.tolist() == [0], "no step has been counted"
    assert first.baseline.sizes.tolist() == [16.0], "samples are known as soon as they are taken"


def test_steps_stay_new_until_their_window_is_settled() -> None:
    recorder = recorded()
    first, again = advanced(recorder), advanced(recorder)
    assert first.fresh == again.fresh == 7
    assert first.baseline.updates.tolist() == again.baseline.updates.tolist() == [7]
    assert same(first.baseline, again.baseline)
    recorder.settle(again, held=none_held(again))
    settled = advanced(recorder)
    assert settled.fresh == 0
    assert settled.baseline.updates.tolist() == [7], "each step is counted once"


@pytest.mark.parametrize("held", [False, True])
def test_the_baseline_follows_only_layers_that_are_not_held(held: bool) -> None:
    recorder = recorded(19)
    window = advanced(recorder)
    # As if the layer had been warm for long: then its baseline begins.
    window = window.against(
        replace(window.baseline, updates=window.baseline.updates + 1000, forgotten=window.baseline.forgotten + 100)
    )
    recorder.settle(window, held=none_held(window) | held)
    after = advanced(recorder).baseline
    assert bool(after.log_var.isnan().all()) == held
    assert after.updates.tolist() == [1019]


def test_the_end_without_a_training_step_has_a_window_if_an_evaluation_has_shown_something() -> None:
    model = small()
    recorder = Recorder({"": model}, Settings())
    recorder.begin()
    assert recorder.advance(Moment(end=True)) is None
    recorder.pause("test")
    model.eval()(torch.randn(4, 4))
    recorder.resume()
    assert recorder.evaluations.has_unjudged
    assert recorder.advance(Moment()) is None, "only at the end: a training step may still come"
    window = advanced(recorder, end=True)
    assert window.facts.untrained
    assert window.running_var.tolist() == [[1.0] * 8]
    assert window.batch_mean.isnan().all()
    recorder.settle(window, held=none_held(window))
    assert not recorder.evaluations.has_unjudged
    assert recorder.advance(Moment(end=True)) is None


def test_a_nested_evaluation_belongs_to_the_outer_one() -> None:
    model = small()
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        model(torch.randn(16, 4)).sum().backward()
        monitor.step()
        with monitor.evaluation():
            with monitor.evaluation("test"):
                model.eval()(torch.randn(4, 4))
            assert not window_of(monitor).ledger.evaluated.any(), "it has not ended yet"
    ledger = window_of(monitor).ledger
    assert ledger.of("evaluated", "validation").all()
    assert not ledger.of("evaluated", "test").any()


# -- what a user sees --------------------------------------------------------------------------------------------------


def test_the_monitors_window_is_a_copy_and_its_samples_are_those_kept() -> None:
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=4, window=8) as monitor:
        assert monitor.window() is None
        assert monitor.samples == ()
        train(model, architecture.batches(6), monitor=monitor)
        window = window_of(monitor)
        kept = copy.deepcopy(window)
        assert window.steps == monitor.steps
        assert [sample.step for sample in monitor.samples] == [0, 4]
        assert window.sample is monitor.samples[-1]
        train(model, architecture.batches(40), monitor=monitor)
        assert same(window, kept)
    for i, name in enumerate(monitor.layers.names):
        shown = window_of(monitor).batch_mean[-8:, monitor.layers.span(i)]
        torch.testing.assert_close(shown, monitor.history(name, "batch_mean"), equal_nan=True)


def test_asking_for_windows_all_the_time_changes_no_judgement() -> None:
    def judged(asked: bool) -> list[Any]:
        architecture = ARCHITECTURES["residual"]
        torch.manual_seed(0)
        model = architecture.build()
        monitor = Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=5)
        with monitor:
            ask = (lambda _: monitor.window()) if asked else None
            train(model, architecture.batches(25), monitor=monitor, evaluate_every=7, after_step=ask)
        state = monitor.state_dict()["watch"]
        return [[alert.to_dict() for alert in monitor.alerts], state["baseline"], state["ledger"]]

    (alerts, *without), (again, *asked) = judged(False), judged(True)
    assert alerts == again
    assert alerts
    for ours, theirs in zip(without, asked, strict=True):
        assert all(
            torch.equal(ours[name].double().nan_to_num(7.0), theirs[name].double().nan_to_num(7.0)) for name in ours
        )


def test_a_state_with_the_names_of_an_older_version_loads() -> None:
    def trained() -> Monitor:
        torch.manual_seed(0)
        model = ARCHITECTURES["mlp"].build()
        with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=2) as monitor:
            train(model, ARCHITECTURES["mlp"].batches(5), monitor=monitor)
        return monitor

    state = trained().state_dict()
    ledger, samples = state["watch"]["ledger"], state["watch"]["window"]["samples"]
    ledger["borrowed"] = ~ledger.pop("uses_training_statistics")
    for sample in samples:
        sample["apart"] = torch.full_like(sample.pop("distance"), 3.0)
    model = ARCHITECTURES["mlp"].build()
    monitor = Monitor(model, sinks=[], on_alert="log")
    monitor.load_state_dict(state)
    with monitor:
        train(model, ARCHITECTURES["mlp"].batches(1), monitor=monitor)
    assert [float(sample.distance.max()) for sample in monitor.samples] == [3.0] * len(samples)
    assert window_of(monitor).ledger.uses_training_statistics.all()


# -- windows -----------------------------------------------------------------------------------------------------------


def test_a_neutral_window_has_every_statistic_with_its_width_and_type() -> None:
    layers = make_window(channels=(3, 5)).layers
    window = Window.neutral(layers, range(4))
    assert window.steps == (0, 1, 2, 3)
    for statistic in STATISTICS:
        rows = getattr(window, statistic.name)
        assert rows.shape == (4, {"channel": 8, "layer": 2}[statistic.per])
        assert rows.dtype == statistic.dtype
    assert window.batch_mean.isnan().all()
    assert window.momentum.tolist() == [[pytest.approx(0.1)] * 2] * 4
    assert tensors(window).keys() == {statistic.name for statistic in STATISTICS}, "a tensor [T, ...] is a statistic"


def test_another_baseline_leaves_what_the_rows_alone_decide() -> None:
    window = make_window(batch_mean=1.0)
    before = typical_variance(window), lag(window)
    other = window.against(replace(window.baseline, offset=window.baseline.offset + 1))
    assert typical_variance(other) is before[0]
    assert averages(other) is averages(window)
    assert "lag" in window.memo
    assert "lag" not in other.memo
    changed = replace(window, batch_var=window.batch_var * 4)
    assert typical_variance(changed).tolist() == [4.0] * 3


def test_what_was_carried_along_is_of_this_window_only() -> None:
    window = make_window(batch_var=2.0)
    carried = (torch.zeros(3), torch.ones(3), torch.ones(3))
    with_sums = Window(**{**{f.name: getattr(window, f.name) for f in fields(window) if f.init}, "carried": carried})
    assert averages(with_sums) is carried
    assert with_sums.against(window.baseline).averages is carried
    assert replace(with_sums, fresh=1).averages is None
    assert averages(with_sums.last(8))[1].tolist() == [2.0] * 3


def test_a_layer_that_stops_keeping_statistics_is_recorded_as_one_without() -> None:
    torch.manual_seed(0)
    model = small()
    with Monitor(model, sinks=[], on_alert="log", ignore=("BN803",)) as monitor:
        for step in range(40):
            if step == 13:
                model[1].running_mean = model[1].running_var = None  # normalizes by the batch in evaluation as well
            model(torch.randn(16, 4)).square().mean().backward()
            monitor.step()
        assert monitor.layers["1"].tracking is False
        assert monitor.history("1", "batch_mean").isfinite().all()
    assert not monitor.alerts


@pytest.mark.parametrize("check_every", [4, 5])
def test_what_an_evaluation_changes_is_in_no_step_before_or_after_it(check_every: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    norm, true = model[1], []
    with Monitor(model, sinks=[], window=8, check_every_n_steps=check_every, sample_every_n_steps=0) as monitor:
        for step in range(40):
            before = norm.running_mean.clone()
            model(torch.randn(6, 3)).sum().backward()
            true.append((before, norm.running_mean.clone()))
            monitor.step()
            if step % 5 == 3:  # with 4 steps to a check behind one, with 5 between two
                with monitor.evaluation():
                    norm.running_mean.add_(100.0)
            if step % 5 == 1:
                with monitor.evaluation(), monitor.evaluation("test"):
                    norm.running_mean.sub_(10.0)
            first = monitor.steps[0]
            rows = monitor.history("1", "running_mean")
            batches = monitor.history("1", "batch_mean")
            for at, (old, new) in enumerate(true[first : step + 1]):
                assert torch.equal(rows[at], new), (step, at)
                torch.testing.assert_close(batches[at], old + (new - old) / 0.1, rtol=1e-4, atol=1e-4)
