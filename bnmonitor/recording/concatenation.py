"""Lays tensors of several dtypes end to end on a device, with few kernels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import attrgetter

import torch
from torch import Tensor

_DTYPE = attrgetter("dtype")


class Concatenation:
    """Concatenates tensors into one of another dtype.

    ``torch.cat`` does that as well. On CUDA it is one kernel for each 128 tensors if all have the dtype of the result,
    and else one for each tensor. So each dtype is concatenated by itself, and the numbers are then put in order.
    """

    def __init__(self) -> None:
        self._dtypes: list[torch.dtype] = []
        self._groups: list[list[int]] = []
        self._order: Tensor | None = None

    def into(self, out: Tensor, source: Sequence[Tensor]) -> None:
        """Concatenate tensors, whose sizes stay the same from call to call.

        Args:
            out: Where to, of as many numbers as all of them.
            source: The tensors, one-dimensional.
        """
        dtypes = list(map(_DTYPE, source))
        if dtypes != self._dtypes or self._order is None or self._order.device != out.device:
            self._plan(dtypes, source, out.device)
        parts = [torch.cat([source[i] for i in group]) for group in self._groups]
        if len(parts) == 1:
            out.copy_(parts[0])
        elif self._order is not None:
            torch.index_select(torch.cat([part.to(out.dtype) for part in parts]), 0, self._order, out=out)

    def _plan(self, dtypes: list[torch.dtype], source: Sequence[Tensor], device: torch.device) -> None:
        self._dtypes = dtypes
        self._groups = [[i for i, d in enumerate(dtypes) if d == dtype] for dtype in dict.fromkeys(dtypes)]
        ends = list(accumulate((t.numel() for t in source), initial=0))
        spans = [torch.arange(*each, device="cpu") for each in pairwise(ends)]
        placed = torch.cat([spans[i] for group in self._groups for i in group])
        self._order = placed.argsort().to(device, non_blocking=True)
