"""Moments of an activation: a few numbers per channel, which merge from call to call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """``output = scale * (input - mean) + beta``: ``[channels]`` each, on the layer's device."""

    scale: Tensor
    mean: Tensor
    beta: Tensor


MOST_VALUES = 2048
"""Values per channel that are reduced; of more, every k-th sample of the batch is."""

MOST_SAMPLES = 64
"""About as many samples of a batch :func:`spread` takes a part of."""

LEAST_SAMPLES = 16
"""Least number of samples that :func:`between` reduces, if the batch has so many."""


def reduce(x: Tensor) -> Tensor:
    """Reduce ``[N, C, ...]`` to eleven numbers per channel, of at most about :data:`MOST_VALUES` values each.

    Returns:
        ``[11, C]``: count, mean, sums of the second, third and fourth powers of the deviations, min, max, how many are
        equal to the min, how many to the max, how many are <= 0, how many are not finite.
    """
    return _by_channels(_reduce, _reducedpart(x))


AT_ONCE = 2**18
"""Values that a CPU works on at once: for more the memory is fetched anew each time, which takes twice as long."""


def _by_channels(reduction: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a reduction of each channel of ``[N, C, ...]`` to some of the channels after the other: ``[..., C]``."""
    parts = -(-x.numel() // AT_ONCE) if x.device.type == "cpu" else 1
    return reduction(x) if parts <= 1 else torch.cat([reduction(part) for part in x.chunk(parts, 1)], -1)


def _reduce(x: Tensor) -> Tensor:
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    # One copy with the values of a channel in a row; the rest works in it and in one more.
    values = x.transpose(0, 1).to(dtype, copy=True, memory_format=torch.contiguous_format).flatten(1)
    scratch = torch.empty_like(values)
    low, high, at_low, at_high = _ends(values, scratch)
    # A comparison into floats is several times faster on a CPU than one into bool.
    nonpositive = torch.le(values, 0, out=scratch).sum(1)
    # Deviations from a value of the channel first: a mean that dwarfs the deviation costs no digits then.
    origin = values[:, :1]
    deviations = torch.sub(values, origin, out=scratch)
    mean = deviations.mean(1, keepdim=True)
    deviations.sub_(mean)
    mean = mean.add_(origin).flatten()
    powers = torch.mul(deviations, deviations, out=values)
    second, fourth = powers.sum(1), torch.linalg.vector_norm(powers, dim=1).square_()
    # A finite sum has only finite terms: counting costs a pass, and is seldom needed.
    if x.device.type == "cpu" and math.isfinite(second.sum().item()):
        bad = torch.zeros_like(second)
    else:
        bad = (~x.isfinite()).sum((0, 2)).to(dtype)
    third = deviations.mul_(powers).sum(1)
    count = torch.full_like(second, values.shape[1])
    return torch.stack([count, mean, second, third, fourth, low, high, at_low, at_high, nonpositive, bad])


_GROUP = 16
"""Values of a channel of which the least and the largest are compared with those of other groups."""

_LEAST_GROUPS = 32
"""Least number of such groups that make it worth while."""


def _ends(values: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Smallest and largest value of each row, and how often each of the two is there: ``[C]`` each.

    On a CPU the extremes of each :data:`_GROUP` values are compared first. Where one group alone has the extreme, the
    others need not be counted, which would cost two passes more.
    """
    groups = values.shape[1] // _GROUP
    if values.device.type != "cpu" or groups < _LEAST_GROUPS or values.shape[1] % _GROUP:
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    else:
        grouped = values.view(-1, _GROUP, groups)
        lows, highs = grouped.amin(1), grouped.amax(1)
        (low, first), (high, last) = lows.min(1, keepdim=True), highs.max(1, keepdim=True)
        # Each is in one group at least, except where a value is NaN.
        if lows.eq_(low).add_(highs.eq_(high)).sum(1).amax().item() <= 2:
            ends, where = torch.cat([low, high], 1), torch.cat([first, last], 1)
            among = grouped.gather(2, where[:, None].expand(-1, _GROUP, -1))
            at_low, at_high = among.eq_(ends[:, None]).sum(1).unbind(1)
            return low[:, 0], high[:, 0], at_low, at_high
    at_low, at_high = torch.eq(values, low, out=scratch).sum(1), torch.eq(values, high, out=scratch).sum(1)
    return low[:, 0], high[:, 0], at_low, at_high


def carried(reduced: Tensor, through: Affine, not_positive: Tensor) -> Tensor:
    """Return what :func:`reduce` would return for the output of an affine map, for a tenth of the cost.

    Args:
        reduced: The result for the input.
        through: The map.
        not_positive: What :func:`nonpositive` counts in the output.
    """
    count, mean, second, third, fourth, low, high, at_low, at_high, _, nonfinite = reduced
    scale, center, beta = (t.to(reduced.dtype) for t in through)
    first, last = (torch.addcmul(beta, scale, end - center) for end in (low, high))
    falls, flat, known = scale < 0, scale == 0, (scale + center + beta).isfinite()
    squared = scale * scale
    return torch.stack(
        [
            count,
            torch.addcmul(beta, scale, mean - center),
            second * squared,
            third * squared * scale,
            fourth * squared * squared,
            torch.minimum(first, last),
            torch.maximum(first, last),
            count.where(flat, at_high.where(falls, at_low)),
            count.where(flat, at_low.where(falls, at_high)),
            not_positive.to(reduced.dtype),
            nonfinite.where(known, count),
        ]
    )


def nonpositive(x: Tensor) -> Tensor:
    """Count the values of each channel that are not positive, in the same part that :func:`reduce` reduces: ``[C]``."""
    return _by_channels(_nonpositive, _reducedpart(x))


def _nonpositive(x: Tensor) -> Tensor:
    x = x.transpose(0, 1)
    return torch.le(x, 0, out=torch.empty(x.shape, dtype=torch.float32, device=x.device)).sum((1, 2))


def merge(a: Tensor, b: Tensor) -> Tensor:
    """Merge two results of :func:`reduce`.

    The sums of powers by the pairwise formulas of Chan, Golub and LeVeque (1979) and, beyond the second, Pébay
    (Sandia report SAND2008-6212).
    """
    (m, mean, second, third, fourth), (n, other, *more) = a[:5], b[:5]
    total = m + n
    delta = other - mean
    step = delta / total
    return torch.stack(
        [
            total,
            mean + step * n,
            second + more[0] + delta * step * m * n,
            third + more[1] + step * (delta * step * m * n * (m - n) + 3 * (m * more[0] - n * second)),
            fourth
            + more[2]
            + delta * step**3 * m * n * (m * m - m * n + n * n)
            + 6 * step**2 * (m * m * more[0] + n * n * second)
            + 4 * step * (m * more[1] - n * third),
            torch.minimum(a[5], b[5]),
            torch.maximum(a[6], b[6]),
            a[7] * (a[5] <= b[5]) + b[7] * (b[5] <= a[5]),
            a[8] * (a[6] >= b[6]) + b[8] * (b[6] >= a[6]),
            a[9] + b[9],
            a[10] + b[10],
        ]
    )


def finish(reduced: Tensor) -> dict[str, Tensor]:
    """Turn the result of :func:`reduce` into the fields of :class:`bnmonitor.window.Moments`."""
    count, mean, second, third, fourth, low, high, at_low, at_high, nonpositive, nonfinite = reduced
    var = second / count
    pinned = at_low - 1 + torch.where(high > low, at_high - 1, 0)
    known = nonfinite == 0
    return {
        "mean": mean,
        "var": var,
        "skewness": _finite(third / count / var**1.5),
        "kurtosis": _finite(fourth / count / var**2),
        "min": low,
        "max": high,
        "nonpositive": nonpositive / count,
        "saturation": (pinned / count).where(known, torch.nan),
        "nonfinite": nonfinite / count,
    }


def between(x: Tensor) -> Tensor:
    """Reduce ``[N, C, ...]`` to the spread of its samples' means.

    All values of a sample are used, as its mean needs them, for :data:`LEAST_SAMPLES` samples up to twice as many.

    Returns:
        ``[3, C]``: number of samples, mean of their means, and sum of squared deviations of their means.
    """
    x = part(x, x.shape[0] // LEAST_SAMPLES)
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    means = x.flatten(2).mean(2, dtype=dtype) if x.dim() > 2 else x.to(dtype)
    # Deviations from one of the samples first: a mean that dwarfs the deviation costs no digits then.
    origin = means[0]
    deviations = means - origin
    mean = deviations.mean(0)
    squares = deviations.sub_(mean).square_().sum(0)
    return torch.stack([torch.full_like(mean, len(means)), mean + origin, squares])


def unevenness(x: Tensor) -> Tensor | None:
    """Return the relative variance of the samples' own variances of ``[N, C, ...]``: ``[C]``.

    Over as many samples as :func:`between` reduces; None for fewer than :data:`LEAST_SAMPLES`, or of one value each.
    """
    if x.dim() < 3 or x.shape[0] < LEAST_SAMPLES:
        return None
    own = _own_variances(x)
    return torch.div(own.var(0), own.mean(0).square())


def unevenness_beyond(x: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the same, also for samples of one value, and what :func:`uneven_beyond` makes the rest of.

    Returns:
        ``[C]``; ``[n, n]``, the products of the samples' variances over the channels; and ``[]``, the kurtosis of these
        variances in the middle channel. None for few samples.
    """
    if x.shape[0] < LEAST_SAMPLES or x.shape[1] < 2:
        return None
    own = _own_variances(x)
    mean, deviation = own.mean(0), own.std(0)
    scaled = ((own - mean) / deviation).where(deviation > 0, 0.0).double()
    tails = scaled.pow(4).mean(0).where(deviation > 0, torch.nan)
    return (deviation / mean).square(), scaled @ scaled.T, tails.nanmedian()


def uneven_beyond(products: Tensor, kurtosis: Tensor) -> Tensor:
    """Return the part of the unevenness that no common factor explains, on the CPU: a GPU is waited for eigenvalues.

    Args:
        products: As :func:`unevenness_beyond` returns them.
        kurtosis: Likewise.

    Returns:
        ``[2]``: share of the correlations between channels beyond their first principal component, and the kurtosis.
    """
    strengths = torch.linalg.eigvalsh(products)
    return torch.stack([1 - strengths[-1] / strengths.sum().clamp(min=1e-30), kurtosis])


PAIRED = 4.5
"""Deviations by which pairs must be more alike than other pairs, of which there are 15 kinds in 16 pairs."""


def paired(x: Tensor) -> Tensor:
    """Correlation of the samples' means with those half a batch later, as two views of each sample have it: ``[]``.

    0 where other samples are hardly less alike, as where they alternate by class, and of few samples.
    """
    half = x.shape[0] // 2
    if half < LEAST_SAMPLES or x.shape[0] % 2:
        return x.new_zeros((), dtype=torch.float64)
    x = x.detach().reshape(2, half, *x.shape[1:])[:, :: max(1, half // LEAST_SAMPLES)]
    means = (x.flatten(3).mean(3, dtype=torch.float32) if x.dim() > 3 else x).double()
    means = means - means.mean((0, 1), keepdim=True)
    var = means.square().mean((0, 1))
    one, other = (means / var.sqrt()).where(var > 0, 0.0)
    at = torch.arange(len(one), device=x.device)
    apart = (at[:, None] + at) % len(one)
    alike = (one @ other.T).gather(1, apart).sum(0) / one.numel()
    beyond = alike[0] - alike[1:].mean()
    return torch.where(beyond > PAIRED * alike[1:].std(), beyond, 0.0).clamp(0, 1)


def _own_variances(x: Tensor) -> Tensor:
    """Each sample's variance around the batch mean, over the samples that :func:`between` reduces: ``[n, C]``."""
    x = part(x, x.shape[0] // LEAST_SAMPLES)
    x = x.flatten(2) if x.dim() > 2 else x[..., None]
    return _by_channels(_variances, x if x.dtype == torch.float64 else x.float())


def _variances(x: Tensor) -> Tensor:
    return (x - x.mean((0, 2), keepdim=True)).square_().mean(2)


def merge_between(a: Tensor, b: Tensor) -> Tensor:
    """Merge two results of :func:`between`, by the formula of Chan, Golub and LeVeque."""
    total = a[0] + b[0]
    delta = b[1] - a[1]
    return torch.stack([total, a[1] + delta * b[0] / total, a[2] + b[2] + delta * delta * a[0] * b[0] / total])


def scale(x: Tensor) -> Tensor:
    """Reduce data ``[N, C, ...]`` to its scale.

    Returns:
        ``[2]``: mean square, and distance of the mean from zero in deviations, each in the middle channel; the second
        over the channels that are not constant, NaN without one.
    """
    x = spread(x).transpose(0, 1).flatten(1)
    var, mean = torch.var_mean(x if x.dtype == torch.float64 else x.float(), 1, correction=0)
    power = mean.square() + var
    offset = (mean.abs() / var.sqrt()).where(var > 1e-12 * power, torch.nan)
    return torch.stack([power.median(), offset.nanmedian()])


def looked_at(samples: int) -> int:
    """Return how many samples of a batch :func:`between` reduces."""
    return -(-samples // _step(samples // LEAST_SAMPLES))


def samples_reduced(x: Tensor) -> int:
    """Return how many samples of ``[N, C, ...]`` :func:`reduce` reduces."""
    return -(-x.shape[0] // _step(_reduced_stride(x)))


def spread(x: Tensor) -> Tensor:
    """Return a part of ``[N, C, ...]`` for :func:`reduce`: a few positions of many samples, not a few whole samples.

    The positions of a sample say nearly the same: a mean over many samples needs few of each.
    """
    x = part(x, x.shape[0] // MOST_SAMPLES)
    positions = x[0, 0].numel()
    if x.dim() == 2 or not positions:
        return x
    every = math.ceil((x.shape[0] * positions / MOST_VALUES) ** (1 / (x.dim() - 2)))
    strides = [slice(every // 2 if size > every else None, None, every) for size in x.shape[2:]]
    index = (slice(None), slice(None), *strides)
    return x[index]


def _reducedpart(x: Tensor) -> Tensor:
    """The part that :func:`reduce` reduces: ``[n, C, positions]``."""
    x = part(x, _reduced_stride(x))
    return x if x.dim() == 3 else x.flatten(2) if x.dim() > 2 else x[..., None]


def _reduced_stride(x: Tensor) -> int:
    return min(x.shape[0], x.numel() // max(1, x.shape[1]) // MOST_VALUES)


def part(x: Tensor, stride: int) -> Tensor:
    """Return the samples that a reduction looks at, of a batch too large to read as a whole."""
    x, step = (x.detach() if x.requires_grad else x), _step(stride)
    return x if step == 1 else x[::step]


def _step(stride: int) -> int:
    """About every ``stride``-th sample, but never every second one: samples that come in pairs would be halved."""
    return max(1, stride - 1 + stride % 2)


def _finite(values: Tensor) -> Tensor:
    return values.where(values.isfinite(), torch.nan)
