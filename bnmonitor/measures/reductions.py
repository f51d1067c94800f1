"""Reductions over the channels of each layer of a window."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor

from bnmonitor.window import Window

R = TypeVar("R")


def once(measure: Callable[[Window], R]) -> Callable[[Window], R]:
    """Compute a measure once for each window, and keep the result in its memo."""
    return _remembered(measure, lambda window: window.memo)


def once_of_rows(measure: Callable[[Window], R]) -> Callable[[Window], R]:
    """The same for a measure of the recorded statistics alone, which another baseline does not change."""
    return _remembered(measure, lambda window: window.row_memo)


def _remembered(measure: Callable[[Window], R], memo_of: Callable[[Window], dict[str, Any]]) -> Callable[[Window], R]:
    @wraps(measure)
    def remembered(window: Window) -> R:
        memo = memo_of(window)
        if measure.__name__ not in memo:
            memo[measure.__name__] = measure(window)
        value: R = memo[measure.__name__]
        return value

    return remembered


def median(values: Tensor, window: Window) -> Tensor:
    """Middle channel of each layer: ``[..., C]`` to ``[..., L]``."""
    return window.layers.segments.median(values)


def may_exceed(values: Tensor, limit: float, window: Window) -> bool:
    """Whether the median of a layer may be above a limit: False is certain, and costs a third of the median."""
    segments = window.layers.segments
    return bool((2 * segments.count(~(values <= limit)) >= segments.sizes).any())


def mean(values: Tensor, window: Window) -> Tensor:
    """Mean of each layer's channels, NaN left out: ``[C]`` to ``[L]``; NaN for a layer of only NaN."""
    return window.layers.segments.sum(values) / window.layers.segments.count(~values.isnan())


def share(mask: Tensor, window: Window) -> Tensor:
    """Share of each layer's channels that are set in a ``[C]`` mask: ``[L]``."""
    return window.layers.segments.count(mask).double() / window.layers.segments.sizes


def _some(values: Tensor, window: Window) -> Tensor:
    """The channels that stand for their layers: ``[..., C]`` to ``[..., S]``."""
    some = window.layers.some
    return values if some is None else values.index_select(-1, some[0])


def _median_of_some(values: Tensor, window: Window) -> Tensor:
    """Median of the channels that stand for their layers: ``[S]`` to ``[L]``."""
    some = window.layers.some
    return (window.layers.segments if some is None else some[1]).median(values)
