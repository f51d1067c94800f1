from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnmonitor.layers import Segments
from bnmonitor.measures import mean_over_steps, middle_over_steps, recover, update_weight
from bnmonitor.window import Recovery

MOMENTA = [0.1, 0.01, 0.001, 0.5, 1.0, None]

numbers = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.sampled_from(
    [0.0, -0.0, math.nan, math.inf, -math.inf, 2.0**-149, -(2.0**-149), 1.0, -1.0]
)
ragged = st.lists(st.lists(numbers, max_size=6), min_size=1, max_size=5)


def flat(layers: list[list[float]]) -> tuple[Tensor, Segments]:
    values = torch.tensor([v for layer in layers for v in layer], dtype=torch.float32)
    return values, Segments([len(layer) for layer in layers])


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or a == b


def known(layer: list[float]) -> list[float]:
    return [v for v in layer if not math.isnan(v)]


@settings(max_examples=150, deadline=None)
@given(ragged)
def test_segment_median_is_the_lower_middle_of_the_known_values(layers: list[list[float]]) -> None:
    values, segments = flat(layers)
    got = segments.median(values).tolist()
    for layer, value in zip(layers, got, strict=True):
        ordered = sorted(known(layer))
        assert same(value, ordered[(len(ordered) - 1) // 2] if ordered else math.nan)


@settings(max_examples=150, deadline=None)
@given(ragged)
def test_segment_max_is_the_largest_known_value(layers: list[list[float]]) -> None:
    values, segments = flat(layers)
    got = segments.max(values).tolist()
    for layer, value in zip(layers, got, strict=True):
        assert same(value, max(known(layer), default=math.nan))


@settings(max_examples=150, deadline=None)
@given(ragged)
def test_segment_sum_adds_the_known_values(layers: list[list[float]]) -> None:
    values, segments = flat(layers)
    got = segments.sum(values.double()).tolist()
    for layer, value in zip(layers, got, strict=True):
        expected = sum(known(layer), 0.0)
        assert same(value, expected) or value == pytest.approx(expected, rel=1e-12, abs=1e-6)


def test_segment_sum_does_not_swallow_infinities() -> None:
    values = torch.tensor([1.0, math.inf, -math.inf, 2.0, math.nan])
    assert Segments([2, 3]).sum(values).tolist() == [math.inf, -math.inf]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_segment_sum_counts_a_mask_row_by_row(rows: list[list[bool]]) -> None:
    segments = Segments([2, 0, 3, 0])
    got = segments.count(torch.tensor(rows))
    assert segments.any(torch.tensor(rows)).equal(got > 0)
    assert got.dtype == torch.int64
    assert got.tolist() == [[sum(row[:2]), 0, sum(row[2:]), 0] for row in rows]


def test_segments_of_no_channel_at_all_are_unknown_and_sum_to_nothing() -> None:
    nothing, segments = torch.empty(0), Segments([0, 0])
    assert segments.median(nothing).isnan().all()
    assert segments.max(nothing).isnan().all()
    assert segments.sum(nothing).tolist() == [0.0, 0.0]
    assert Segments([]).median(nothing).shape == (0,)


def test_segment_median_does_not_mix_layers_when_one_is_all_nan_or_all_infinite() -> None:
    layers = [[math.nan] * 3, [math.inf] * 3, [5.0], [], [-math.inf, math.nan, -1.0]]
    values, segments = flat(layers)
    got = segments.median(values).tolist()
    assert math.isnan(got[0])
    assert got[1:3] == [math.inf, 5.0]
    assert math.isnan(got[3])
    assert got[4] == -math.inf


def weight_by_loop(momentum: float | None, before: int, updates: int) -> float:
    """What is not old after the updates, one by one, as BatchNorm does them."""
    old = 1.0
    for k in range(updates):
        factor = 1 / (before + k + 1) if momentum is None else momentum
        old *= 1 - factor
    return 1 - old


def as_tensor(momentum: float | None) -> Tensor:
    return torch.tensor([math.nan if momentum is None else momentum], dtype=torch.float64)


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("updates", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("before", [0, 1, 7, 100_000])
def test_update_weight_is_what_one_update_after_the_other_gives(
    momentum: float | None, updates: int, before: int
) -> None:
    got = update_weight(as_tensor(momentum), torch.tensor([before]), torch.tensor([before + updates]))
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(weight_by_loop(momentum, before, updates), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("momentum", MOMENTA)
def test_update_weight_is_nothing_when_the_counter_went_back(momentum: float | None) -> None:
    assert float(update_weight(as_tensor(momentum), torch.tensor([9]), torch.tensor([3]))) == 0.0


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("updates", [1, 2, 3, 4, 5])
def test_recover_gives_the_weighted_average_of_the_batches(momentum: float | None, updates: int) -> None:
    generator = torch.Generator().manual_seed(updates)
    batches = torch.randn(updates, 7, generator=generator, dtype=torch.float64)
    before = torch.randn(7, generator=generator, dtype=torch.float64)
    after, average, total = before.clone(), torch.zeros(7, dtype=torch.float64), 0.0
    for k, batch in enumerate(batches):
        factor = 1 / (3 + k + 1) if momentum is None else momentum
        after = (1 - factor) * after + factor * batch
        average, total = (1 - factor) * average + factor * batch, (1 - factor) * total + factor
    weight = update_weight(as_tensor(momentum), torch.tensor([3]), torch.tensor([3 + updates]))
    torch.testing.assert_close(recover(before, after, weight), average / total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.001])
def test_recover_in_float32_stays_within_the_error_it_promises(momentum: float) -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(4000, generator=generator) * 3
    batch = torch.randn(4000, generator=generator) * 3
    after = ((1 - momentum) * before.double() + momentum * batch.double()).float()
    got = recover(before, after, torch.full((4000,), momentum, dtype=torch.float64))
    assert got.dtype == torch.float32
    ulp = torch.nextafter(after.abs(), torch.tensor(math.inf)).double() - after.abs().double()
    own = torch.finfo(torch.float32).eps * (batch.abs() + before.abs() + 2 * (batch - before).abs()).double()
    error = (got.double() - batch.double()).abs()
    assert (error <= ulp / (2 * momentum) + own).all()
    assert error.max() > 0


def test_recover_says_nan_where_nothing_was_updated() -> None:
    values = torch.tensor([1.0, 2.0])
    got = recover(values, values, torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert math.isnan(got[0])
    assert got[1] == 2.0
    assert math.isnan(recover(values, values + 1, torch.tensor([0.0, 0.5], dtype=torch.float64))[0])


def test_recover_writes_the_batch_and_its_distance_where_it_is_asked_to() -> None:
    before, after = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0])
    moved, out = torch.zeros(2), torch.zeros(2)
    got = recover(before, after, torch.tensor([0.5, 0.25], dtype=torch.float64), moved=moved, out=out)
    assert got is out
    assert out.tolist() == [3.0, 0.0]
    assert moved.tolist() == [2.0, -4.0]
    assert (before.tolist(), after.tolist()) == ([1.0, 4.0], [2.0, 3.0])


@pytest.mark.parametrize("momentum", MOMENTA)
def test_the_formula_is_the_one_that_torch_applies(momentum: float | None) -> None:
    bn = nn.BatchNorm1d(3, momentum=momentum).double()
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    bn(x + 1)
    before = bn.running_mean.clone(), bn.running_var.clone(), int(bn.num_batches_tracked)
    bn(x * 2)
    weight = update_weight(as_tensor(momentum), torch.tensor([before[2]]), bn.num_batches_tracked.reshape(1))
    torch.testing.assert_close(recover(before[0], bn.running_mean, weight), (x * 2).mean(0))
    torch.testing.assert_close(recover(before[1], bn.running_var, weight), (x * 2).var(0))


def test_every_recovery_has_a_reason_of_its_own() -> None:
    assert len({state.reason for state in Recovery}) == len(Recovery)
    assert all(state.reason for state in Recovery)


def test_the_middle_over_steps_is_not_moved_by_a_wild_one_and_passes_over_nan() -> None:
    rows = torch.ones(10, 3)
    rows[4, 0] = 1e9
    rows[7, 1] = math.nan
    rows[:, 2] = math.nan
    got = middle_over_steps(rows)
    assert got[:2].tolist() == [1.0, 1.0]
    assert math.isnan(got[2])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_middle_over_steps_is_one_of_the_values_and_never_an_end_of_many(steps: int, seed: int) -> None:
    rows = torch.randn(steps, 2, generator=torch.Generator().manual_seed(seed))
    got = middle_over_steps(rows)
    assert all((rows[:, c] == got[c]).any() for c in range(2))
    if steps >= 3:
        assert (got < rows.amax(0)).all()


def test_the_mean_over_steps_passes_over_nan() -> None:
    rows = torch.tensor([[1.0, math.nan], [3.0, 5.0]])
    assert mean_over_steps(rows).tolist() == [2.0, 5.0]
