"""The noise of batches over all layers, against medians over every channel that stands for its layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bnmonitor.measures import samples_by_noise, step_noise
from bnmonitor.testing import make_window
from bnmonitor.window import Window

CHANNELS = (4, 200, 7, 33, 64, 12, 150, 9, 21, 5, 16, 40)


def noisy(seed: int, *, small_at: int | None = None, size: int = 32) -> Window:
    """A window of batches of a size, one of which may have been an eighteenth of it."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.full((64, 1), size**-0.5)
    if small_at is not None:
        spread[small_at] *= 18**0.5
    mean, log = (torch.randn(64, sum(CHANNELS), generator=generator) * spread for _ in range(2))
    level = torch.rand(sum(CHANNELS), generator=generator) * 10
    return make_window(channels=CHANNELS, batch_mean=mean * level.sqrt(), batch_var=level * log.mul(1.4).exp())


def reference(window: Window) -> tuple[Tensor, Tensor]:
    """Factor and least factor of each step but the first and the last, one channel after the other."""
    logs = []
    for rows in (window.batch_mean.double(), window.batch_var.double().log()):
        by_layer = []
        for layer in range(len(window.layers)):
            far = []
            for channel in range(*window.layers.some_of(layer).indices(window.layers.total)):
                x = rows[:, channel]
                away = (x[1:-1] - (x[:-2] + x[2:]) / 2).square()
                far.append((away / away.median()).clamp(max=1e3))
            mean = torch.stack(far).mean(0)
            by_layer.append((mean / mean.median()).log() / 2)
        logs.append(torch.stack(by_layer))
    together = torch.minimum(logs[0].mean(0), logs[1].mean(0))
    return together.exp(), torch.minimum(logs[0].amin(0), logs[1].amin(0)).exp()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("small_at", [None, 20])
def test_the_noise_of_each_step_is_that_of_all_layers(seed: int, small_at: int | None) -> None:
    window = noisy(seed, small_at=small_at)
    every = torch.ones(len(CHANNELS), dtype=torch.bool)
    noise = step_noise(window, every)
    factor, least = reference(window)
    torch.testing.assert_close(noise.factor[1:-1], factor, rtol=1e-4, atol=0)
    torch.testing.assert_close(noise.least[1:-1], least, rtol=1e-4, atol=0)
    screened = step_noise(window, every, 1.5)
    if (least > 1.5).any():
        assert small_at is not None
        for found, known in zip(vars(screened).values(), vars(noise).values(), strict=True):
            assert torch.equal(found.nan_to_num(-1.0), known.nan_to_num(-1.0)), "those looked at first count as well"
    else:
        assert screened.factor.isnan().all(), "no step is noisy in all layers"


def test_a_layer_without_a_change_rules_nothing_out() -> None:
    window = noisy(0, small_at=20)
    window.batch_mean[:, window.layers.span(0)] = 1.0
    window.batch_var[:, window.layers.span(0)] = 1.0
    noise = step_noise(window, torch.ones(len(CHANNELS), dtype=torch.bool), 1.5)
    assert int(noise.factor.nan_to_num(0.0).argmax()) == 20
    assert float(noise.least[20]) > 1.5


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
