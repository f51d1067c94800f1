from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bnmonitor.measures import affine_update, covariate_shift, lag, silent
from bnmonitor.testing import make_window


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


def test_an_update_is_told_as_a_part_of_gamma_itself() -> None:
    gamma, beta = torch.ones(3, 5), torch.zeros(3, 5)
    gamma[2, :2], beta[2, 4] = torch.tensor([1.3, 0.6]), 0.1
    updates = affine_update(make_window(channels=[2, 3], steps=3, gamma=gamma, beta=beta))
    assert updates[0].tolist() == pytest.approx([0.5 / 2**0.5, 0.0])
    assert updates[1].tolist() == pytest.approx([0.0, 0.1 / 3**0.5])


def test_an_update_is_unknown_after_one_step() -> None:
    assert all(update.isnan().all() for update in affine_update(make_window(steps=1)))
