"""A cheap test that rules a rule out never rules out what the rule would find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch

from bnmonitor.measures import levels
from bnmonitor.rules.data.outlier_batch import OutlierBatch
from bnmonitor.rules.numerics.unnormalized_input import UnnormalizedInput
from bnmonitor.testing import make_structure, make_window, path_window
from bnmonitor.window import Window


def holed(rows: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """The same statistics, of which a few are not known in every fourth case."""
    if torch.rand(1, generator=rng) < 0.25:
        rows[torch.rand(rows.shape, generator=rng) < 0.05] = torch.nan
    return rows


def outlying(rng: torch.Generator) -> Window:
    """A root layer with a batch that is more or less far from the others, around the limits."""
    channels = int(torch.randint(1, 12, (1,), generator=rng))
    mean = 0.3 * torch.randn(64, channels, generator=rng)
    var = (0.2 * torch.randn(64, channels, generator=rng)).exp()
    at = int(torch.randint(0, 64, (1,), generator=rng))
    mean[at] += 20 * torch.rand(1, generator=rng)
    var[at] *= (6 * torch.rand(1, generator=rng)).exp()
    facts = {"structure": make_structure(root=True)}
    mean, var = holed(mean, rng), holed(var, rng)
    return make_window(batch_mean=mean, batch_var=var, sizes=[4, 16, 64][at % 3], facts=facts)


def test_the_screen_of_outlier_batch_leaves_all_that_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    rule, windows = OutlierBatch(), [outlying(rng) for _ in range(300)]
    screened = [rule.check(window) for window in windows]
    rows = [(window.batch_mean, window.batch_var + window.layers.eps[0]) for window in windows]
    out = sum(not rule._may_be_far(window, 0, *each) for window, each in zip(windows, rows, strict=True))
    monkeypatch.setattr(OutlierBatch, "_may_be_far", lambda *_: True)
    assert screened == [rule.check(window) for window in windows]
    assert sum(map(bool, screened)) > 30
    assert out > 30


def jumping(rng: torch.Generator, distance: float) -> Window:
    """A window with two levels in a layer, with noise around them, and with steps that are not known as above."""
    window = path_window(distance)
    noise = 0.1 * float(torch.rand(1, generator=rng)) * torch.randn(window.batch_mean.shape, generator=rng)
    return replace(window, batch_mean=holed(window.batch_mean + noise, rng))


def test_the_screen_of_path_dependent_statistics_leaves_all_that_it_finds() -> None:
    rng = torch.Generator().manual_seed(1)
    grouped, out = 0, 0
    for i in range(200):
        window = jumping(rng, 0.01 * i)
        layers = list(range(len(window.layers)))
        left = levels._maybe_grouped(window, layers)
        found = [layer for layer in layers if levels._grouped(window, layer) is not None]
        assert set(found) <= set(left)
        grouped, out = grouped + len(found), out + len(layers) - len(left)
    assert grouped > 50
    assert out > 50


@pytest.mark.parametrize("share", [1.0, 0.15])
@pytest.mark.parametrize("first", [0, 110])
def test_the_screen_of_path_dependent_statistics_finds_levels_in_a_part_of_many_channels(
    share: float, first: int
) -> None:
    rng = torch.Generator().manual_seed(5)
    width, grouped, out = 400, 0, 0
    for i in range(40):
        level, rank = torch.randint(2 + i % 3, (64, 1), generator=rng).float(), 2 + 7 * i % 60
        common = torch.randn(64, rank, generator=rng) @ torch.randn(rank, width, generator=rng)
        rows = 0.1 * common / rank**0.5
        rows[:, first : first + int(share * width)] += 0.02 * i / share * level
        window = make_window(channels=(width, width), batch_mean=torch.cat([rows, rows[:, ::2], rows[:, ::2]], 1))
        left = levels._maybe_grouped(window, [0, 1])
        found = [layer for layer in (0, 1) if levels._grouped(window, layer) is not None]
        assert set(found) <= set(left)
        grouped, out = grouped + len(found), out + 2 - len(left)
    assert grouped > 5
    assert out > 5


def test_the_layers_that_vary_most_are_found_among_many() -> None:
    rng = torch.Generator().manual_seed(6)
    for seed in range(5):
        channels = torch.randint(3, 200, (60,), generator=rng).tolist()
        far = torch.randperm(60, generator=rng)[:4]
        scale = torch.full((60,), 0.2)
        scale[far] = torch.tensor([0.5, 0.6, 0.7, 0.8])
        window = make_window(channels=channels)
        shift = torch.randn(64, sum(channels), generator=rng) * scale[window.layers.owner]
        shift[torch.rand(shift.shape, generator=rng) < 0.01 * seed] = torch.nan
        window = replace(window, shift=shift, ratio=torch.ones_like(shift))
        assert levels._varying(window, np.ones(60, dtype=bool))[:4] == far.flip(0).tolist()
        judged = np.ones(60, dtype=bool)
        judged[far[3]] = False
        assert levels._varying(window, judged)[:3] == far[:3].flip(0).tolist()
        calm = replace(window, shift=shift * 0.05)
        assert levels._varying(calm, judged) == []


def test_how_far_batches_vary_is_as_computed_slowly() -> None:
    rng = torch.Generator().manual_seed(7)
    window = make_window(channels=(3, 5))
    shift, ratio = 2 * torch.randn(64, 8, generator=rng), (0.5 * torch.randn(64, 8, generator=rng)).exp()
    shift[7, 2] = ratio[9, 6] = torch.nan
    shift[:, 4] = torch.nan
    spread = levels._spread(replace(window, shift=shift, ratio=ratio), np.arange(2), 64)

    def slow(rows: torch.Tensor, channels: Sequence[int], *, moves: bool) -> float:
        found = []
        for channel in channels:
            known = [min(max(x, -3.0), 3.0) for x in rows[:, channel].tolist() if x == x]
            if known:
                lag = fmean(known) if moves else 0.0
                found.append(fmean(x * x for x in known) - lag * lag)
        return math.sqrt(fmean(found))

    for layer, channels in enumerate(((0, 2), (3, 5, 7))):
        by_variance = slow((ratio - 1 / ratio) / 2, channels, moves=False)
        assert spread[layer] == pytest.approx(max(slow(shift, channels, moves=True), by_variance), rel=1e-4)


def test_the_screen_of_path_dependent_statistics_keeps_the_order_and_looks_at_what_it_cannot_judge() -> None:
    rng = torch.Generator().manual_seed(2)
    rows = torch.randn(64, 24, generator=rng)
    window = make_window(channels=(8, 8, 8), batch_mean=rows)
    assert levels._maybe_grouped(window, []) == []
    assert levels._maybe_grouped(window, [2, 0, 1]) == []  # noise
    rows[5, 3] = torch.nan
    assert levels._maybe_grouped(replace(window, batch_mean=rows), [2, 0, 1]) == [2, 0, 1]


def test_the_screen_of_unnormalized_input_leaves_every_channel_that_is_large() -> None:
    rng = torch.Generator().manual_seed(4)
    rule, large = UnnormalizedInput(), 0
    for _ in range(200):
        mean = 6 * torch.rand(1, generator=rng) * torch.randn(64, 6, generator=rng).sign()[:1].expand(64, 6)
        var = (9 * torch.rand(1, 6, generator=rng)).exp().expand(64, 6)
        window = make_window(channels=(2, 4), batch_mean=mean.clone(), batch_var=var.clone())
        first = torch.rand(2, generator=rng) < 0.7
        seen, power = rule._seen(window)
        far = (seen.abs() / (power + window.layers.eps_by_channel).sqrt() > 5) | (power > 1e3)
        expected = bool((far & first[window.layers.owner]).any())
        assert rule._suspicious(window, first) == expected
        large += expected
    assert 30 < large < 190
