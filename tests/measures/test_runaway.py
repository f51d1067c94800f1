"""How far gamma runs, exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bnmonitor.measures import changed_at_once, fastest_group, gamma_run, is_young, loss_level, run_began
from bnmonitor.testing import make_window
from bnmonitor.window import Window


def window(gamma: Tensor, *channels: int, young: bool = False, **facts: object) -> Window:
    """A window with these gammas, ``[T, C]``; not young, there were as many steps before it."""
    made = make_window(channels=channels, steps=len(gamma), gamma=gamma, facts=facts)
    updates = torch.full((len(channels),), len(gamma) * (1 if young else 2))
    return replace(made, baseline=replace(made.baseline, updates=updates))


def reference(window: Window, steps: int) -> list[float]:
    """The same slowly, in float64, of a window whose gammas are all finite."""
    gamma = window.gamma.double()
    begin = len(gamma) - 1 - steps
    before = window.baseline.gamma.double() if begin < 0 and is_young(window) else gamma[max(0, begin)]
    spans = [window.layers.span(i) for i in range(len(window.layers))]
    scales = [float(before[span].square().mean().sqrt()) for span in spans]
    usual = sorted(scales)[(len(scales) - 1) // 2]
    return [
        float((gamma[-1][span] - before[span]).abs().max()) / (max(scale, usual) or 1.0)
        for span, scale in zip(spans, scales, strict=True)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_gamma_run_is_that_of_the_reference(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    steps = int(torch.randint(3, 64, (), generator=generator))
    gamma = 1 + torch.randn(steps, 9, generator=generator).cumsum(0)
    if seed % 2:
        gamma[:, :2] *= 0
    made = window(gamma, 2, 3, 4, young=seed % 3 == 0)
    assert gamma_run(made).tolist() == pytest.approx(reference(made, 30), rel=1e-5)


def test_the_newest_row_that_is_finite_counts() -> None:
    gamma = torch.ones(40, 4)
    gamma[:30, 0] = torch.linspace(1, 4, 30)
    gamma[30:] = torch.nan
    assert gamma_run(window(gamma, 2, 2)).tolist() == pytest.approx([3.0 / math.sqrt(1.0), 0.0])


def test_gamma_that_was_never_known_is_not_judged() -> None:
    gamma = torch.ones(40, 4)
    gamma[:, 2:] = torch.nan
    run = gamma_run(window(gamma, 2, 2))
    assert run[0] == 0
    assert run[1].isnan()


def test_gamma_that_is_not_trained_is_not_judged() -> None:
    made = make_window(channels=(2, 2), affine_trains=[True, False])
    assert gamma_run(made).isnan().tolist() == [False, True]


def test_a_window_in_which_nothing_is_finite_says_nothing() -> None:
    gamma = torch.full((40, 4), torch.inf)
    assert gamma_run(window(gamma, 2, 2)).isnan().all()


def test_a_load_changes_gamma_at_once_and_a_run_does_not() -> None:
    load, run = torch.ones(40, 4), torch.ones(40, 4)
    load[20:] = 5.0
    run[20:] = torch.linspace(1, 5, 20)[:, None]
    everywhere = torch.ones(2, dtype=torch.bool)
    assert changed_at_once(window(load, 2, 2), everywhere)
    assert not changed_at_once(window(run, 2, 2), everywhere)


def test_a_run_begins_where_gamma_leaves_its_place() -> None:
    gamma = torch.ones(64, 4)
    gamma[50:] = 1 + torch.arange(1.0, 15.0)[:, None]
    made = window(gamma, 2, 2)
    assert run_began(made, 0) in (made.steps[49], made.steps[50])


def test_a_run_in_the_first_steps_began_with_the_first() -> None:
    gamma = torch.ones(20, 4)
    gamma[5:] = 1 + torch.arange(1.0, 16.0)[:, None]
    made = window(gamma, 2, 2, young=True)
    assert run_began(made, 0) == made.steps[0]


def test_the_group_whose_gammas_run_is_the_one_with_the_highest_rate() -> None:
    group = torch.tensor([0, 0, 1, 1])
    gamma = torch.ones(40, 4)
    known = {"group": group, "group_rates": (0.1, 3.0)}
    moved = torch.tensor([0.2, 0.3, 5.0, 9.0])
    fast = fastest_group(window(gamma, 1, 1, 1, 1, **known), moved)
    assert fast is not None
    assert fast.tolist() == [False, False, True, True]
    assert fastest_group(window(gamma, 1, 1, 1, 1, **known), torch.tensor([4.0, 4.0, 5.0, 9.0])) is None
    equal = {"group": group, "group_rates": (3.0, 3.0)}
    assert fastest_group(window(gamma, 1, 1, 1, 1, **equal), moved) is None
    assert fastest_group(window(gamma, 1, 1, 1, 1), moved) is None


@pytest.mark.parametrize(
    ("losses", "level"),
    [((), math.nan), ((None,) * 6, math.nan), ((math.nan,) * 6, math.inf), ((9.0, 1.0, 2.0, 3.0, 4.0, 5.0), 3.0),
     ((1.0, 1.0, math.nan, math.nan, math.nan), math.inf), ((1.0, 2.0, 3.0, None, None, None, None), 2.0)],
)  # fmt: skip
def test_the_level_of_the_loss_is_the_median_of_five(losses: tuple[float | None, ...], level: float) -> None:
    found = loss_level(window(torch.ones(4, 2), 2, losses=losses))
    assert found == level or (math.isnan(found) and math.isnan(level))
