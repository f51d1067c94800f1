"""What a step, a check and a sampled step cost, as the number of their tensor operations.

Times differ from machine to machine and from run to run, these counts do not: a change that makes the monitor dearer
fails here. If it has to, or if it makes it cheaper, write the new number into ``COMMITTED``.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from bnmonitor import Monitor
from tests.operations import Operations


@dataclass(frozen=True)
class Counts:
    """Operations of one step each, in a training without a fault.

    Attributes:
        step: A step without a check.
        check: A check at which nothing is new, so that no rule runs.
        judged: A check at which the rules run.
        sample: A sampled step.
    """

    step: int
    check: int
    judged: int
    sample: int


MARGIN = 0.08
"""By how much a count may differ: rules look closer at what is near a threshold."""

COMMITTED = Counts(step=3, check=190, judged=1471, sample=1021)
"""Of nine layers."""

SAMPLED_LAYER = 81
"""Operations that a further layer adds to a sampled step."""


def measure(layers: int) -> Counts:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(8 if i else 3, 8, 3, padding=1, bias=False) for i in range(layers)]
    parts = [part for convolution in convolutions for part in (convolution, nn.BatchNorm2d(8), nn.ReLU())]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    found: dict[str, int] = {}

    def forward() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(32, 3, 6, 6)), torch.randint(0, 4, (32,))).backward()

    with Monitor(model, optimizer=optimizer, sinks=[], max_overhead=None) as monitor:
        for step in range(170):
            with Operations() as trained:
                forward()
            optimizer.step()
            with Operations() as counted:
                monitor.step()
            if step in (100, 101):  # with hooks, and without
                found["sample"] = trained.total + counted.total - found.get("sample", 0)
            if step == 165:
                found["step"] = counted.total
            if step == 159:  # the window is full, and the fifth check since the rules judged
                found["judged"] = counted.total
            if step == 169:
                found["check"] = counted.total
        assert not [str(alert) for alert in monitor.alerts if alert.severity > 10]
    return Counts(found["step"], found["check"], found["judged"], -found["sample"])


@pytest.fixture(scope="module")
def shallow() -> Counts:
    return measure(3)


@pytest.fixture(scope="module")
def deep() -> Counts:
    return measure(9)


def test_a_step_runs_as_many_operations_however_many_layers_there_are(shallow: Counts, deep: Counts) -> None:
    assert shallow.step == deep.step == COMMITTED.step


def test_a_check_runs_as_many_operations_as_committed_however_many_layers_there_are(
    shallow: Counts, deep: Counts
) -> None:
    for found, other, committed in (
        (deep.check, shallow.check, COMMITTED.check),
        (deep.judged, shallow.judged, COMMITTED.judged),
    ):
        assert found == pytest.approx(committed, rel=MARGIN)
        assert found <= (1 + MARGIN) * other


def test_a_sampled_step_runs_as_many_operations_as_committed(shallow: Counts, deep: Counts) -> None:
    assert deep.sample == pytest.approx(COMMITTED.sample, rel=MARGIN)
    assert (deep.sample - shallow.sample) / 6 == pytest.approx(SAMPLED_LAYER, rel=MARGIN)
