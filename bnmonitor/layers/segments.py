"""Reductions over the channels of each layer, for layers laid end to end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


class Segments:
    """Reduces ``[..., C]`` to ``[..., L]``: the channels of all layers to a number of each layer.

    NumPy does it in less time than PyTorch, for masks in a small part of it. Tensors are on the CPU, and results have
    no graph.

    Args:
        channels: Number of channels of each layer.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        sizes = np.array(channels, dtype=np.int64)
        starts = sizes.cumsum() - sizes
        self.sizes = torch.from_numpy(sizes.clip(min=1))
        """Channels of each layer, 1 at least: ``[L]`` int64."""
        self._sizes = sizes
        # NumPy reads an empty segment as one of a single channel.
        self._filled = sizes.nonzero()[0]
        self._starts = starts[self._filled]
        # Layers of one width are one matrix, so that a median is one call for all of them.
        self._by_width = [
            ((sizes == width).nonzero()[0], starts[sizes == width, None] + np.arange(width))
            for width in sorted(set(channels) - {0})
        ]

    def count(self, mask: Tensor) -> Tensor:
        """How many channels of each layer are set in a mask: int64."""
        return torch.from_numpy(self._spread(np.add.reduceat(_array(mask), self._starts, -1, np.int64), 0))

    def any(self, mask: Tensor) -> Tensor:
        """Whether a channel of each layer is set in a mask."""
        return torch.from_numpy(self._spread(np.logical_or.reduceat(_array(mask), self._starts, -1), False))

    @np.errstate(all="ignore")
    def sum(self, values: Tensor) -> Tensor:
        """Sum of each layer's values. NaN is left out."""
        array = _array(values)
        return torch.from_numpy(self._sum(array if _complete(array) else np.where(np.isnan(array), 0, array)))

    @np.errstate(all="ignore")
    def mean(self, values: Tensor) -> Tensor:
        """Mean of each layer's values. NaN is left out; a layer of only NaN gives NaN."""
        return torch.from_numpy(self.mean_of(_array(values)))

    def mean_of(self, array: Array) -> Array:
        """The same of a NumPy array."""
        if _complete(array):
            mean: Array = np.divide(self._sum(array), self._sizes, dtype=array.dtype)
            return mean
        holes = np.isnan(array)
        known = self.count(torch.from_numpy(~holes)).numpy()
        return np.where(known > 0, self._sum(np.where(holes, 0, array)) / known.clip(1), np.nan).astype(array.dtype)

    @np.errstate(all="ignore")
    def max(self, values: Tensor) -> Tensor:
        """Largest value of each layer. NaN is left out; a layer of only NaN gives NaN."""
        return torch.from_numpy(self.max_of(_array(values)))

    def max_of(self, array: Array) -> Array:
        """The same of a NumPy array."""
        return self._spread(np.fmax.reduceat(array, self._starts, -1), np.nan)

    @np.errstate(all="ignore")
    def median(self, values: Tensor) -> Tensor:
        """Middle value of each layer, the lower of two. NaN is left out; a layer of only NaN gives NaN."""
        array = _array(values)
        out = np.full((*array.shape[:-1], len(self._sizes)), np.nan, array.dtype)
        whole = _complete(array)
        for layers, at in self._by_width:
            rows, middle = array[..., at], (at.shape[1] - 1) // 2
            found = np.partition(rows, middle)[..., middle]
            if not whole:
                holes = np.isnan(rows.sum(-1))
                found[holes] = torch.from_numpy(rows[holes]).nanmedian(-1).values
            out[..., layers] = found
        return torch.from_numpy(out)

    def _sum(self, array: Array) -> Array:
        return self._spread(np.add.reduceat(array, self._starts, -1), 0)

    def _spread(self, reduced: Array, otherwise: float) -> Array:
        """Insert a value for the layers without a channel."""
        if len(self._filled) == len(self._sizes):
            return reduced
        out = np.full((*reduced.shape[:-1], len(self._sizes)), otherwise, reduced.dtype)
        out[..., self._filled] = reduced
        return out


def _complete(array: Array) -> bool:
    """Whether no value is NaN, by the sum: it is NaN if one value is, and costs a tenth of a search."""
    return not np.isnan(array.sum())


def _array(values: Tensor) -> Array:
    array: Array = (values.detach() if values.requires_grad else values).numpy()
    return array
