"""What the samples of a layer show of the batches: how samples are drawn, and how far an update moves them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bnmonitor.measures.batches import samples_normalized
from bnmonitor.measures.running_lag import LEAST_WARM_UP
from bnmonitor.window import Sample, Window

LAG = 4
"""Steps between the batches that are compared to find blocks of similar batches."""

TURNS = 2, 3, 4
"""Kinds of batches that may take turns."""

DISTANCES = 2, 4, 8, 16, 24
"""Lags at which blocks of batches are looked for, where it is known how far the weights move."""

ALLOWED = 4.0
"""How many times the variance that one sampled update of the weights makes is granted to any update."""

OF_ONE = 4.0
"""How many times more is granted while one sampled update is known: it may have been a small one.

Updates by SGD with momentum .9 at a rate of .1 moved the means of a first layer, over ten steps, by .002 to .02 of a
deviation."""

LEAST_SHAPES = 3
"""Samples that must have the same number of values to show that images have one size."""

LEAST_DRAWS = 15
"""Least degrees of freedom of the variance between samples for a result: those of 16 samples."""


@dataclass(frozen=True)
class Found:
    """What one statistic shows of one layer: fields as in :class:`Independence`.

    Attributes:
        common: Whether what changes from batch to batch is mostly one factor that all channels have in common.
        once: Whether one change of level in the window explains it.
    """

    excess: float
    chance: float
    since: float
    alternation: float
    turns: float
    common: bool = False
    once: bool = False


def samples_after_warm_up(window: Window, layer: int) -> list[Sample]:
    """The samples of a layer that are from after its warm-up, or the newest if none is."""
    known = [s for s in (*window.earlier, window.sample) if s is not None]
    updates = int(window.baseline.updates[layer]) - window.steps[-1]
    later = [s for s in known if updates + s.step >= LEAST_WARM_UP and int(s.calls[layer]) == 1]
    return later or known[-1:]


def views_together(window: Window, layer: int) -> float:
    """How many times the variance of independent samples a batch has that holds two views of each sample: 1 to 2."""
    known = [float(s.paired[layer]) for s in samples_after_warm_up(window, layer) if s.paired is not None]
    together = sum(r for r in known if r == r) / max(len(known), 1)
    return 1 + together


def of_one_shape(window: Window, layer: int) -> bool:
    """Whether all samples, of at least three steps, have as many values each: else the size of the images changes."""
    known = [s for s in (*window.earlier, window.sample) if s is not None and int(s.size[layer]) > 0]
    return len(known) >= LEAST_SHAPES and len({int(s.values[layer]) / int(s.size[layer]) for s in known}) == 1


def stirred_by_updates(window: Window, layer: int) -> Tensor:
    """Variance that sampled updates of the weights gave to batch mean and log variance in the same samples.

    In units of the layer's variance for the mean, and of what independent samples would give for the log variance;
    :data:`OF_ONE` times as much while there is one update alone.

    Returns:
        ``[S, 2, C]`` of the updates and of the layer's channels.
    """
    span, size = window.layers.span(layer), float(samples_normalized(window)[layer])
    found = []
    for sample in samples_after_warm_up(window, layer):
        if sample.stirred is None or sample.unevenness is None:
            continue
        mean, log = sample.stirred[:, span].double().square() / 2
        both = torch.stack([mean, log / sample.unevenness[span].double() * size])
        both = both.where(both.isfinite(), torch.nan)
        usual = both.nanmedian(1, keepdim=True).values
        if bool(usual.isfinite().all()):
            found.append(both.where(both.isfinite(), usual))
    if not found:
        return torch.empty(0, 2, window.layers.channels[layer], dtype=torch.float64, device="cpu")
    return torch.stack(found) * (OF_ONE if len(found) == 1 else 1.0)


def updates_are_typical(window: Window, layer: int) -> bool:
    """Whether sampled updates show how far any update moves the weights before a layer.

    Two do. One may have been a small one, unless its learning rate was no less than half of any in the window.
    """
    span, seen = window.layers.span(layer), samples_after_warm_up(window, layer)
    rates = [s.rate for s in seen if s.stirred is not None and bool(s.stirred[0, span].isfinite().any())]
    return len(rates) > 1 or (len(rates) == 1 and rates[0] >= max(window.facts.learning_rates, default=math.inf) / 2)
