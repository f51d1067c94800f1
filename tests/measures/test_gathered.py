"""Gamma and beta that are split over the processes: known of some steps only, and of the others they are unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bnmonitor.diagnosis.course import weights_are_lost
from bnmonitor.measures import BY_LAYER, gamma_run, skipped_steps, with_affine
from bnmonitor.rules.modes.leaking_freeze import LeakingFreeze
from bnmonitor.rules.parameters.dead_channels import DeadChannels
from bnmonitor.rules.parameters.folding_hazard import FoldingHazard
from bnmonitor.rules.parameters.gamma_explosion import GammaExplosion
from bnmonitor.summary import summarize
from bnmonitor.testing import make_window
from bnmonitor.window import GatheredAffine, RankStatistics, Window

STEPS, CHANNELS = 64, 6


def split(told: dict[int, Tensor], *, beta: Tensor | float = 0.0, gradient: float = torch.nan, **more: Any) -> Window:
    """A layer of which the processes told each other gamma at these steps, the last of them in the last exchange."""
    width = len(next(iter(told.values()), ONES))
    gamma, betas = torch.full((STEPS, width), torch.nan), torch.full((STEPS, width), torch.nan)
    for step, values in told.items():
        if step >= 0:
            gamma[step], betas[step] = values, torch.as_tensor(beta)
    window = make_window(steps=STEPS, gamma=gamma, beta=betas, gamma_grad=torch.nan, beta_grad=torch.nan, **more)
    some = torch.zeros(width)
    ranks = RankStatistics(
        step=STEPS - 1,
        world_size=2,
        size=torch.tensor([64.0]),
        **dict.fromkeys(("batch_mean", "batch_var", "batch_spread", "mean_spread", "var_spread"), some),  # type: ignore[arg-type]
    )
    if told:
        ranks = replace(
            ranks,
            affine=GatheredAffine(
                step=max(told),
                known=torch.ones(width, dtype=torch.bool),
                gamma=told[max(told)].double(),
                beta=torch.as_tensor(beta).double().expand(width),
                gamma_start=torch.ones(width).double(),
                gamma_grad=torch.full((width,), gradient).double(),
            ),
        )
    return replace(
        window, layers=replace(window.layers, split=(0,)), facts=replace(window.facts, ranks=ranks, learning_rates=())
    )


ONES = torch.ones(CHANNELS)
GROWN = torch.tensor([1.0, 1.0, 30.0, 1.0, 1.0, 1.0])
SMALL = torch.tensor([1e-4] * 3 + [1.0] * 3)


def test_between_two_exchanges_the_newest_that_was_known_stands() -> None:
    window = split({9: ONES, 49: GROWN})
    rows = with_affine(window).gamma
    assert rows[:9].isnan().all()
    assert torch.equal(rows[9:49], ONES.expand(40, -1))
    assert torch.equal(rows[49:], GROWN.expand(15, -1))
    assert window.gamma[50:].isnan().all()  # whoever asks for changes sees that nothing is known


def test_what_has_left_the_window_is_kept_and_what_became_nan_is_told() -> None:
    assert torch.equal(with_affine(split({-20: GROWN})).gamma[-1], GROWN)
    lost = with_affine(split({9: ONES, 49: ONES * torch.nan})).gamma
    assert torch.equal(lost[48], ONES)
    assert lost[49:].isnan().all()


def test_a_window_with_nothing_split_is_the_same_object() -> None:
    window = make_window(steps=STEPS)
    assert with_affine(window) is window


def test_what_nobody_has_told_is_unknown_and_not_well() -> None:
    window = split({})
    for name in ("gamma", "gamma_min", "gamma_max", "beta", "dead", "gamma_grad", "gamma_update"):
        assert BY_LAYER[name](window).isnan().all(), name
    [row] = summarize(window, (), {}).rows
    assert row.gamma_min != row.gamma_min
    for rule in (DeadChannels(), GammaExplosion(), FoldingHazard()):
        assert rule.check(window) == []


def test_the_numbers_of_a_layer_are_those_that_were_told_last() -> None:
    window = split({9: ONES, 49: GROWN}, beta=torch.arange(6.0))
    found = {name: float(BY_LAYER[name](window)) for name in ("gamma", "gamma_min", "gamma_max", "dead")}
    assert found == {"gamma": 1.0, "gamma_min": 1.0, "gamma_max": 30.0, "dead": 0.0}
    assert 2 <= float(BY_LAYER["beta"](window)) <= 3


@pytest.mark.parametrize("told", [{9: ONES, 49: GROWN}, {49: GROWN}, {-20: GROWN}])
def test_gamma_explosion_is_found_in_what_was_told(told: dict[int, Tensor]) -> None:
    [finding] = GammaExplosion().check(split(told))
    assert (finding.channels, finding.value) == ((2,), 30.0)
    assert finding.first_step == max(0, *told)
    assert GammaExplosion().check(split(dict.fromkeys(told, ONES))) == []


def test_an_outlier_that_was_told_only_once_is_not_known_to_grow() -> None:
    calm = 1 + 0.01 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    wild = calm.where(torch.arange(64) != 5, 7.0)
    [finding] = GammaExplosion().check(split({9: calm, 49: wild}))
    assert (finding.channels, finding.first_step) == ((5,), 49)
    assert GammaExplosion().check(split({49: wild})) == []


@pytest.mark.parametrize(
    ("gradients", "found"), [([0.0, 0.0, 0.0, 0.1, 0.1, 0.1], 1), ([0.1] * 6, 0), ([torch.nan] * 6, 0)]
)
def test_a_vanished_gamma_is_dead_only_if_its_gradient_is_known_to_be_gone(gradients: list[float], found: int) -> None:
    window = split({9: ONES, 49: SMALL})
    ranks = window.facts.ranks
    assert ranks is not None
    assert ranks.affine is not None
    affine = replace(ranks.affine, gamma_grad=torch.tensor(gradients).double())
    window = replace(window, facts=replace(window.facts, ranks=replace(ranks, affine=affine)))
    findings = DeadChannels().check(window)
    assert [f.channels for f in findings] == [(0, 1, 2)] * found
    assert all(f.first_step == 49 for f in findings)


def test_channels_that_a_relu_never_lets_through_are_dead() -> None:
    beta = torch.tensor([-9.0, -9.0, -9.0, 0.0, 0.0, 0.0])
    [finding] = DeadChannels().check(split({9: ONES, 49: ONES}, beta=beta, relu=True))
    assert (finding.channels, finding.first_step) == ((0, 1, 2), 9)
    assert DeadChannels().check(split({9: ONES, 49: ONES}, relu=True)) == []


def test_scales_that_were_told_are_judged_for_folding() -> None:
    [finding] = FoldingHazard().check(split({49: GROWN}))
    assert finding.channels == (2,)


def test_steps_of_which_gamma_is_unknown_are_no_steps_at_which_it_stood_still() -> None:
    window = split({0: ONES, 1: ONES, 2: ONES, 30: ONES})
    assert skipped_steps(split({30: ONES, 31: ONES * 2})) == []
    assert not bool((gamma_run(window, 10) == 0).any())
    assert weights_are_lost(window) is None
    assert LeakingFreeze().check(split({63: ONES}, affine_trains=False)) == []


@pytest.mark.parametrize("told", [{0: ONES}, {63: ONES}, {0: ONES, 63: GROWN}, {10: ONES, 63: GROWN}])
def test_gamma_has_not_stood_still_where_one_of_two_steps_is_unknown(told: dict[int, Tensor]) -> None:
    assert gamma_run(split(told), 30).isnan().all()
