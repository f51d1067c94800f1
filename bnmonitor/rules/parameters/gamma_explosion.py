"""BN702: a gamma far above its start, or well above it and out of its layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.measures import median, with_affine
from bnmonitor.results import Severity
from bnmonitor.rules.advice import restart, retreat
from bnmonitor.rules.base import Finding, Rule, onset, rate_note
from bnmonitor.window import Window

NEVER = 5.2
"""Standard deviations that one Gaussian number in ten million lies above its mean."""


@dataclass(frozen=True, kw_only=True)
class GammaExplosion(Rule):
    """Gamma of a channel is ten times its value at the start, or five times and far above the rest of its layer.

    ## What it does
    Compares each channel's ``abs(gamma)`` with its own start, which counts as at least the median of its layer at the
    start and at least ``least_start``. Half that growth will do where the channel is also far above the rest of its
    layer, measured by the spread of that layer, and still growing within the window.

    ## Why is this bad?
    Gamma is the only scale that a normalized layer has: a channel with ten times the gamma dominates the others in the
    next layer, and its gradient grows in proportion. In half precision, activations overflow in such a channel first.
    In quantization it takes the range of all other channels (BN707).

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = GammaExplosion().check(make_window(gamma=[1.0, 12.0, 0.9]))
    >>> str(finding.severity), finding.channels, finding.value
    ('warning', (1,), 12.0)

    A residual branch that starts at zero may grow to one:

    >>> GammaExplosion().check(make_window(gamma=[1.0, 0.8, 0.9], start_gamma=0.0))
    []

    ## Code
    Wrong::

        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    Right::

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # after each backward

    ## What to do
    Lower the learning rate of gamma, or clip gradients (``Trainer(gradient_clip_val=1.0)``). Look at the layer that
    reads the channel: often it has learned to cancel the channel.

    ## Thresholds
    ``growth = 10`` against the start, ``least_start = .5``: a gamma that starts at or near zero is expected to grow to
    one, and is judged from 5 on; healthy residual branches reached 2.2.

    ``outlier_growth = 5`` for a channel that is ``spread = 10`` standard deviations of the layer above its median, by
    the median absolute deviation. A gamma of 2.5 among gammas of .2 is far out, but the layer has only become sparse
    around it, as healthy layers do. This standard deviation counts as at least ``least_spread = .2`` of the layer's
    median or of 1, the usual scale of gamma, whichever is larger. Of few channels it is known badly: it has
    ``.37 (n - 1)`` degrees of freedom (the efficiency of the median absolute deviation), and the limit is that of
    Student's t with as many, at the chance of one in ten million. It is 10 from 37 channels on, 15 at 24, and so high
    at 8 that only growth counts. The channel must also have grown by ``growing = 1 %`` within the window.

    ## Look-alikes
    A learning rate that is too high for the whole model moves every gamma: BN704 reports that.

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
    outlier_growth: float = 5.0
    spread: float = 10.0
    least_spread: float = 0.2
    growing: float = 0.01
    least_steps: int = 10

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with an exploded gamma."""
        window = with_affine(window)
        now, segments = window.gamma[-1].abs(), window.layers.segments
        # Nearly always no gamma is that large, and the rest need not be computed.
        if not (now > min(self.growth, self.outlier_growth) * self.least_start).any():
            return []
        grown = now / self._start(window)
        outside = self._outside(window, now, median(now, window))
        limit = _far(segments.sizes, self.spread)[window.layers.owner]
        over = (grown > self.growth) | ((grown > self.outlier_growth) & (outside > limit))
        layers = segments.any(over).nonzero().flatten().tolist()
        return [self._finding(window, layer, over, grown, outside) for layer in layers]

    def _start(self, window: Window) -> Tensor:
        start = window.baseline.gamma.abs()
        return torch.fmax(start, median(start, window)[window.layers.owner]).nan_to_num(0.0).clamp(min=self.least_start)

    def _outside(self, window: Window, now: Tensor, middle: Tensor) -> Tensor:
        """Distance of growing channels from the layer's median, in its standard deviations; 0 for the others."""
        owner = window.layers.owner
        spread = 1.4826 * median((now - middle[owner]).abs(), window)
        spread = torch.maximum(spread, self.least_spread * middle.clamp(min=1.0))
        before = window.gamma[0]
        if window.layers.split:  # told later than at the first step
            before = window.gamma.gather(0, (~window.gamma.isnan()).long().argmax(0, keepdim=True))[0]
        grows = now > (1 + self.growing) * before.abs()
        return ((now - middle[owner]) / spread[owner]).where(grows & (len(window) >= self.least_steps), 0.0)

    def _finding(self, window: Window, layer: int, over: Tensor, grown: Tensor, outside: Tensor) -> Finding:
        span = window.layers.span(layer)
        mine = over[span]
        factor, far = (values[span][mine].max().item() for values in (grown, outside))
        by_growth = factor > self.growth
        channels = tuple(mine.nonzero().flatten().tolist())
        course = (window.gamma[:, span].abs() / self._start(window)[span])[:, mine].nan_to_num(0.0).amax(1)
        step = onset(course > (self.growth if by_growth else self.outlier_growth), window)
        largest = number(window.gamma[-1, span][mine].abs().max().item())
        what = f"{number(factor)}× its start"
        what += "" if by_growth else f" and {number(far)} standard deviations above the layer's median"
        return Finding(
            severity=Severity.WARNING,
            layer=layer,
            channels=channels,
            first_step=step,
            value=factor,
            threshold=self.growth if by_growth else self.outlier_growth,
            message=f"gamma of {count(len(channels), 'channel')} is up to {largest}, {what}{rate_note(window, step)}",
            advice=f"{restart(step)}, and "
            f"{retreat(window, step, 'lower the learning rate of gamma')} or clip gradients: "
            "Trainer(gradient_clip_val=1.0)",
        )


def _far(channels: Tensor, least: float) -> Tensor:
    """Distance from the median, in deviations, that chance does not reach in layers of some channels: ``[L]``.

    The quantile of Student's t at 1e-7 by Wallace's approximation (1959), and at least ``least``.
    """
    free = (0.37 * (channels.double() - 1)).clamp(min=0.5)
    exponent = NEVER**2 / free * ((8 * free + 3) / (8 * free + 1)).square()
    return (free * exponent.clamp(max=60.0).expm1()).sqrt().clamp(min=least)
