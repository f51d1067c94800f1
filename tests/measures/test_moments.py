from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from bnmonitor.measures import (
    Affine,
    between,
    carried,
    finish,
    merge,
    merge_between,
    moments,
    nonpositive,
    paired,
    reduce,
)
from bnmonitor.sampling.autograd import affine_of, kept_by_autograd

SHAPES = {
    "gaussian": lambda n, draw: torch.randn(n, 2, generator=draw),
    "skewed": lambda n, draw: torch.rand(n, 2, generator=draw) ** 4,
    "heavy-tailed": lambda n, draw: torch.randn(n, 2, generator=draw) ** 3,
}


def map_of(module: nn.Module, x: Tensor, output: Tensor) -> Affine | None:
    """The affine map of a call, with what autograd has kept of it."""
    return affine_of(module, x, output, kept_by_autograd(x, output.grad_fn))


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
    x = SHAPES[shape](2000, torch.Generator().manual_seed(0)) * 0.5 + mean
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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_layer_too_large_for_one_go_is_reduced_to_the_same_numbers(layout: torch.memory_format) -> None:
    clamps = (lambda x: x, F.relu, lambda x: x.clamp(-1, 0.5), lambda x: x * 0 + 2)
    x = torch.randn(16, 180, 8, 16, generator=torch.Generator().manual_seed(2))
    x = torch.cat([clamp(part) for clamp, part in zip(clamps, x.chunk(4, 1), strict=True)], 1)
    assert x.numel() > moments.AT_ONCE
    got = reduce(x.contiguous(memory_format=layout))
    values = x.transpose(0, 1).flatten(1).double()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    deviations = values - values.mean(1, keepdim=True)
    sums = [deviations.pow(power).sum(1) for power in (2, 3, 4)]
    torch.testing.assert_close(got[:5].double(), torch.stack([got[0], values.mean(1), *sums]), rtol=1e-4, atol=2e-3)
    counts = [values == low, values == high, values <= 0, ~values.isfinite()]
    assert torch.equal(got[5:7].double(), torch.stack([low[:, 0], high[:, 0]]))
    assert torch.equal(got[7:].double(), torch.stack([count.sum(1) for count in counts]).double())


@pytest.mark.parametrize("shape", [(16, 4, 64), (8, 4, 8, 8), (32, 4, 32, 32)])
@pytest.mark.parametrize("seed", range(3))
def test_extremes_in_one_place_of_every_sample_are_counted(shape: tuple[int, ...], seed: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).flatten(2)
    x[:, 0, 5], x[:, 1, 9], x[:, 2, [5, 9]], x[0, 3, :2] = -10.0, 10.0, -10.0, 10.0
    samples = reduce(x)[0, 0] / x.shape[2]
    assert reduce(x.view(shape))[7:9].tolist() == [[samples, 1.0, 2 * samples, 1.0], [1.0, samples, 1.0, 2.0]]


def test_the_spread_of_samples_beside_a_large_mean_and_of_a_constant_channel() -> None:
    x = torch.randn(21, 2, 49, generator=torch.Generator().manual_seed(0))
    x[:, 0], x[:, 1] = 0.37, x[:, 1] * 0.1 + 1e4
    count, mean, squares = between(x)
    means = x.double().mean(2)
    assert squares[0] == 0
    assert count.tolist() == [21.0, 21.0]
    torch.testing.assert_close(mean.double(), means.mean(0), rtol=1e-6, atol=0)
    # The means of samples are numbers of float32, each of them off by up to half of its last digit.
    assert float(squares[1]) == pytest.approx(float((means[:, 1].float() - 1e4).double().var() * 20), rel=0.1)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(40, 6), (12, 6, 9), (8, 6, 5, 5), (8, 6, 40, 40)])
def test_what_is_carried_through_the_layer_is_what_its_output_reduces_to(
    shape: tuple[int, ...], affine: bool, training: bool, dtype: torch.dtype
) -> None:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    layer = kinds[len(shape)](6, affine=affine).to(dtype if dtype == torch.float64 else torch.float32).train(training)
    generator = torch.Generator().manual_seed(len(shape))
    with torch.no_grad():
        if affine:
            layer.weight.copy_(torch.tensor([1.0, -0.7, 0.0, 3.0, -1e-3, 20.0]))
            layer.bias.copy_(torch.tensor([0.0, 0.3, 0.0, -9.0, 1e-3, 0.1]))
        layer.running_mean.normal_(generator=generator)
        layer.running_var.uniform_(0.5, 2, generator=generator)
    x = (torch.randn(shape, generator=generator).transpose(1, -1) * 3 + 5).transpose(1, -1).clamp(min=2).to(dtype)
    x.requires_grad_()
    output = layer(x)
    through = map_of(layer, x, output)
    assert through is not None
    got, expected = finish(carried(reduce(x), through, nonpositive(output)).double()), finish(reduce(output).double())
    far = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    varies = torch.tensor([not affine or i != 2 for i in range(6)])
    for name, value in expected.items():
        where = varies if name in ("skewness", "kurtosis") else torch.ones(6, dtype=torch.bool)
        # In bfloat16 the output's few steps pin more values at its ends than the input's.
        if not (dtype == torch.bfloat16 and name == "saturation"):
            torch.testing.assert_close(
                got[name][where], value[where], rtol=far, atol=far, msg=lambda m, n=name: f"{n} {m}"
            )
    assert torch.equal(got["nonpositive"], expected["nonpositive"])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_not_finite_is_carried_through_the_layer(bad: float, training: bool) -> None:
    layer = nn.BatchNorm1d(3).train(training)
    x = torch.randn(30, 3)
    x[4, 1] = bad
    x.requires_grad_()
    output = layer(x)
    through = map_of(layer, x, output)
    assert through is not None
    got, expected = finish(carried(reduce(x), through, nonpositive(output))), finish(reduce(output))
    assert got["nonfinite"].tolist() == expected["nonfinite"].tolist()
    assert got["mean"].isfinite().tolist() == expected["mean"].isfinite().tolist()


class _Shifted(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def _changed_by_a_hook() -> nn.Module:
    layer = nn.BatchNorm1d(3)
    layer.register_forward_hook(lambda module, args, output: output + 1)
    return layer


def _pruned() -> nn.Module:
    return prune.l1_unstructured(nn.BatchNorm1d(3), "weight", 1)


@pytest.mark.parametrize(
    "make", [lambda: _Shifted(3), _changed_by_a_hook, _pruned, lambda: nn.InstanceNorm1d(3, track_running_stats=True)]
)
def test_what_is_not_the_plain_forward_of_a_batch_norm_is_no_known_map(make: Callable[[], nn.Module]) -> None:
    layer, x = make(), torch.randn(20, 3, 4, requires_grad=True)
    assert map_of(layer, x, layer(x)) is None


def test_a_map_in_half_precision_or_without_a_graph_is_not_known() -> None:
    layer, x = nn.BatchNorm1d(3), torch.randn(20, 3)
    half = x.half().requires_grad_()
    assert map_of(layer, half, layer(half)) is None
    with torch.no_grad():
        assert map_of(layer, x, layer(x)) is None


def images(samples: int, generator: torch.Generator, channels: int = 12) -> Tensor:
    """Samples with means of their own."""
    own = torch.randn(samples, channels, 1, 1, generator=generator)
    return own + torch.randn(samples, channels, 4, 4, generator=generator)


@pytest.mark.parametrize("samples", [32, 64, 130])
def test_two_views_of_each_sample_are_paired(samples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        view = images(samples // 2, generator)
        views = torch.cat([view, view]) + 0.5 * torch.randn(samples, 12, 4, 4, generator=generator)
        assert paired(views) > 0.8


@pytest.mark.parametrize("what", ["independent", "few", "odd", "classes in turn", "one factor"])
def test_other_samples_are_not(what: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        x = images({"few": 16, "odd": 65}.get(what, 64), generator)
        if what == "classes in turn":
            x = x + 2 * torch.randn(2, 12, 1, 1, generator=generator).repeat(32, 1, 1, 1)
        if what == "one factor":
            x = 0.1 * x + 2 * torch.randn(64, 1, 1, 1, generator=generator)
        assert paired(x) == 0
