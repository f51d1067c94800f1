"""The noise of batches over all layers, against loops over every channel and step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from bnmonitor.measures import samples_by_noise, step_noise
from bnmonitor.measures.robust import Array
from bnmonitor.testing import make_window
from bnmonitor.window import Window

FEW = (4, 9, 7, 12)
CHANNELS = (4, 200, 7, 33, 64, 12, 150, 9, 21, 5, 16, 40)


def noisy(seed: int, *, small_at: Sequence[int] = (), size: int = 32, channels: Sequence[int] = CHANNELS) -> Window:
    """A window of batches of a size, some of which may have been an eighteenth of it."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.full((64, 1), size**-0.5)
    spread[list(small_at)] *= 18**0.5
    mean, log = (torch.randn(64, sum(channels), generator=generator) * spread for _ in range(2))
    level = torch.rand(sum(channels), generator=generator) * 10
    return make_window(channels=channels, batch_mean=mean * level.sqrt(), batch_var=level * log.mul(1.4).exp())


def reference(rows: Array) -> tuple[Array, Array, Array]:
    """Distance of each step over the usual one, in all, by direction and by channel, one after the other."""
    steps, width = len(rows) - 2, rows.shape[1]
    channels = np.zeros((steps, width))
    for c in range(width):
        away = [rows[t, c] - (rows[t - 1, c] + rows[t + 1, c]) / 2 for t in range(1, len(rows) - 1)]
        usual = 1.4826 * sorted(abs(x) for x in away)[(steps - 1) // 2]
        channels[:, c] = [min(max(x / usual, -30), 30) for x in away]
    alike = np.stack([row / math.sqrt(sum(x * x for x in row) / width) for row in channels])
    strength, axes = np.linalg.eigh(alike.T @ alike)
    directions = channels @ axes[:, strength.argsort()[-8:]]
    directions /= [1.4826 * sorted(abs(column))[(steps - 1) // 2] for column in directions.T]
    together = np.array([math.sqrt(sum(x * x for x in row) / 8) for row in directions])
    return together / np.median(together), directions, channels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("small_at", [(), (20,)])
def test_the_noise_of_each_step_is_that_of_all_layers(seed: int, small_at: tuple[int, ...]) -> None:
    window = noisy(seed, small_at=small_at, channels=FEW)
    noise = step_noise(window, torch.ones(len(FEW), dtype=torch.bool))
    assert noise is not None
    known = [reference(rows.double().numpy()) for rows in (window.batch_mean, window.batch_var.log())]
    for i, (together, directions, channels) in enumerate(known):
        np.testing.assert_allclose(noise.together[i], together, rtol=1e-3)
        np.testing.assert_allclose(np.abs(noise.directions[i]), np.abs(directions), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(noise.channels[i], channels, rtol=1e-3, atol=1e-4)
    thirds = [part for _, _, x in known for part in np.array_split(np.square(x).T, 3)]
    for at in range(62):
        least = min(part[:, at].mean() / sorted(part.mean(0))[30] for part in thirds)
        assert noise.calmest(at) == pytest.approx(math.sqrt(least), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_a_small_batch_is_as_many_times_noisier_as_it_is_smaller(seed: int) -> None:
    noise = step_noise(noisy(seed, small_at=(20, 45)), torch.ones(len(CHANNELS), dtype=torch.bool))
    assert noise is not None
    assert sorted(noise.factor.argsort()[-2:] + 1) == [20, 45]
    assert noise.alone[[19, 44]].all()
    assert 6 < noise.times_smaller[[19, 44]].min() < noise.times_smaller[[19, 44]].max() < 50
    assert noise.errors[[19, 44]].min() > 4
    assert np.delete(noise.errors, [18, 19, 20, 43, 44, 45]).max() < 3.5
    assert abs(noise.likeness(19, 44)) < 0.9
    assert noise.likeness(19, 19) == pytest.approx(2)
    assert max(abs(noise.rise(19)), abs(noise.rise(44))) < 0.25
    assert min(noise.calmest(19), noise.calmest(44)) > 1.5


@pytest.mark.parametrize("seed", range(5))
def test_data_of_another_kind_is_alike_or_raises_all_variances(seed: int) -> None:
    window = noisy(seed)
    scaled = window.batch_var.clone()
    scaled[[20, 45]] *= 3
    moved = window.batch_mean.clone()
    moved[[20, 45]] += torch.randn(sum(CHANNELS), generator=torch.Generator().manual_seed(seed)) * moved.std(0) * 4
    every = torch.ones(len(CHANNELS), dtype=torch.bool)
    larger, other = (
        step_noise(replace(window, **rows), every) for rows in ({"batch_var": scaled}, {"batch_mean": moved})
    )
    assert larger is not None
    assert other is not None
    assert min(larger.rise(19), larger.rise(44)) > 0.5
    # Of the variances, of other samples each time, it may be as far below zero.
    assert other.likeness(19, 44) > 0.9 - 0.6
    assert other.together[0][[19, 44]].min() > 2
    assert other.together[1][[19, 44]].max() < 1.8


def test_a_layer_without_a_change_rules_nothing_out() -> None:
    window = noisy(0, small_at=(20,))
    window.batch_mean[:, window.layers.span(0)] = 1.0
    window.batch_var[:, window.layers.span(0)] = 1.0
    window.batch_mean[3, window.layers.span(1)] = torch.nan
    noise = step_noise(window, torch.ones(len(CHANNELS), dtype=torch.bool))
    assert noise is not None
    assert int(noise.factor.argmax()) == 19
    assert noise.calmest(19) > 1.5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("small_at", [(), (20,), (20, 45)])
def test_calm_steps_are_told_by_single_channels(seed: int, small_at: tuple[int, ...]) -> None:
    window, every = noisy(seed, small_at=small_at), torch.ones(len(CHANNELS), dtype=torch.bool)
    found, noise = step_noise(window, every, 1.8), step_noise(window, every)
    assert noise is not None
    assert (found is not None) == bool(small_at) == (noise.factor.max() > 2.38)
    if found is not None:
        assert found.factor.tolist() == noise.factor.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_channels_that_peak_now_and_then_hide_no_small_batch(seed: int) -> None:
    window = noisy(seed, small_at=(20, 45))
    drawn = torch.rand(window.batch_mean.shape, generator=torch.Generator().manual_seed(seed))
    peaks = torch.where((drawn < 0.1) & (torch.arange(drawn.shape[1]) % 3 == 0), 100.0, 1.0)
    peaked = replace(window, batch_mean=window.batch_mean * peaks)
    every = torch.ones(len(CHANNELS), dtype=torch.bool)
    noise = step_noise(peaked, every, 1.8)
    assert noise is not None
    assert noise.factor.max() > 2.38


def test_where_nothing_changes_no_step_is_noisy() -> None:
    window = make_window(channels=(4, 4), batch_mean=torch.ones(64, 8), batch_var=torch.ones(64, 8))
    assert step_noise(window, torch.ones(2, dtype=torch.bool)) is None


@pytest.mark.parametrize("size", [4, 15, 17, 200])
@pytest.mark.parametrize("left_out", [0, 1, 11])
def test_where_enough_samples_are_certain_the_number_is_not_told(size: int, left_out: int) -> None:
    for seed in range(3):
        window = noisy(seed, size=size)
        layers = torch.arange(len(CHANNELS)) >= left_out
        number = samples_by_noise(window, layers)
        assert 0.6 * size < number < 1.6 * size
        for enough in (5.0, 16.0, 100.0):
            shortened = samples_by_noise(window, layers, enough)
            assert shortened == number or (shortened == math.inf and number >= enough)
    assert samples_by_noise(noisy(0, size=200), layers, 16.0) == math.inf
    assert math.isnan(samples_by_noise(window, torch.zeros_like(layers), 16.0))
