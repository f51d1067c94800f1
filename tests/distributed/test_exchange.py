from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bnmonitor.distributed.group import DIFFERENT, _why_not
from bnmonitor.distributed.payload import OwnDistance, distance_from_all, pack, unpack
from bnmonitor.testing import make_window
from bnmonitor.window import Window

CHANNELS, MOMENTUM = (3, 2), 0.1
TOTAL = sum(CHANNELS)


def rank_window(batch: Tensor, old: tuple[Tensor, Tensor], values: int, step: int = 7) -> Window:
    """The window of a process whose layers each normalized a batch: ``[values, channels]`` in float64."""
    mean, var = batch.mean(0), batch.var(0)
    new = [(1 - MOMENTUM) * o + MOMENTUM * b for o, b in zip(old, (mean, var), strict=True)]
    rows = {
        "batch_mean": torch.stack([mean, mean]),
        "batch_var": torch.stack([var, var]),
        "running_mean": torch.stack([old[0], new[0]]),
        "running_var": torch.stack([old[1], new[1]]),
    }
    window = make_window(channels=CHANNELS, steps=2, values=values, momentum=MOMENTUM)
    return replace(window, steps=(step - 1, step), **{name: row.double() for name, row in rows.items()})


def simulate(world: int, values: int, *, apart: float, shared: bool, seed: int = 0) -> tuple[list[Window], Tensor]:
    """The windows of many processes, and all their data: ``[world, values, channels]``."""
    make = torch.Generator().manual_seed(seed)
    centers = 1000 + apart * torch.randn(world, 1, TOTAL, generator=make, dtype=torch.float64)
    data = centers + torch.randn(world, values, TOTAL, generator=make, dtype=torch.float64)
    olds = torch.randn(world, TOTAL, generator=make, dtype=torch.float64) + 999
    if shared:
        olds = olds[:1].expand(world, -1)
    return [rank_window(d, (o, torch.full_like(o, 2.0)), values) for d, o in zip(data, olds, strict=True)], data


@settings(max_examples=40, deadline=None)
@given(world=st.integers(2, 9), values=st.integers(2, 40), apart=st.sampled_from([0.0, 0.3, 5.0]), shared=st.booleans())
def test_the_sum_tells_the_statistics_of_all_data_together(world: int, values: int, apart: float, shared: bool) -> None:
    windows, data = simulate(world, values, apart=apart, shared=shared)
    total = torch.stack([pack(w, overwritten=shared) for w in windows]).sum(0)
    found = unpack(total, windows[0], world_size=world, overwritten=shared)
    assert found is not None
    everything = data.flatten(0, 1)
    torch.testing.assert_close(found.batch_mean, everything.mean(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.batch_var, everything.var(0), rtol=1e-4, atol=1e-6)
    assert found.size.tolist() == [values] * len(CHANNELS)


def spreads(of: Tensor) -> Tensor:
    """Root mean square difference of every two of ``[world, channels]``."""
    apart = of[:, None] - of[None]
    world = len(of)
    return (apart.square().sum((0, 1)) / (world * (world - 1))).sqrt()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("world", [2, 3, 1024])
def test_the_spreads_are_those_of_every_two_processes(world: int, shared: bool) -> None:
    windows, data = simulate(world, 5, apart=2.0, shared=shared)
    total = torch.stack([pack(w, overwritten=shared) for w in windows]).sum(0)
    found = unpack(total, windows[0], world_size=world, overwritten=shared)
    assert found is not None
    within = data.var(1).mean(0)
    torch.testing.assert_close(found.batch_spread, spreads(data.mean(1)) / (within + 1e-5).sqrt(), rtol=1e-4, atol=1e-6)
    means = torch.stack([w.running_mean[-1] for w in windows])
    logs = torch.stack([(w.running_var[-1] + 1e-5).log() for w in windows])
    torch.testing.assert_close(found.mean_spread, spreads(means) / (logs.mean(0) / 2).exp(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.var_spread, spreads(logs), rtol=1e-4, atol=1e-6)


def test_each_process_tells_how_far_it_was_from_the_mean_of_all() -> None:
    windows, _ = simulate(4, 5, apart=2.0, shared=False)
    total = torch.stack([pack(w, overwritten=False) for w in windows]).sum(0)
    found = [distance_from_all(total, w) for w in windows]
    means = torch.stack([w.running_mean[-1] for w in windows])
    logs = torch.stack([(w.running_var[-1] + 1e-5).log() for w in windows])
    level = (logs.mean(0) / 2).exp()
    for rank, distance in enumerate(found):
        by_mean = ((means[rank] - means.mean(0)).abs() / level).split(CHANNELS)
        by_log = ((logs[rank] - logs.mean(0)).abs() / 2).split(CHANNELS)
        furthest = max(float(each.median()) for each in (*by_mean, *by_log))
        assert distance == pytest.approx(furthest, rel=1e-4)
    told = [
        pack(w, overwritten=False, distance=OwnDistance(rank=r, world_size=4, value=found[r] if r != 2 else torch.nan))
        for r, w in enumerate(windows)
    ]
    ranks = unpack(torch.stack(told).sum(0), windows[0], world_size=4, overwritten=False)
    assert ranks is not None
    assert ranks.distance is not None
    expected = torch.tensor([*found[:2], torch.nan, found[3]], dtype=torch.float64)
    torch.testing.assert_close(ranks.distance, expected, equal_nan=True)


def test_the_bytes_of_an_exchange_grow_by_one_number_a_process() -> None:
    window = rank_window(torch.randn(4, TOTAL).double(), (torch.zeros(TOTAL), torch.ones(TOTAL)), 4)
    assert pack(window, overwritten=True).numel() == 3 + 9 * TOTAL + 2 * len(CHANNELS)
    distance = OwnDistance(rank=1, world_size=7, value=0.5)
    more = pack(window, overwritten=True, distance=distance, gather=True)
    assert more.numel() == 3 + (9 + 5) * TOTAL + 2 * len(CHANNELS) + 7


def test_parts_of_different_steps_are_not_mixed() -> None:
    windows, _ = simulate(2, 4, apart=0, shared=False)
    late = replace(windows[1], steps=(7, 8))
    total = pack(windows[0], overwritten=False) + pack(late, overwritten=False)
    assert unpack(total, windows[0], world_size=2, overwritten=False) is None


def test_a_process_without_a_batch_counts_for_nothing() -> None:
    windows, data = simulate(3, 6, apart=1.0, shared=False)
    nan = torch.full_like(windows[2].batch_mean, torch.nan)
    windows[2] = replace(windows[2], batch_mean=nan, batch_var=nan)
    total = torch.stack([pack(w, overwritten=False) for w in windows]).sum(0)
    found = unpack(total, windows[0], world_size=3, overwritten=False)
    assert found is not None
    torch.testing.assert_close(found.batch_mean, data[:2].flatten(0, 1).mean(0), rtol=1e-9, atol=0)


class _Interleaved:
    """A store in which the second process does all that it does before the first one is counted."""

    def __init__(self, second: Callable[[], None]) -> None:
        self.numbers: dict[str, int] = {}
        self.decision = b""
        self._second: Callable[[], None] | None = second

    def add(self, key: str, amount: int) -> int:
        key = key.partition("/")[2].partition("/")[2]
        second, self._second = (self._second, None) if key == "count" else (None, self._second)
        if second is not None:
            second()
        self.numbers[key] = self.numbers.get(key, 0) + amount
        return self.numbers[key]

    def check(self, keys: list[str]) -> bool:
        return bool(self.decision)

    def compare_set(self, key: str, expected: str, new: str) -> bytes:
        self.decision = self.decision or new.encode()
        return self.decision


@pytest.mark.parametrize(("lengths", "why"), [((40, 40), ""), ((40, 41), DIFFERENT)])
def test_processes_that_come_at_the_same_time_agree(
    lengths: tuple[int, int], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last process to be counted need not be the last to have written its length."""

    def second() -> None:
        store.add(f"bnmonitor/0/length/{lengths[1]}", 1)
        store.add("bnmonitor/0/count", 1)

    store = _Interleaved(second)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert _why_not(5.0, lengths[0]) == why
