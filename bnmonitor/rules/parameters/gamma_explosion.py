"""BN702: gamma that has grown out of proportion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.measures import median
from bnmonitor.results import Severity
from bnmonitor.rules.advice import retreat
from bnmonitor.rules.base import Finding, Rule, onset, rate_note
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class GammaExplosion(Rule):
    """Gamma of a channel is ten times what it was at the start, or far outside its layer and still growing.

    ## What it does
    Compares each channel's ``abs(gamma)`` with its own start, which counts as at least the middle of its layer at the
    start and at least ``least_start``. Besides, looks for channels that are far from the rest of their layer, by the
    layer's own spread, and have grown through the window.

    ## Why is this bad?
    Gamma is the only scale that a normalized layer has: a channel with ten times the gamma drowns the others in the
    next layer, and its gradient grows alike. In half precision it is where activations begin to overflow, and in
    quantization it takes the range of all others (BN707).

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = GammaExplosion().check(make_window(gamma=[1.0, 12.0, 0.9]))
    >>> str(finding.severity), finding.channels, finding.value
    ('warning', (1,), 12.0)

    A residual branch that starts at zero may grow to one:

    >>> GammaExplosion().check(make_window(gamma=[1.0, 0.8, 0.9], start_gamma=0.0))
    []

    ## What to do
    Lower the learning rate of gamma, or clip gradients (``Trainer(gradient_clip_val=1.0)``); look at what reads the
    channel: often it has learned to cancel it.

    ## Thresholds
    ``growth = 10`` against the start, ``least_start = .5``: a gamma that starts at zero or near it is on its way to
    one, and is judged from 5 on; healthy residual branches reached 2.2. ``spread = 10`` deviations of the layer, by the
    median absolute deviation, of which a Gaussian layer of any width never has one; the deviation counts as at least
    ``least_spread = .2`` of the layer's middle or of 1, the scale that gamma is made for, so that neither a layer in
    which all gammas are alike nor one that has only left zero is judged by what is no spread yet. And the channel must
    have grown by ``growing = 1 %`` within the window.

    ## Look-alikes
    A learning rate that is too high for the whole model moves every gamma: BN704 speaks then.

    ## References
    Luo et al., Towards Understanding Regularization in Batch Normalization, 2019; deepinsight/insightface#277.
    """

    code: ClassVar[str] = "BN702"
    name: ClassVar[str] = "gamma-explosion"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"affine"})
    follows: ClassVar[frozenset[str]] = frozenset({"BN704"})

    growth: float = 10.0
    least_start: float = 0.5
    spread: float = 10.0
    least_spread: float = 0.2
    growing: float = 0.01
    least_steps: int = 10

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with an exploded gamma."""
        now, segments = window.gamma[-1].abs(), window.layers.segments
        middle = median(now, window)
        room = self.spread * self.least_spread * middle.clamp(min=1.0)
        # Nearly always nothing is that large, and the rest need not be computed.
        limit = (middle + room).clamp(max=self.growth * self.least_start)
        if not (now > limit[window.layers.owner]).any():
            return []
        grown = now / self._start(window)
        outside = self._outside(window, now, middle)
        over = (grown > self.growth) | (outside > self.spread)
        layers = segments.any(over).nonzero().flatten().tolist()
        return [self._finding(window, layer, over, grown, outside) for layer in layers]

    def _start(self, window: Window) -> Tensor:
        start = window.baseline.gamma.abs()
        return torch.fmax(start, median(start, window)[window.layers.owner]).nan_to_num(0.0).clamp(min=self.least_start)

    def _outside(self, window: Window, now: Tensor, middle: Tensor) -> Tensor:
        """Distance from the layer's middle, in its deviations, of the channels that still grow; 0 for the others."""
        owner = window.layers.owner
        spread = 1.4826 * median((now - middle[owner]).abs(), window)
        spread = torch.maximum(spread, self.least_spread * middle.clamp(min=1.0))
        grows = now > (1 + self.growing) * window.gamma[0].abs()
        return ((now - middle[owner]) / spread[owner]).where(grows & (len(window) >= self.least_steps), 0.0)

    def _finding(self, window: Window, layer: int, over: Tensor, grown: Tensor, outside: Tensor) -> Finding:
        span = window.layers.span(layer)
        mine = over[span]
        factor, far = (values[span][mine].max().item() for values in (grown, outside))
        by_growth = factor > self.growth
        channels = tuple(mine.nonzero().flatten().tolist())
        course = (window.gamma[:, span].abs() / self._start(window)[span])[:, mine].nan_to_num(0.0).amax(1)
        step = onset(course > (self.growth if by_growth else 0.9 * course[-1].item()), window)
        largest = number(window.gamma[-1, span][mine].abs().max().item())
        what = f"{number(factor)} times its start" if by_growth else f"{number(far)} deviations from the layer's middle"
        return Finding(
            severity=Severity.WARNING,
            layer=layer,
            channels=channels,
            first_step=step,
            value=factor if by_growth else far,
            threshold=self.growth if by_growth else self.spread,
            message=f"gamma of {count(len(channels), 'channel')} is up to {largest}, {what}{rate_note(window, step)}",
            advice=f"{retreat(window, step, 'lower the learning rate of gamma')}, or clip gradients: "
            "Trainer(gradient_clip_val=1.0)",
        )
