"""The numbers of a history: a function for each statistic, by the name that the history gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from bnmonitor.measures.batches import noise, variance_noise
from bnmonitor.measures.channels import batch_offset, covariate_shift, dead, gamma_update, offset, silent
from bnmonitor.measures.gathered import with_affine
from bnmonitor.measures.reductions import mean, median
from bnmonitor.measures.running_lag import lag, variance_gap
from bnmonitor.window import Window


def _smallest(window: Window) -> Tensor:
    return -window.layers.segments.max(-with_affine(window).gamma[-1].abs())


def _largest(window: Window) -> Tensor:
    return window.layers.segments.max(with_affine(window).gamma[-1].abs())


BY_LAYER: Mapping[str, Callable[[Window], Tensor]] = {
    "batch_var": lambda window: window.variance[-1],
    "running_var": lambda window: mean(window.running_var[-1], window),
    "batch_offset": batch_offset,
    "offset": offset,
    "mean_lag": lambda window: lag(window)[0],
    "log_lag": lambda window: lag(window)[1],
    "var_gap": variance_gap,
    "noise": noise,
    "var_noise": variance_noise,
    "covariate_shift": covariate_shift,
    "gamma": lambda window: median(with_affine(window).gamma[-1].abs(), window),
    "gamma_min": _smallest,
    "gamma_max": _largest,
    "beta": lambda window: median(with_affine(window).beta[-1], window),
    "dead": dead,
    "silent": silent,
    "gamma_grad": lambda window: median(window.gamma_grad[-1].abs(), window),
    "gamma_update": gamma_update,
    "updates": lambda window: window.updates.sum(0),
    "size": lambda window: window.baseline.sizes,
    "values": lambda window: window.baseline.values,
    "training": lambda window: window.training.float().mean(0),
}
"""The numbers of all layers now, ``[L]``; health alone is missing, as it depends on the open alerts."""


def _last(name: str, window: Window, span: slice) -> Tensor:
    rows: Tensor = getattr(with_affine(window), name)
    return rows[-1, span]


def _nonpositive(window: Window, span: slice) -> Tensor:
    return _unknown(span) if window.sample is None else window.sample.output.nonpositive[span]


def _peak(window: Window, span: slice) -> Tensor:
    if window.sample is None:
        return _unknown(span)
    return torch.maximum(window.sample.input.max[span], -window.sample.input.min[span])


def _unknown(span: slice) -> Tensor:
    return torch.full((span.stop - span.start,), torch.nan, device="cpu")


_RECORDED = ("batch_mean", "batch_var", "running_mean", "running_var", "gamma", "beta", "gamma_grad")

BY_CHANNEL: Mapping[str, Callable[[Window, slice], Tensor]] = {
    **{name: partial(_last, name) for name in _RECORDED},
    "nonpositive": _nonpositive,
    "peak": _peak,
}
"""The numbers of some channels now, ``[c]``; NaN where no sample was taken."""
