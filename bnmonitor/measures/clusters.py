"""Points that lie at a few places: clusters that are far from each other compared with their own width.

In NumPy: there are at most a window's steps of them, and PyTorch takes longer to begin an operation than to compute it.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np

from bnmonitor.measures.products import eigenvectors, product
from bnmonitor.measures.robust import Array, lower_median

LEAST_MEMBERS = 4
"""Least number of points of a cluster."""

MOST_CLUSTERS = 6
"""Most clusters, with outliers; of more, a window holds too few steps of each."""

DIRECTIONS = 3
"""Directions in which the points vary most, in which clusters are looked for."""

NEAR = 0.42
"""Largest distance of a point from the nearest one, as a part of the typical distance, for a closer look."""

AWAY = 4.5
"""Least distance of two clusters, in deviations of their own points: halves of a normal distribution have 2.7, of a
uniform one 3.5."""

OUTLIERS = 0.1
"""Part of the points that may be in no cluster."""

_ROUNDS = 9


def clusters(products: Array) -> Array | None:
    """Return the cluster of each point, numbered from 0, and -1 for a point of none: ``[t]``; None without clusters.

    Args:
        products: ``[t, t]`` inner products of the points.
    """
    squares = products.diagonal()
    distance = np.sqrt((squares[:, None] + squares - 2 * products).clip(0))
    np.fill_diagonal(distance, 0)
    typical = distance.mean()
    np.fill_diagonal(distance, np.inf)
    if not lower_median(distance.min(1)) <= NEAR * typical:
        return None  # as nearly always: noise of many channels leaves no step near to another
    values, vectors = eigenvectors(products)
    points = vectors[:, -DIRECTIONS:] * np.sqrt(values[-DIRECTIONS:].clip(0))
    centers = points[_far_from_each_other(points)]
    best, most = None, AWAY
    for count in range(2, MOST_CLUSTERS + 1):
        number = _k_means(points, centers[:count])
        sizes = np.bincount(number, minlength=count)
        large = sizes >= LEAST_MEMBERS
        if large.sum() < 2 or sizes[~large].sum() > OUTLIERS * len(points):
            continue
        level = np.where(large, large.cumsum() - 1, -1)[number]
        away = _least_away(points[level >= 0], level[level >= 0])
        if away > most:
            best, most = level, away
    return best


def maybe_clustered(products: Array, near: Array) -> Array:
    """Whether half of the points are so near to another one that :func:`clusters` may find any: ``[k]`` bool.

    Args:
        products: ``[k, t, t]`` inner products of points, without trend.
        near: ``[k]``, the largest distance of a point from the nearest one, as a part of the typical distance.
    """
    squares = products.diagonal(axis1=1, axis2=2)
    distance = -2 * products
    distance += squares[:, :, None]
    distance += squares[:, None]
    np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
    rows = distance.reshape(len(distance), -1)
    own = rows[:, :: distance.shape[1] + 1]
    own[:] = 0
    typical = rows.mean(1)
    own[:] = np.inf
    # Rounding, and the order of a sum, must not decide.
    found: Array = ~(lower_median(distance.min(1)) > 1.01 * near * typical)
    return found


def take_trend(points: Array) -> None:
    """Take a cubic over time from each coordinate of points, ``[c, t]``, in place."""
    basis = _cubic(points.shape[1]).astype(points.dtype)
    points -= product(product(points, basis), basis.T)


def without_trend(products: Array) -> Array:
    """Return inner products ``[t, t]`` of points from each coordinate of which a cubic over time is taken."""
    left = _no_cubic(len(products))
    return product(product(left, products), left)


@lru_cache(maxsize=64)
def _no_cubic(steps: int) -> Array:
    """What takes from values at some steps the cubic that fits them best: ``[t, t]``."""
    basis = _cubic(steps)
    left: Array = np.eye(steps) - basis @ basis.T
    return left


@lru_cache(maxsize=64)
def _cubic(steps: int) -> Array:
    """Orthonormal polynomials over some steps, up to the cubic: ``[t, 4]``."""
    time = np.linspace(-1, 1, steps)
    basis: Array = np.linalg.qr(np.stack([time**power for power in range(4)], 1))[0]
    return basis


def _far_from_each_other(points: Array) -> list[int]:
    """The positions of points that are as far from each other as they are, the one furthest from 0 first."""
    found = [int(np.square(points).sum(1).argmax())]
    nearest = np.full(len(points), np.inf)
    for _ in range(MOST_CLUSTERS - 1):
        nearest = np.minimum(nearest, np.square(points - points[found[-1]]).sum(1))
        found.append(int(nearest.argmax()))
    return found


def _k_means(points: Array, middle: Array) -> Array:
    """The nearest of some centers of each point, as they move to the middle of their points (Lloyd 1982): ``[t]``."""
    which = np.arange(len(middle))
    number: Array | None = None
    for _ in range(_ROUNDS):
        # The square of a point does not change which center is nearest to it.
        new: Array = (np.square(middle).sum(1) - 2 * (points @ middle.T)).argmin(1)
        if number is not None and (new == number).all():
            break
        number = new
        members = (number[:, None] == which).astype(points.dtype)
        middle = (members.T @ points) / members.sum(0).clip(1)[:, None]
    assert number is not None
    return number


def _least_away(points: Array, level: Array) -> float:
    """How far the two nearest clusters are apart, in deviations of their own points along the line between them."""
    members = (level[:, None] == np.arange(level.max() + 1)).astype(points.dtype)
    sizes = members.sum(0)
    middle = (members.T @ points) / sizes[:, None]
    own = points - middle[level]
    scatter = members.T @ (own[:, :, None] * own[:, None, :]).reshape(len(own), -1)
    one, other = np.array(list(combinations(range(len(sizes)), 2))).T
    line = middle[one] - middle[other]
    far = np.sqrt(np.square(line).sum(1)).clip(1e-12)
    both = (scatter[one] + scatter[other]).reshape(-1, *2 * points.shape[1:])
    along = (line[:, None] @ both @ line[:, :, None])[:, 0, 0].clip(0) / (sizes[one] + sizes[other])
    return float((far / (np.sqrt(along) / far).clip(1e-12)).min())
