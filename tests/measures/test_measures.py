from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from bnmonitor import Monitor
from bnmonitor.measures import covariate_shift, lag, may_exceed, median, silent
from bnmonitor.testing import make_window
from tests.watching import Windows


def test_covariate_shift_is_the_symmetric_divergence_of_the_first_and_last_gaussian() -> None:
    rows = torch.rand(64, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    means = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    window = make_window(running_mean=means, running_var=rows)
    old, new = (Normal(means[i].double(), (rows[i].double() + 1e-5).sqrt()) for i in (0, -1))
    expected = kl_divergence(old, new) + kl_divergence(new, old)
    assert covariate_shift(window).item() == pytest.approx(expected.median().item(), rel=1e-4)


def test_covariate_shift_of_what_stands_still_is_nothing() -> None:
    assert covariate_shift(make_window(running_mean=7.0)).tolist() == [0.0]


def test_lag_leaves_out_channels_whose_variance_eps_decides() -> None:
    window = make_window(batch_var=[1.0, 1e-6, 1e-6], running_var=[1.0, 1e-4, 1e-4])
    assert lag(window)[1].item() == pytest.approx(0.0, abs=1e-4)


def test_nothing_is_known_of_silence_without_a_sample() -> None:
    assert silent(make_window()).isnan().all()


def test_a_window_with_averages_carried_along_is_judged_as_one_without() -> None:
    layers = nn.Sequential(*[nn.BatchNorm1d(6000) for _ in range(2)])
    rule = Windows()
    with Monitor(layers, sinks=[], on_alert="log", sample_every_n_steps=0, window=24, rules=[rule]) as monitor:
        for step in range(40):
            layers(torch.randn(16, 6000) * (1 + step) + step)
            monitor.step()
    window = rule.seen[-1]
    assert window.averages is not None
    carried, own = lag(window), lag(replace(window))
    for a, b in zip(carried, own, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_what_may_exceed_a_limit_is_never_ruled_out_where_a_middle_channel_does() -> None:
    rng = torch.Generator().manual_seed(0)
    ruled_out = 0
    for _ in range(300):
        widths = torch.randint(1, 6, (3,), generator=rng).tolist()
        window = make_window(channels=widths, steps=1)
        values = torch.randint(0, 4, (sum(widths),), generator=rng).float()
        values[torch.rand(len(values), generator=rng) < 0.1] = torch.nan
        exceeds = bool((median(values, window) > 2).any())
        assert may_exceed(values, 2.0, window) or not exceeds
        ruled_out += not may_exceed(values, 2.0, window)
    assert ruled_out > 30
