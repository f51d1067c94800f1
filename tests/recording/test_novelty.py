"""What counts as new beside the steps that were judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bnmonitor.measures import Array
from bnmonitor.recording.novelty import Novelty
from bnmonitor.testing import make_window

CHANNELS = (6, 4)
RATES = [0.1] * 10
TRAINS = [True] * 4


def rows(seed: int, **changed: Tensor) -> dict[str, Tensor]:
    """Ten usual steps of two layers, and what is changed of them."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 10, 10, generator=generator)
    window = make_window(
        channels=CHANNELS, steps=10, batch_mean=0.2 * noise[0], batch_var=(0.1 * noise[1]).exp(), **changed
    )
    names = ("batch_mean", "batch_var", "running_mean", "running_var", "gamma", "beta")
    return {name: getattr(window, name) for name in (*names, "updates", "recovery", "training", "momentum")}


def extremes(given: Mapping[str, Tensor]) -> Array:
    mean, var = given["batch_mean"], given["batch_var"]
    return torch.stack([mean.amin(0), mean.amax(0), var.amin(0), var.amax(0)]).numpy()


@pytest.fixture
def novelty() -> Novelty:
    """It has met some usual steps, and they were judged."""
    found = Novelty(make_window(channels=CHANNELS).layers)
    assert found.found, "before the first judgment"
    found.judged(rows(0), RATES)
    for seed in range(1, 6):
        given = rows(seed)
        found.note(given, RATES, extremes(given), TRAINS)
    found.judged(rows(5), RATES)
    assert not found.found
    return found


@pytest.mark.parametrize("seed", range(6, 26))
def test_more_of_the_same_is_not_new(novelty: Novelty, seed: int) -> None:
    given = rows(seed)
    novelty.note(given, RATES, extremes(given), TRAINS)
    assert not novelty.found
    assert not novelty.lasts


def test_a_channel_that_is_not_known_any_more_is_new(novelty: Novelty) -> None:
    given = rows(30)
    given["batch_var"][4, 7] = torch.nan
    novelty.note(given, RATES, None, TRAINS)
    assert novelty.lasts


CHANGES = {
    "a mean": lambda given: given["batch_mean"][3, 2].fill_(2.5),
    "a large variance": lambda given: given["batch_var"][9, 8].fill_(4.0),
    "a small variance": lambda given: given["batch_var"][0, 8].fill_(0.2),
    "a gamma": lambda given: given["gamma"][:, 5].fill_(0.4),
    "a beta": lambda given: given["beta"][:, 5].fill_(0.3),
    "a mode": lambda given: given["training"][7, 0].fill_(False),
    "a momentum": lambda given: given["momentum"][:, 1].fill_(0.2),
    "two updates": lambda given: given["updates"][2, 1].fill_(2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_changes_in_one_place_is_new(novelty: Novelty, change) -> None:  # type: ignore[no-untyped-def]
    given = {name: values.clone() for name, values in rows(31).items()}
    change(given)
    novelty.note(given, RATES, extremes(given), TRAINS)
    assert novelty.lasts
    novelty.judged(given, RATES)
    assert not novelty.found


def test_a_learning_rate_that_rises_is_new_for_long_and_one_that_falls_for_one_check(novelty: Novelty) -> None:
    given = rows(32)
    novelty.note(given, [0.1] * 9 + [0.04], extremes(given), TRAINS)
    assert novelty.found
    assert not novelty.lasts
    novelty.note(given, [0.1] * 9 + [0.3], extremes(given), TRAINS)
    assert novelty.lasts


def test_other_parameters_that_train_are_new(novelty: Novelty) -> None:
    given = rows(33)
    novelty.note(given, RATES, extremes(given), [True, True, False, True])
    assert novelty.lasts


def test_it_does_not_look_at_memory_that_is_written_over() -> None:
    novelty = Novelty(make_window(channels=CHANNELS).layers)
    novelty.judged(rows(0), RATES)
    given = {name: values.clone() for name, values in rows(34).items()}
    novelty.note(given, RATES, extremes(given), TRAINS)
    for values in given.values():
        values.zero_()
    again = rows(35)
    novelty.judged(again, RATES)
    novelty.note(again, RATES, extremes(again), TRAINS)
    assert not novelty.found


def test_layers_without_running_statistics_are_always_new() -> None:
    novelty = Novelty(replace(make_window(channels=CHANNELS).layers, tracking=(True, False)))
    given = rows(36)
    novelty.note(given, RATES, extremes(given), TRAINS)
    novelty.judged(given, RATES)
    assert novelty.found
