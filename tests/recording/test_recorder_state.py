"""What a recorder counts, and what of it goes through a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bnmonitor.measures import averages
from bnmonitor.monitor import Settings
from bnmonitor.recording import Moment, Recorder
from tests.recording.test_recorder import advanced, none_held, recorded, same, small


def stepped(recorder: Recorder, model: nn.Module, numbers: range) -> None:
    for number in numbers:
        model(torch.randn(16, 4)).square().mean().backward()
        recorder.step(number, 0.1)


def made(model: nn.Module, state: dict[str, Any] | None = None, **settings: Any) -> Recorder:
    """A recorder that watches, and goes on from a state if there is one."""
    recorder = Recorder({"": model}, Settings(**({"check_every_n_steps": 20, "sample_every_n_steps": 3} | settings)))
    if state is not None:
        recorder.load_state_dict(state)
    recorder.begin()
    return recorder


def test_the_first_epoch_gives_the_steps_of_an_epoch() -> None:
    model = small()
    recorder = made(model)
    stepped(recorder, model, range(7))
    assert advanced(recorder).facts.epoch_steps == 0, "it has not ended yet"
    recorder.end_epoch()
    stepped(recorder, model, range(7, 12))
    recorder.end_epoch()
    assert advanced(recorder).facts.epoch_steps == 7


def test_a_recorder_numbers_the_steps_from_the_one_it_was_given() -> None:
    model = small()
    recorder = made(model)
    stepped(recorder, model, range(100, 105))
    assert (recorder.count, recorder.number) == (5, 105)
    assert advanced(recorder).steps == tuple(range(100, 105))
    assert recorder.steps == list(range(100, 105))


def test_without_a_step_a_window_has_the_layers_and_no_batch() -> None:
    recorder = made(small())
    window = recorder.blank()
    assert window.facts.untrained
    assert (window.steps, window.layers) == ((0,), recorder.layers)
    assert window.batch_mean.isnan().all()
    assert recorder.window() is None


@pytest.mark.parametrize("steps", [1, 9])
def test_a_state_goes_on_with_every_counter_and_the_window(steps: int) -> None:
    recorder = recorded(steps)
    recorder.end_epoch()
    before = advanced(recorder)
    recorder.settle(before, held=none_held(before))
    recorder.number = 40
    state = recorder.state_dict()
    assert {name: state[name] for name in ("count", "number", "epoch_steps", "fresh")} == {
        "count": steps,
        "number": 40,
        "epoch_steps": steps,
        "fresh": 0,
    }
    model = small()
    other = made(model, state)
    assert (other.count, other.number, other.steps) == (steps, 40, list(range(steps)))
    stepped(other, model, range(40, 43))
    window = advanced(other)
    assert window.steps == (*range(steps), 40, 41, 42)
    assert (window.fresh, window.facts.epoch_steps) == (3, steps)
    assert window.batch_var[:steps].equal(before.batch_var)
    assert window.baseline.updates.tolist() == [steps + 3]
    assert other.state_dict()["fresh"] == 3


def test_steps_that_were_not_judged_before_a_checkpoint_are_new_after_it() -> None:
    state = recorded(5).state_dict()
    assert state["fresh"] == 5
    model = small()
    other = made(model, state)
    stepped(other, model, range(5, 7))
    assert advanced(other).fresh == 7


def test_what_was_loaded_is_kept_until_there_is_a_step_and_its_counters_go_on() -> None:
    state = recorded(4).state_dict()
    recorder = made(small(), state)
    kept = recorder.state_dict()
    assert kept.keys() == state.keys()
    assert kept["baseline"] is state["baseline"]
    assert (kept["count"], kept["number"]) == (4, 4)
    recorder.number = 11
    assert recorder.state_dict()["number"] == 11


def test_without_a_layer_to_watch_the_steps_are_still_counted_through_a_checkpoint() -> None:
    bare = nn.Sequential(nn.Linear(4, 2))
    recorder = made(bare)
    stepped(recorder, bare, range(3))
    other = made(bare, recorder.state_dict())
    stepped(other, bare, range(3, 5))
    assert (other.state_dict()["count"], other.state_dict()["number"]) == (5, 5)


def test_a_state_of_other_layers_leaves_the_window_and_begins_with_the_counters() -> None:
    old = recorded(4)
    judged = advanced(old)
    old.settle(judged, held=none_held(judged))
    state = old.state_dict()
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8))
    other = made(model, state)
    assert (other.count, other.steps) == (4, [])
    stepped(other, model, range(4, 6))
    window = advanced(other)
    assert (window.steps, window.fresh) == ((4, 5), 2)
    assert window.baseline.updates.tolist() == [6, 2], "the layer that stayed goes on, the new one begins"


def test_a_layer_that_was_replaced_or_changed_before_the_beginning_is_found() -> None:
    model = small()
    recorder = Recorder({"": model}, Settings(check_every_n_steps=20))
    model[1] = nn.BatchNorm1d(8)
    recorder.begin()
    assert list(recorder.modules) == [model[1]]
    stepped(recorder, model, range(2))
    assert advanced(recorder).batch_var.isfinite().all()
    model[1].eps = 0.5
    recorder.begin()
    assert (list(recorder.modules), recorder.layers.eps) == ([model[1]], (0.5,))


def test_a_layer_that_is_replaced_in_the_training_begins_anew_and_the_others_go_on() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8))
    recorder = made(model)
    stepped(recorder, model, range(5))
    judged = advanced(recorder)
    recorder.settle(judged, held=none_held(judged))
    assert not recorder.renewed()
    model[2] = nn.BatchNorm1d(8)
    assert recorder.renewed()
    assert list(recorder.modules) == [model[1], model[2]]
    stepped(recorder, model, range(5, 6))
    window = advanced(recorder)
    assert window.steps == (5,)
    assert window.baseline.updates.tolist() == [6, 1]


@pytest.mark.parametrize("name", ["count", "number", "epoch_steps", "fresh"])
@pytest.mark.parametrize("value", [-1, True, "3", 1.5, None])
def test_a_rehearsal_refuses_a_counter_that_is_none(name: str, value: object) -> None:
    state = recorded(4).state_dict()
    recorder = made(small())
    with pytest.raises(TypeError, match=r"^a counter is not an int of at least 0$"):
        recorder.rehearse({**state, name: value})
    assert (recorder.count, recorder.steps) == (0, [])


def test_a_rehearsal_makes_the_window_and_changes_nothing() -> None:
    old = recorded(4)
    window = advanced(old)
    recorder = made(small())
    rehearsed = recorder.rehearse(old.state_dict())
    assert rehearsed is not None
    assert same(rehearsed, window)
    assert rehearsed.baseline.updates.tolist() == [4]
    assert (recorder.count, recorder.steps, recorder.window()) == (0, [], None)
    zero = {**old.state_dict(), "number": 0, "epoch_steps": 0, "fresh": 0}
    assert recorder.rehearse(zero) is not None


def test_a_rehearsal_refuses_a_baseline_of_another_shape() -> None:
    state = recorded(4).state_dict()
    state["baseline"]["gamma"] = state["baseline"]["gamma"][:5]
    with pytest.raises((TypeError, RuntimeError, ValueError)):
        made(small()).rehearse(state)


def test_the_window_keeps_as_many_steps_as_were_asked_for_and_one_check_at_least() -> None:
    for window, every, kept in ((6, 2, 6), (4, 9, 9)):
        model = small()
        recorder = made(model, window=window, check_every_n_steps=every)
        for number in range(20):
            stepped(recorder, model, range(number, number + 1))
            if recorder.full:
                recorder.collect()
        recorder.collect()
        assert recorder.steps == list(range(20 - kept, 20))


@pytest.mark.parametrize(("channels", "carried"), [(2_000, True), (1_999, False)])
def test_sums_over_the_steps_are_carried_along_for_many_channels_and_are_the_same(channels: int, carried: bool) -> None:
    model = nn.BatchNorm1d(channels)
    recorder = made(model, sample_every_n_steps=0)
    for number in range(3):
        model(torch.randn(4, channels) + 2).sum().backward()
        recorder.step(number, 0.1)
        window = advanced(recorder)
    assert (window.averages is not None) is carried
    for ours, theirs in zip(averages(window), averages(replace(window, fresh=1)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_layers_are_in_the_order_of_their_execution_once_a_step_was_sampled() -> None:
    class Backward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.BatchNorm1d(4)
            self.first = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu() * 3)  # type: ignore[no-any-return]

    model = Backward()
    recorder = made(model)
    assert recorder.layers.names == ("second", "first")
    batches = [torch.randn(16, 4) + 5 for _ in range(4)]
    for number, x in enumerate(batches):
        model(x).square().mean().backward()
        recorder.step(number, 0.1)
    assert recorder.layers.names == ("first", "second")
    assert list(recorder.modules) == [model.first, model.second]
    window = advanced(recorder)
    torch.testing.assert_close(window.batch_mean[:, :4], torch.stack([x.mean(0) for x in batches]), rtol=0, atol=1e-4)
    assert window.steps == (0, 1, 2, 3)


def test_optimizers_of_the_moment_are_in_the_facts() -> None:
    model = small()
    recorder = made(model)
    stepped(recorder, model, range(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    window = recorder.advance(Moment(optimizers=[optimizer], end=True))
    assert window is not None
    assert window.facts.optimizer_count == 1
    assert window.facts.ending
    assert window.facts.learning_rates == (0.1, 0.1)
    shown = recorder.window([optimizer])
    assert shown is not None
    assert (shown.facts.optimizer_count, shown.facts.ending) == (1, False)
