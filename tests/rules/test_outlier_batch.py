"""BN606 on windows made for it: one batch that is far from the others, and what looks like one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bnmonitor import Severity
from bnmonitor.rules import Finding
from bnmonitor.rules.data.outlier_batch import OutlierBatch
from bnmonitor.testing import make_structure, make_window
from bnmonitor.window import Recovery, Window

NOISE = torch.exp(0.1 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
"""Variances of batches of about two hundred values."""


def course(factors: dict[int, float], *, since: int | None = None, **more: Any) -> Window:
    """A layer that sees the data, in some steps with so many times the variance; from a step on with 900 times."""
    var = NOISE.clone()
    for step, factor in factors.items():
        var[step] *= factor
    if since is not None:
        var[since:] *= 900
    facts = {"structure": make_structure(root=more.pop("root", True))}
    return make_window(channels=(8,), batch_var=var, facts=facts, **more)


def found(window: Window) -> list[Finding]:
    return OutlierBatch().check(window)


@pytest.mark.parametrize(("factor", "severity"), [(25.0, Severity.INFO), (100.0, Severity.WARNING)])
def test_it_is_as_bad_as_what_stays_in_the_running_statistics(factor: float, severity: Severity) -> None:
    [finding] = found(course({40: factor}))
    assert (finding.severity, finding.first_step) == (severity, 40)
    assert finding.value == pytest.approx(factor**0.5, rel=0.2)


def test_the_largest_of_several_is_named() -> None:
    [finding] = found(course({20: 100.0, 40: 400.0, 50: 100.0}))
    assert finding.first_step == 40


def test_a_batch_whose_mean_is_far_away_is_one() -> None:
    mean = torch.zeros(64, 8)
    mean[40] = 20.0
    facts = {"structure": make_structure(root=True)}
    [finding] = found(make_window(channels=(8,), batch_mean=mean, facts=facts))
    assert (finding.severity, finding.first_step, finding.threshold) == (Severity.WARNING, 40, 5.0)


@pytest.mark.parametrize(
    "window",
    [
        pytest.param(course({}), id="noise"),
        pytest.param(course({40: 6.0}), id="more-contrast"),
        pytest.param(course({40: 1e-4}), id="a-dark-batch"),
        pytest.param(course({}, since=40), id="what-stays"),
        pytest.param(course({}, since=63), id="the-newest-batch"),
        pytest.param(course(dict.fromkeys(range(20, 60, 2), 900.0)), id="two-kinds-in-turn"),
        pytest.param(course({40: 400.0}, root=False), id="behind-another-layer"),
        pytest.param(course({40: 400.0}, momentum=0.0005), id="hardly-remembered"),
        pytest.param(course({40: 900.0}, seen=41), id="in-the-warm-up"),
    ],
)
def test_what_looks_like_one_is_none(window: Window) -> None:
    assert found(window) == []


def test_several_updates_in_a_step_or_an_unknown_batch_are_not_judged() -> None:
    window = course({40: 900.0})
    updates, recovery = window.updates.clone(), window.recovery.clone()
    updates[40], recovery[41] = 4, int(Recovery.FOREIGN)
    assert found(replace(window, updates=updates)) == []
    assert found(replace(window, recovery=recovery)) == []
