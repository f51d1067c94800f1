"""BN107: a mean that dwarfs the deviation."""

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
    """The running mean of a layer has grown to many deviations.

    ## What it does
    Takes the middle of ``abs(running_mean) / sqrt(running_var + eps)`` over a layer's channels, and flags the layer if
    it is above ``limit`` and has grown ``growth``-fold against its own baseline.

    ## Why is this bad?
    The layer subtracts a number much larger than what is left: in float32 the difference loses digits, in half
    precision it is mostly rounding. It also says that the input of the layer is nearly constant: its weights or
    the bias before it have run away.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = MeanExplosion().check(make_window(running_mean=[30.0, -20.0, 40.0]))
    >>> str(finding.severity), round(finding.value, 2)
    ('warning', 30.0)

    A layer that always had a large mean, such as one on raw images, stays quiet:

    >>> MeanExplosion().check(make_window(running_mean=[30.0, -20.0, 40.0], offset=28.0))
    []

    ## What to do
    Look at the layer before: drop its bias (``bias=False``, the normalization removes it anyway), or lower its
    learning rate. In half precision use bf16, or keep this part in float32.

    ## Thresholds
    ``limit = 10`` deviations: fp16 keeps 11 bits, so three to four of them are gone. ``growth = 2``
    against the baseline.

    ## Look-alikes
    Inputs that were never centered: there from the start, so the baseline has them; BN108 speaks of those.

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
        """Find the layers whose middle channel has a large and grown offset."""
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
            message=f"the running mean is {number(value)} deviations in the middle channel, it was {number(before)} "
            f"(limit {number(float(limit[layer]))}){run_note(window, layer, step)}",
            advice="drop the bias of the layer before (bias=False) or lower its learning rate; "
            "in half precision use precision='bf16-mixed'",
        )
