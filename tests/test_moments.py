from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bnmonitor import moments
from bnmonitor.moments import between, finish, merge, merge_between, reduce

RNG = torch.Generator().manual_seed(0)
SHAPES = {
    "gaussian": lambda n: torch.randn(n, 2, generator=RNG),
    "skewed": lambda n: torch.rand(n, 2, generator=RNG) ** 4,
    "heavy-tailed": lambda n: torch.randn(n, 2, generator=RNG) ** 3,
}


def truth(x: Tensor) -> dict[str, Tensor]:
    """The moments of ``[n, C]`` in float64, straight from their definition."""
    x = x.double()
    z = (x - x.mean(0)) / x.var(0, correction=0).sqrt()
    return {
        "mean": x.mean(0),
        "var": x.var(0, correction=0),
        "skewness": z.pow(3).mean(0),
        "kurtosis": z.pow(4).mean(0),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mean", "parts"), [(m, p) for m in (0.0, 3.0, 3000.0) for p in (1, 2, 7)] + [(-1e6, 1)])
def test_moments_are_those_of_float64_beside_any_mean_and_however_they_are_merged(
    shape: str, mean: float, parts: int
) -> None:
    # Beyond, float32 does not hold the means of the parts closely enough for their difference.
    x = SHAPES[shape](2000) * 0.5 + mean
    reduced, *more = [reduce(part) for part in x.chunk(parts)]
    for part in more:
        reduced = merge(reduced, part)
    got = finish(reduced)
    for name, expected in truth(x).items():
        torch.testing.assert_close(got[name].double(), expected, rtol=2e-4, atol=2e-4, msg=lambda m, n=name: f"{n} {m}")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6), min_size=2, max_size=4))
def test_merging_parts_is_reducing_the_whole(parts: list[list[float]]) -> None:
    tensors = [torch.tensor(part, dtype=torch.float64).reshape(-1, 1) for part in parts]
    merged = reduce(tensors[0])
    for tensor in tensors[1:]:
        merged = merge(merged, reduce(tensor))
    torch.testing.assert_close(merged, reduce(torch.cat(tensors)), rtol=1e-9, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_counted_in_their_channel_only(bad: float) -> None:
    x = torch.randn(6, 3, 4)
    x[1, 2, 0] = x[4, 2, 3] = bad
    got = finish(reduce(x))
    assert got["nonfinite"].tolist() == pytest.approx([0.0, 0.0, 2 / 24])
    torch.testing.assert_close(got["mean"][:2], x[:, :2].mean((0, 2)))
    assert got["skewness"].isfinite().tolist() == [True, True, False]
    assert got["saturation"].isnan().tolist() == [False, False, True]


def test_a_sum_that_overflows_is_not_counted_as_a_value_that_is_not_finite() -> None:
    assert finish(reduce(torch.tensor([[3e38], [-3e38]])))["nonfinite"].tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_reduced_in_float(dtype: torch.dtype) -> None:
    x = torch.full((100, 2), 1024.0).to(dtype)
    x[::2, 1] = 0
    count, mean, squares, *_ = reduce(x)
    assert mean.tolist() == [1024.0, 512.0]
    assert squares.tolist() == [0.0, 100 * 512.0**2]
    assert count.tolist() == [100.0, 100.0]
    assert between(x)[1].tolist() == [1024.0, 512.0]


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.contiguous(memory_format=torch.channels_last)])
def test_what_is_reduced_is_left_as_it_was(make: object) -> None:
    for shape in [(8, 3), (1, 3, 5, 5), (4, 3, 5, 5), (4, 1, 5, 5)]:
        x = make(torch.randn(shape)) if len(shape) == 4 else torch.randn(shape)  # type: ignore[operator]
        before = x.clone()
        reduce(x), between(x)
        assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("clamp", "expected"),
    [
        (lambda x: x, 0.0),
        (lambda x: 3 * x - 7, 0.0),
        (F.relu, 0.5),
        (lambda x: F.relu6(8 * x), 0.5 + 0.2266),
        (lambda x: x.clamp(-1, 1), 0.3173),
        (lambda x: (2e5 * x).clamp(-65504, 65504), 0.7433),
        (lambda x: x * 0 + 2, 1.0),
    ],
)
def test_saturation_is_the_share_that_is_pinned_at_the_ends(clamp: object, expected: float) -> None:
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1))
    assert finish(reduce(clamp(x)))["saturation"].item() == pytest.approx(expected, abs=0.03)  # type: ignore[operator]


def test_a_single_value_is_not_saturated() -> None:
    assert finish(reduce(torch.ones(1, 2)))["saturation"].tolist() == [0.0, 0.0]


def test_large_batches_are_reduced_over_a_part() -> None:
    x = torch.randn(64, 2, 40, 40)
    assert reduce(x)[0].tolist() == [1600.0 * 2] * 2
    assert reduce(torch.randn(100_000, 2))[0].max() <= 1.05 * moments.MOST_VALUES
    assert between(x)[0].tolist() == [22.0, 22.0]
    assert between(x[:31])[0].tolist() == [31.0, 31.0]


@pytest.mark.parametrize("samples", [64, 100, 256])
def test_a_part_of_a_batch_in_which_two_kinds_alternate_has_both(samples: int) -> None:
    x = torch.arange(samples).remainder(2).float()[:, None, None].expand(samples, 2, 500)
    assert reduce(x)[1].tolist() == pytest.approx([0.5, 0.5], abs=0.2)
    assert between(x)[1].tolist() == pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.parametrize("mean", [0.0, 5000.0])
def test_between_tells_how_much_the_mean_of_a_batch_varies(mean: float) -> None:
    """Samples of 25 correlated values each: the variance of a batch mean is between / N, not var / n."""
    rng = torch.Generator().manual_seed(0)
    pool = torch.randn(6400, 3, 1, 1, generator=rng) + 0.3 * torch.randn(6400, 3, 5, 5, generator=rng) + mean
    batches = pool.split(32)
    predicted = torch.stack([spread[2] / (spread[0] - 1) for spread in map(between, batches)]).mean(0) / 32
    seen = torch.stack([b.mean((0, 2, 3), dtype=torch.float64) for b in batches]).var(0)
    torch.testing.assert_close(predicted.double(), seen, rtol=0.25, atol=0)
    assert (pool.double().var((0, 2, 3)) / (32 * 25) < seen / 10).all()


def test_between_is_merged_as_the_whole() -> None:
    a, b = torch.randn(5, 3, 7, dtype=torch.float64), 2 + torch.randn(9, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(merge_between(between(a), between(b)), between(torch.cat([a, b])))
