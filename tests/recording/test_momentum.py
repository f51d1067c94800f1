"""A momentum that is changed between a forward and the end of its step: the batch is right, or said to be unknown."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bnmonitor import Monitor
from bnmonitor.window import Recovery

REASON = Recovery.MOMENTUM_CHANGED.reason


def recorded(
    change: Callable[[nn.BatchNorm1d, int], object], *, before: bool, steps: int = 30
) -> tuple[Tensor, Tensor, list[str]]:
    """Recorded batch means, the true ones in float64, and the codes of alerts."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    monitor = Monitor(norm, sinks=[], on_alert="log", sample_every_n_steps=0)
    true = []
    with monitor:
        for step in range(steps):
            if before:
                change(norm, step)
            x = 3 + torch.randn(64, 8)
            true.append(x.double().mean(0))
            norm(x)
            if not before:
                change(norm, step)
            monitor.step()
        codes = [alert.code for alert in monitor.alerts]
    return monitor.history("(root)", "batch_mean").double(), torch.stack(true), codes


def withheld_of(found: Tensor, true: Tensor) -> int:
    """How many steps are withheld; the others must be right."""
    missing = found.isnan().any(1)
    torch.testing.assert_close(found[~missing], true[~missing], atol=1e-3, rtol=0)
    return int(missing.sum())


def decayed(norm: nn.BatchNorm1d, step: int) -> None:
    norm.momentum = 0.5 * 0.7 ** (step // 5)


@pytest.mark.parametrize(("before", "withheld"), [(True, 5), (False, 6)])
def test_a_schedule_before_or_after_the_forward_gives_the_batch_or_nothing(before: bool, withheld: int) -> None:
    found, true, _ = recorded(decayed, before=before)
    assert withheld_of(found, true) == withheld


def test_a_momentum_that_alone_is_possible_was_in_force() -> None:
    def smaller(norm: nn.BatchNorm1d, step: int) -> None:
        norm.momentum = 0.1 if step < 10 else 0.0

    found, true, _ = recorded(smaller, before=False, steps=11)
    assert withheld_of(found, true) == 0


def test_a_change_that_makes_no_difference_withholds_nothing() -> None:
    def slowly(norm: nn.BatchNorm1d, step: int) -> None:
        norm.momentum = 0.1 * (1 - 1e-6 * step)

    found, true, _ = recorded(slowly, before=False)
    assert withheld_of(found, true) == 0


def test_the_second_pass_of_sam_is_no_frozen_momentum() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    monitor = Monitor(norm, sinks=[], on_alert="log", sample_every_n_steps=0)
    with monitor:
        for _ in range(30):
            x = 3 + torch.randn(64, 8)
            norm.momentum = 0.1
            norm(x)
            norm.momentum = 0.0
            norm(x)
            monitor.step()
        (row,) = monitor.summary().rows
        codes = [alert.code for alert in monitor.alerts]
    assert row.recovery == REASON
    assert "BN302" not in codes
    assert bool(monitor.history("(root)", "batch_mean").isnan().all())


def test_a_momentum_that_is_always_0_still_is_an_error() -> None:
    def frozen(norm: nn.BatchNorm1d, step: int) -> None:
        norm.momentum = 0.0

    _, _, codes = recorded(frozen, before=True)
    assert "BN302" in codes
