"""BN306: running statistics that code other than PyTorch's forward writes at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bnmonitor._text import number
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Recovery, Window

EARLY = 20
"""Steps in which code may give the batches another weight than later, as by a copy of the first one."""

STRAIGHT = 0.95
"""Cosine between the move of a mean and the way to the batch from which on it went to just that batch."""


@dataclass(frozen=True, kw_only=True)
class HandwrittenStatistics(Rule):
    """The running statistics of a layer are written at every step, and not by the update that its settings describe.

    ## What it does
    Finds layers in training whose running statistics move at nearly every step, while none of these moves is an update
    by PyTorch's forward: quantization-aware training with folded layers, a synchronized BatchNorm of one's own, fused
    kernels. What each batch was cannot be computed then. How long such statistics remember is estimated from
    themselves: the second differences of an average that remembers one batch are correlated by ``-2 / 3`` from step to
    step, those of one that remembers many by ``-1 / 2``, and a slow drift of the weights does not show in them. It is
    an info, and a warning if the statistics surely remember hardly more than one batch.

    In ``bnmonitor audit``, a note on statistics that no update is counted for; a warning if some layers have other
    statistics than in the ``--reference``, and no weight has changed.

    ## Why is this bad?
    It need not be. But ``momentum`` says nothing of what that code does, and rules that need the batches cannot judge
    the layer. An average of one batch makes evaluation as noisy as training mode, and a swapped convention of momentum
    shows nowhere else.

    ## Example
    >>> import torch
    >>> from dataclasses import replace
    >>> from bnmonitor.testing import make_sample, make_window
    >>> from bnmonitor.window import Recovery
    >>> window = make_window(running_mean=torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
    >>> window.recovery[:] = Recovery.FOREIGN
    >>> batch = make_sample(window.layers, step=window.steps[1], input={"mean": window.running_mean[1]})
    >>> [finding] = HandwrittenStatistics().check(replace(window, sample=batch))
    >>> str(finding.severity), finding.value > 0.9
    ('warning', True)

    Statistics that PyTorch's forward updates stay quiet:

    >>> HandwrittenStatistics().check(make_window())
    []

    ## Code
    Wrong::

        self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * mean)  # remembers one batch at momentum .1

    Right::

        self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)  # PyTorch's convention
        self.num_batches_tracked.add_(1)  # and bnmonitor can compute what each batch was

    ## What to do
    Check the momentum that this code applies. If it follows PyTorch's formula, writes into the buffers in place
    (``self.running_mean = ...`` makes new ones) and counts ``num_batches_tracked``, the batches can be recovered and
    all rules judge the layer.

    ## Thresholds
    ``least_share = .9`` of at least ``least_steps = 20`` steps. ``warn_above = .5`` is BN301's limit for a momentum.
    Three standard errors over the channels below the estimate must still be above ``surely_above = .2``. Of 64 steps of
    16 channels, a momentum of .9 is told from .1 that way. Batches of two kinds that take turns look like a short
    memory too, so the batch of a sampled step in the window must show a momentum above ``warn_above`` as well: without
    samples the rule stays an info. If the mean went straight to that batch (cosine above .95, after the first 20 steps,
    in which code may copy a batch), what that step shows is exact, and no estimate is asked.

    ## Look-alikes
    Averages of the weights are written at every step too, and are no layers in training. Weights that are swapped or
    loaded now and then change few steps. A layer with several calls a step has its own updates.

    ## References
    mapillary/inplace_abn#45; pytorch/pytorch#31247.
    """

    code: ClassVar[str] = "BN306"
    name: ClassVar[str] = "handwritten-statistics"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers"})

    least_share: float = 0.9
    least_steps: int = 20
    warn_above: float = 0.5
    surely_above: float = 0.2

    def check(self, window: Window) -> list[Finding]:
        """Find the layers whose statistics something else writes at every step."""
        foreign = window.recovery == Recovery.FOREIGN
        if len(window) < self.least_steps or not (self.least_share <= 0 or foreign.any()):
            return []
        written = (foreign.double().mean(0) >= self.least_share) & window.training[-1] & ~window.auxiliary
        written &= window.layers.tracked
        layers = written.nonzero().flatten().tolist()
        if not layers:
            return []
        momenta = [self._momentum(window, layer) for layer in layers]
        layers, momenta = _moving(layers, momenta)
        if not layers:
            return []
        judged = [self._judged(window, layer, *found) for layer, found in zip(layers, momenta, strict=True)]
        short = any(each.short for each in judged)
        told = sorted((each for each in judged if each.short or not short), key=lambda each: -each.momentum)
        worst, layers = told[0], sorted(each.layer for each in told)
        return [
            Finding(
                severity=Severity.WARNING if short else Severity.INFO,
                layer=worst.layer,
                layers=(worst.layer, *(i for i in layers if i != worst.layer)),
                first_step=window.steps[0],
                value=worst.momentum,
                threshold=self.warn_above,
                message="code other than PyTorch's forward writes the running statistics at every step, with a "
                f"momentum of about {number(round(worst.momentum, 2))} by {worst.source}"
                + (": they remember hardly more than one batch" if short else "; the batches cannot be recovered"),
                advice="let that code keep 1 - momentum of the old value"
                if short
                else "let it write PyTorch's formula into the buffers in place (no new tensors) and add 1 to "
                "num_batches_tracked: then every rule judges it",
            )
        ]

    def _judged(self, window: Window, layer: int, value: float, least: float) -> _Judged:
        shown, exact = _shown(window, layer)
        if exact:
            return _Judged(layer, shown, "the batch of a sampled step", shown > self.warn_above)
        short = min(value, shown) > self.warn_above and least > self.surely_above
        return _Judged(layer, value, "their own movement", short)

    def _momentum(self, window: Window, layer: int) -> tuple[float, float]:
        """The momentum of an average, by its second differences, and its lower bound; NaN if it does not move."""
        rows: Tensor = window.running_mean[:, window.layers.span(layer)].double()
        moves = rows.diff(dim=0)
        if float((moves != 0).any(1).double().mean()) < self.least_share:
            return float("nan"), float("nan")
        bends = moves.diff(dim=0)
        scale = bends.square().sum(0)
        together = ((bends[1:] * bends[:-1]).sum(0) / scale)[scale > 0]
        if not len(together):
            return float("nan"), float("nan")
        error = float(together.std()) / math.sqrt(len(together)) if len(together) > 1 else 0.2
        return _of_correlation(float(together.mean())), _of_correlation(float(together.mean()) + 3 * error)


class _Judged(NamedTuple):
    """A layer, its momentum, what shows it, and whether it is surely too large."""

    layer: int
    momentum: float
    source: str
    short: bool


def _shown(window: Window, layer: int) -> tuple[float, bool]:
    """The momentum of a sampled step in the window: how far the mean went towards that batch; NaN without one.

    The mean of a part of a large batch is off from the batch's own, so the distance is fitted to the move, not the move
    to the distance. The value is exact if the mean went nowhere else; but code may copy its first batch.
    """
    sample = window.sample
    if sample is None or sample.step not in window.steps:
        return math.nan, False
    at, span = window.steps.index(sample.step), window.layers.span(layer)
    calls = int(sample.calls[layer])
    if calls < 1 or (at == 0 and sample.step > 0):
        return math.nan, False
    old = (window.running_mean[at - 1] if at else window.baseline.mean)[span].double()
    move, distance = window.running_mean[at, span].double() - old, sample.input.mean[span].double() - old
    scale = sample.input.var[span].double() + window.layers.eps_by_channel[span]
    together, size, far = (float((a * b / scale).sum()) for a, b in ((move, distance), (move, move), (distance,) * 2))
    if not together > 0 or not math.isfinite(size):
        return math.nan, False
    exact = sample.step >= EARLY and together > STRAIGHT * math.sqrt(size * far)
    return 1.0 - float((1 - min(size / together, 1.0)) ** (1 / calls)), exact


def _of_correlation(value: float) -> float:
    """The momentum at which second differences of an average of independent batches are correlated like this."""
    kept = torch.linspace(0.999, 0, 200, dtype=torch.float64, device="cpu")  # of the old value: 1 - momentum
    same = 6 - 8 * kept + 2 * kept**2
    next_ = -4 + 7 * kept - 4 * kept**2 + kept**3
    return float(1 - kept[int((next_ / same - value).abs().argmin())])


def _moving(layers: list[int], momenta: list[tuple[float, float]]) -> tuple[list[int], list[tuple[float, float]]]:
    known = [(layer, found) for layer, found in zip(layers, momenta, strict=True) if found[0] == found[0]]
    return [layer for layer, _ in known], [found for _, found in known]
