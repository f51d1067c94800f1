from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.recording.ring import Ring
from bnmonitor.window import CHANNEL_STATISTICS, LAYER_STATISTICS

LAYERS = LayerTable(
    names=("a", "b"),
    channels=(1, 2),
    kinds=("BatchNorm1d",) * 2,
    eps=(1e-5,) * 2,
    momentum=(0.1,) * 2,
    affine=(True,) * 2,
    tracking=(True,) * 2,
    family=("batch",) * 2,
)


def rows_for(steps: list[int]) -> dict[str, Tensor]:
    """Rows whose every value tells the step, the statistic and the column it belongs to."""
    rows = {}
    for i, name in enumerate(CHANNEL_STATISTICS + LAYER_STATISTICS):
        width = LAYERS.total if name in CHANNEL_STATISTICS else len(LAYERS)
        values = torch.tensor([[step * 1000 + i * 10 + c for c in range(width)] for step in steps])
        rows[name] = values % 2 == 0 if name == "training" else values
    return rows


def write(ring: Ring, steps: list[int]) -> None:
    rows = rows_for(steps)
    for name, room in ring.room(steps, [step / 2 for step in steps]).items():
        room.copy_(rows[name])


@settings(max_examples=120, deadline=None)
@given(size=st.integers(1, 9), blocks=st.lists(st.integers(1, 9), max_size=25))
def test_the_view_is_always_the_newest_rows_in_order(size: int, blocks: list[int]) -> None:
    ring = Ring(LAYERS, size, torch.float64)
    every: list[int] = []
    for count in blocks:
        new = list(range(len(every), len(every) + min(count, size)))
        write(ring, new)
        every += new
        kept = every[-size:]
        assert ring.steps == kept
        assert ring.rates == [step / 2 for step in kept]
        view, expected = ring.view(), rows_for(kept)
        assert view.keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(view[name], values.to(view[name].dtype)), name


def test_an_empty_ring_has_empty_views_of_the_right_width() -> None:
    view = Ring(LAYERS, 4, torch.float32).view()
    assert view["batch_mean"].shape == (0, 3)
    assert view["updates"].shape == (0, 2)
    assert {name: view[name].dtype for name in LAYER_STATISTICS} == {
        "updates": torch.int64,
        "training": torch.bool,
        "recovery": torch.int64,
        "momentum": torch.float32,
        "variance": torch.float32,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channel_statistics_keep_the_dtype_they_were_given(dtype: torch.dtype) -> None:
    view = Ring(LAYERS, 4, dtype).view()
    assert {view[name].dtype for name in CHANNEL_STATISTICS} == {dtype}


def test_the_window_is_one_contiguous_view_and_the_memory_is_bounded() -> None:
    ring = Ring(LAYERS, 8, torch.float32)
    storages = {ring.view()["gamma"].untyped_storage().data_ptr()}
    for step in range(100):
        write(ring, [step])
        view = ring.view()["gamma"]
        assert view.is_contiguous()
        storages.add(view.untyped_storage().data_ptr())
        assert view.untyped_storage().nbytes() == (len(CHANNEL_STATISTICS) + 1) * 8 * LAYERS.total * 4
    assert len(storages) == 1


def test_a_full_window_slides_without_copies_but_for_one_statistic_each_time_it_is_replaced() -> None:
    ring, moved = Ring(LAYERS, 8, torch.float32), []
    write(ring, list(range(8)))
    before = {name: ring.view()[name].data_ptr() for name in CHANNEL_STATISTICS}
    for step in range(8, 88):
        write(ring, [step])
        now = {name: ring.view()[name].data_ptr() for name in CHANNEL_STATISTICS}
        moved += [(step, name) for name in now if now[name] != before[name] + LAYERS.total * 4]
        before = now
    assert [step for step, _ in moved] == list(range(16, 88, 8))
    assert len({name for _, name in moved}) == len(moved)


@settings(max_examples=80, deadline=None)
@given(size=st.integers(2, 12), blocks=st.lists(st.integers(1, 9), min_size=1, max_size=25), seed=st.integers(0, 999))
def test_averages_that_are_carried_along_are_those_of_the_window(size: int, blocks: list[int], seed: int) -> None:
    ring, generator = Ring(LAYERS, size, torch.float64), torch.Generator().manual_seed(seed)
    for count in blocks:
        steps = list(range(min(count, size)))
        for room in ring.room(steps, [0.1] * len(steps)).values():
            room.copy_(torch.rand(room.shape, generator=generator) * 100)
        carried = ring.averages()
        if carried is None:
            assert len(ring.steps) == len(steps)
            continue
        rows = ring.view()
        expected = rows["shift"].mean(0), rows["batch_var"][1:].mean(0), rows["running_var"][:-1].mean(0)
        for got, truth in zip(carried, expected, strict=True):
            torch.testing.assert_close(got, truth, rtol=1e-12, atol=0)


def test_averages_are_not_carried_over_what_is_unknown_and_forget_what_has_left_the_window() -> None:
    ring = Ring(LAYERS, 6, torch.float32)

    def add(value: float) -> None:
        for name, room in ring.room([0, 0], [0.1, 0.1]).items():
            room.fill_(value if name in CHANNEL_STATISTICS else 0)

    for value in (1.0, 1.0, torch.nan, 1.0):
        add(value)
        averages = ring.averages()
    assert averages is None
    for value in (1.0, 1.0, 1e30, 1.0, 1.0, 1.0):
        add(value)
        averages = ring.averages()
    assert averages is not None
    assert all((mean == 1).all() for mean in averages)
