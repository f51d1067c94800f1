"""BN107: a running mean much larger than the standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import number
from bnmonitor.measures import offset, offsets
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, onset, run_note
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class MeanExplosion(Rule):
    """The running mean of a layer has grown to many standard deviations.

    ## What it does
    Takes the median of ``abs(running_mean) / sqrt(running_var + eps)`` over the channels of a layer. Flags the layer if
    this median is above ``limit`` and has grown ``growth``-fold against the layer's own baseline.

    ``bnmonitor audit``, which knows no baseline, flags a median above 100 behind another layer, and any above 1e4.

    ## Why is this bad?
    The layer subtracts a number that is much larger than what is left. In float32 the difference loses digits; in half
    precision it is mostly rounding error. It also means that the input of the layer is nearly constant: the weights or
    the bias before the layer have grown out of control.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = MeanExplosion().check(make_window(running_mean=[30.0, -20.0, 40.0]))
    >>> str(finding.severity), round(finding.value, 2)
    ('warning', 30.0)

    A layer that always had a large mean, such as one on raw images, stays quiet:

    >>> MeanExplosion().check(make_window(running_mean=[30.0, -20.0, 40.0], offset=28.0))
    []

    ## What to do
    Look at the layer before: remove its bias (``bias=False``; the normalization cancels it anyway), or lower its
    learning rate. In half precision use bf16, or keep this part in float32.

    ## Thresholds
    ``limit = 10`` standard deviations: fp16 keeps 11 bits, so three to four of them are lost. ``growth = 2`` against
    the baseline.

    ## Look-alikes
    Inputs that were never centered have a large mean from the start, so the baseline includes it. BN108 reports those.

    ## References
    matterport/Mask_RCNN#573; TuSimple/mx-maskrcnn#127.
    """

    code: ClassVar[str] = "BN107"
    name: ClassVar[str] = "mean-explosion"
    severity: ClassVar[Severity] = Severity.WARNING
    holds: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset({"BN106", "BN704"})

    limit: float = 10.0
    growth: float = 2.0

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with a median channel that has a large offset which has grown."""
        now = offset(window)
        limit = (self.growth * window.baseline.offset).clamp(min=self.limit)
        return [self._finding(window, now, limit, i) for i in (now > limit).nonzero().flatten().tolist()]

    def _finding(self, window: Window, now: torch.Tensor, limit: torch.Tensor, layer: int) -> Finding:
        span = window.layers.span(layer)
        sigma = (window.running_var[:, span] + window.layers.eps[layer]).sqrt()
        over = (window.running_mean[:, span].abs() / sigma).median(1).values > limit[layer]
        step = onset(over, window)
        far = window.layers.locate(offsets(window) > limit[layer], layer)
        value, before = float(now[layer]), float(window.baseline.offset[layer])
        return Finding(
            severity=Severity.WARNING,
            layer=layer,
            channels=() if len(far) == window.layers.channels[layer] else far,
            first_step=step,
            value=value,
            threshold=float(limit[layer]),
            message=f"the running mean is {number(value)} standard deviations in the median channel (was "
            f"{number(before)}, limit {number(float(limit[layer]))}){run_note(window, layer, step)}",
            advice="remove the bias of the layer before (bias=False) or lower its learning rate; "
            "in half precision use precision='bf16-mixed'",
        )
