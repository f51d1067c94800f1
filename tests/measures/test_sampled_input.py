"""What sampled batches show of an input, and over how many samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bnmonitor import Monitor
from bnmonitor.measures import reduce, sampled_batch, sampled_input, samples_reduced, spread
from bnmonitor.testing import make_sample, make_window
from bnmonitor.window import Window


def images(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Images of which half of the variance lies between them, and whose neighboring pixels are alike."""
    level = torch.randn(count, 3, 1, 1, generator=generator)
    waves = torch.sin(torch.linspace(0, 9, size))[:, None] * 2**0.5 * torch.randn(count, 3, 1, 1, generator=generator)
    return 0.5 + level + waves.expand(count, 3, size, size)


def watched(size: int, count: int, steps: int, every: int = 4) -> tuple[Window, list[Tensor]]:
    generator, seen = torch.Generator().manual_seed(0), []
    norm = nn.BatchNorm2d(3).eval()
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), norm)
    nn.init.dirac_(model[0].weight)
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=every) as monitor:
        for step in range(steps):
            x = images(count, size, generator)
            if step % every == 0:
                seen.append(x)
            model(x).square().mean().backward()
            monitor.step()
        window = monitor.window()
    assert window is not None
    return window, seen


@pytest.mark.parametrize(("size", "count", "looked"), [(64, 32, 32), (4, 32, 32), (64, 8, 8), (64, 100, 20)])
def test_the_count_is_that_of_images_and_not_of_pixels(size: int, count: int, looked: int) -> None:
    window, seen = watched(size, count, steps=9)
    found = sampled_input(window)
    assert window.sample is not None
    assert found.count.tolist() == [3 * looked]
    assert sampled_batch(window.sample, window).count.tolist() == [looked]
    means = torch.stack([x.double().mean((0, 2, 3)) for x in seen])
    variances = torch.stack([x.double().var((0, 2, 3)) for x in seen])
    if looked == count:
        torch.testing.assert_close(found.mean.double(), means.median(0).values, rtol=0, atol=1e-5)
    assert (found.var / variances.median(0).values).log2().abs().max() < 1


def test_a_step_counts_what_the_moments_are_taken_over() -> None:
    window, _ = watched(64, 32, steps=1)
    assert window.sample is not None
    assert window.sample.looked.tolist() == [2], "an image has more than 2,048 pixels"
    small, _ = watched(4, 32, steps=1)
    assert small.sample is not None
    assert small.sample.looked.tolist() == [32]


def test_the_median_over_batches_is_not_moved_by_an_odd_one() -> None:
    window = make_window()
    usual, odd = (make_sample(window.layers, size=16, input={"mean": mean}) for mean in (1.0, 50.0))
    found = sampled_input(replace(window, sample=odd, earlier=(usual, usual)))
    assert found.mean.tolist() == [1.0] * window.layers.total
    assert found.count.tolist() == [48]


def test_nothing_is_known_without_a_sample() -> None:
    window = replace(make_window(), sample=None)
    found = sampled_input(window)
    assert found.count.tolist() == [0]
    assert found.mean.isnan().all()


@pytest.mark.parametrize("shape", [(256, 3), (64, 3, 100), (64, 3, 64, 64), (7, 3, 200, 200), (300, 3, 9, 9, 9)])
def test_spread_takes_some_positions_of_many_samples(shape: tuple[int, ...]) -> None:
    x = 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x += torch.arange(float(shape[0])).view(-1, *[1] * (len(shape) - 1))
    part = spread(x)
    samples = part.flatten(1)[:, 0].round().unique()
    assert len(samples) == len(part) >= min(shape[0], 60)
    assert samples_reduced(part) == len(part)
    count = reduce(part)[0]
    assert count.max() <= 2 * 2048
    assert (reduce(part)[1] - x.double().mean([d for d in range(x.dim()) if d != 1])).abs().max() < 0.05 * shape[0]
