"""Moves of batch means against a slow and obvious computation."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

import pytest
import torch

from bnmonitor.measures import batch_distance, jump, may_have_moved, moved_mean, moves
from bnmonitor.testing import make_window
from bnmonitor.window import Window


def followed(size: float, at: int, *, steps: int = 64, momentum: float = 0.1, seed: int = 0) -> Window:
    """Two layers of five channels; the means of the second move for good, and the running means follow."""
    means = 0.1 * torch.randn(steps, 10, generator=torch.Generator().manual_seed(seed))
    means[at:, 5:] += size * torch.tensor([1.0, -1.0, 0.8, 1.2, -0.9])
    running = torch.zeros(steps + 1, 10)
    for step in range(steps):
        running[step + 1] = (1 - momentum) * running[step] + momentum * means[step]
    shift = means - running[:-1]
    return make_window(
        channels=(5, 5), steps=steps, momentum=momentum, batch_mean=means, running_mean=running[1:], shift=shift
    )


def reference(window: Window, layer: int) -> float:
    """All in Python numbers: the third nearest of ten steps, or 0 where a quarter of them is on either side."""
    far: list[float] = []
    for channel in range(*window.layers.span(layer).indices(window.layers.total)):
        scale = math.sqrt(float(window.running_var[-11, channel]) + 1e-5)
        away = [(float(x) - float(window.running_mean[-11, channel])) / scale for x in window.batch_mean[-10:, channel]]
        up, down = sorted(away)[2], sorted(-x for x in away)[2]
        far.append(max(up, down, 0.0))
    return median(far)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "at"), [(0.0, 54), (2.0, 54), (2.0, 50), (2.0, 59), (-5.0, 56), (3.0, 20)])
def test_a_move_is_as_computed_slowly(size: float, at: int, seed: int) -> None:
    window = followed(size, at, seed=seed)
    assert moved_mean(window).tolist() == pytest.approx([reference(window, 0), reference(window, 1)], abs=1e-5)


@pytest.mark.parametrize("at", range(45, 57))
def test_a_move_is_seen_by_one_of_two_checks_whenever_it_happens(at: int) -> None:
    """The next check sees what this one sees in too few steps."""
    window = followed(3.0, at)
    now, before = float(moved_mean(window)[1]), float(moved_mean(window.until(54))[1])
    assert max(now, before) > 1.0


def test_a_move_in_the_last_steps_of_many_new_ones_is_seen() -> None:
    window = replace(followed(3.0, 54), fresh=50)
    assert float(moved_mean(window)[1]) > 2.0
    assert float(batch_distance(window)[1]) > 1.0


def test_noise_in_the_last_steps_of_many_new_ones_is_seen() -> None:
    calm = followed(0.0, 0)
    means = calm.batch_mean.clone()
    means[53:] *= 5
    wild = replace(calm, batch_mean=means, fresh=50)
    assert jump(wild).tolist() == pytest.approx([5 * float(x) for x in jump(calm)], rel=1e-4)


@pytest.mark.parametrize("at", range(45, 57))
@pytest.mark.parametrize("size", [1.3, 3.0])
def test_what_has_moved_may_have_moved(at: int, size: float) -> None:
    window = followed(size, at)
    assert float(moved_mean(window)[1]) <= 1.0 or may_have_moved(window, 1.0)


def test_it_may_not_have_moved_where_batches_are_near() -> None:
    window = followed(0.0, 0)
    assert float(batch_distance(window).max()) < 0.2
    assert not may_have_moved(window, 1.0)


def test_a_window_that_is_too_short_shows_no_move() -> None:
    assert moved_mean(followed(5.0, 5, steps=10)).tolist() == [0.0, 0.0]


def test_unknown_means_are_no_move() -> None:
    window = followed(5.0, 54)
    unknown = window.batch_mean.clone()
    unknown[-4:, 5:] = torch.nan
    assert not bool(moved_mean(replace(window, batch_mean=unknown))[1] > 1.0)


def test_the_course_of_a_move_begins_where_it_happened() -> None:
    course = moves(followed(3.0, 56), 1)
    assert bool((course[:56] < 1.0).all())
    assert bool((course[56:] > 2.0).all())
