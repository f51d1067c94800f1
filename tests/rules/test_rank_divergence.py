"""BN503 names the processes that are furthest from the rest, if they are fewer than the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bnmonitor.rules.bookkeeping.rank_divergence import RankDivergence
from bnmonitor.testing import make_window
from bnmonitor.window import RankStatistics, Window

UNKNOWN = float("nan")


def apart(world: int, distances: list[float] | None) -> Window:
    """Processes that differ by half a standard deviation, so far each from the mean of all."""
    some = torch.full((3,), 0.5)
    ranks = RankStatistics(
        step=63,
        world_size=world,
        size=torch.tensor([64.0]),
        batch_mean=some,
        batch_var=some,
        batch_spread=some,
        mean_spread=some,
        var_spread=some,
        distance=None if distances is None else torch.tensor(distances),
    )
    window = make_window()
    return replace(window, facts=replace(window.facts, ranks=ranks))


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        ([0.2, 0.2, 0.2, 0.8], "4 processes (furthest from the rest: rank 3): "),
        ([0.9, 0.2, 0.8, 0.2, 0.1], "5 processes (furthest from the rest: ranks 0, 2): "),
        ([UNKNOWN, 0.2, 0.1, 0.9], "4 processes (furthest from the rest: rank 3): "),
        ([0.5, 0.5, 0.5, 0.5], "4 processes: "),
        ([0.0, 0.0, 0.0], "3 processes: "),
        ([0.4, 0.4], "2 processes (rank 0 and rank 1): "),
        ([UNKNOWN, UNKNOWN], "2 processes (rank 0 and rank 1): "),
    ],
)
def test_who_is_furthest_is_named(distances: list[float], said: str) -> None:
    [finding] = RankDivergence().check(apart(len(distances), distances))
    assert f"between {said}" in finding.message


def test_nothing_is_said_before_it_can_be_said_of_whom() -> None:
    assert RankDivergence().check(apart(3, [UNKNOWN] * 3)) == []
    assert len(RankDivergence().check(apart(3, None))) == 1
