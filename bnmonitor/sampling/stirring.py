"""How far the update of the weights in one step moves the statistics of the layer behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnmonitor.sampling.autograd import producer_of
from bnmonitor.sampling.reach import modes_active

MOST_SAMPLES = 16
"""Samples of the batch that are sent through the operation again."""

_CONVOLUTION = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")


class Stirring:
    """The operation with weights before a layer that sees the data, as it was in one step's forward.

    Args:
        data: What the operation read, ``[N, C, ...]``.
        weight: Its weight, before the step's update.
        settings: How it convolves; None for a linear map.
    """

    def __init__(self, data: Tensor, weight: Tensor, settings: tuple[Any, ...] | None) -> None:
        self._data, self._weight, self._settings = data[:MOST_SAMPLES], weight, settings
        self._before = weight.detach().clone()

    @classmethod
    def before(cls, x: Tensor) -> Stirring | None:
        """Return the operation that made a layer's input; None if it is not one that reads the data, or not trained."""
        found = None if modes_active() else producer_of(x)  # a mode of the training would see the operation again
        if found is None:
            return None
        node, data, weight = found
        settings = None
        if type(node).__name__ == "ConvolutionBackward0":
            known = tuple(getattr(node, f"_saved_{name}", None) for name in _CONVOLUTION)
            if None in known:
                return None
            settings = known
        return cls(data.detach(), weight, settings)

    @torch.no_grad()
    def measure(self) -> Tensor | None:
        """Return what the update since then changes, by channel; None if there was none, or another weight is there.

        Returns:
            ``[2, C]``: change of the mean in deviations, and of the log variance. On another device than a CPU, which
            nothing waits for, NaN stands for no update.
        """
        weight = self._weight.detach()
        if modes_active() or weight.shape != self._before.shape or weight.device != self._before.device:
            return None
        if weight.untyped_storage().size() == 0:
            return None  # FSDP2 frees the whole weight after the backward; to read it would end the process
        there = weight.device.type != "cpu"
        if not there and torch.equal(weight, self._before):
            return None
        (mean, var), (other, other_var) = (_mean_and_variance(self._applied(w)) for w in (self._before, weight))
        tiny = torch.finfo(var.dtype).tiny
        made = torch.stack([(other - mean) / var.clamp(min=tiny).sqrt(), (other_var / var.clamp(min=tiny)).log()])
        return made.where((weight != self._before).any(), torch.nan) if there else made

    def _applied(self, weight: Tensor) -> Tensor:
        data, weight = self._data.float(), weight.float()
        if self._settings is None:
            return data @ weight.T
        stride, padding, dilation, transposed, output_padding, groups = self._settings
        made: Tensor = torch.ops.aten.convolution(
            data, weight, None, stride, padding, dilation, transposed, output_padding, groups
        )
        return made


def _mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel of ``[N, C, ...]``, which is overwritten.

    On a CPU many times faster than ``torch.var_mean``.
    """
    x = x.flatten(2) if x.dim() > 2 else x[..., None]
    mean = x.mean((0, 2), keepdim=True)
    squares = x.sub_(mean).square_().sum((0, 2))
    return mean.flatten(), squares / (x.shape[0] * x.shape[2] - 1)
