"""BN107: a running mean much larger than the standard deviation, or a batch mean that leaps away from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import number
from bnmonitor.limits import LAG_MEAN
from bnmonitor.measures import may_have_moved, moved_mean, moves, offset, offsets, warm
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, onset, run_note
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class MeanExplosion(Rule):
    """The running mean of a layer has grown to many standard deviations, or its batch mean has leapt away from it.

    ## What it does
    Takes the median of ``abs(running_mean) / sqrt(running_var + eps)`` over the channels of a layer. Flags the layer if
    this median is above ``limit`` and has grown ``growth``-fold against the layer's own baseline.

    Also measures how far the batch means of the newest steps are from the running mean before them, to the same side.
    Flags a layer in the middle of the network if that is a leap of more than ``leap`` standard deviations, far beyond
    its usual distance, and fewer than half of the layers leap: something has moved this layer.

    ``bnmonitor audit``, which knows no baseline, flags a median above 100 behind another layer, and any above 1e4.

    ## Why is this bad?
    The layer subtracts a number that is much larger than what is left. In float32 the difference loses digits; in half
    precision it is mostly rounding error. It also means that the input of the layer is nearly constant: the weights or
    the bias before the layer have grown out of control.

    After a leap the running mean needs many steps to follow, and evaluation subtracts a mean of before: at the usual
    momentum it is still off by an eighth of the leap after twenty steps.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = MeanExplosion().check(make_window(running_mean=[30.0, -20.0, 40.0]))
    >>> str(finding.severity), round(finding.value, 2)
    ('warning', 30.0)

    A layer that always had a large mean, such as one on raw images, stays quiet:

    >>> MeanExplosion().check(make_window(running_mean=[30.0, -20.0, 40.0], offset=28.0))
    []

    Two standard deviations at once are a leap:

    >>> import torch
    >>> means = torch.zeros(64, 9)
    >>> means[56:, 3:6] = 2.0
    >>> [finding] = MeanExplosion().check(make_window(channels=(3, 3, 3), batch_mean=means))
    >>> finding.layer, finding.first_step, round(finding.value, 2)
    (1, 56, 2.0)

    ## What to do
    Look at the layer before: remove its bias (``bias=False``; the normalization cancels it anyway), or lower its
    learning rate. After a leap, find what wrote its weights or its input at that step; before an evaluation soon after
    it, call :func:`bnmonitor.remedies.recalibrate`. In half precision use bf16, or keep this part in float32.

    ## Thresholds
    ``limit = 10`` standard deviations: fp16 keeps 11 bits, so three to four of them are lost. ``growth = 2`` against
    the baseline. ``leap = 1`` standard deviation and ``leap_growth = 4`` times the usual batch distance, in three of
    four of the newest ten steps. Nothing is a leap during warm-up, nor without calm times to compare with.

    ## Look-alikes
    Inputs that were never centered have a large mean from the start, so the baseline includes it. BN108 reports those.
    Data that changes at once moves the layers that see it, which are not judged for a leap; a learning rate that is too
    high moves half of the layers (BN704); layers that are unfrozen begin to move (BN405); one odd batch is over at the
    next step (BN606).

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
    leap: float = 1.0
    leap_growth: float = 4.0

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with a median channel that has a large offset which has grown, or that has leapt."""
        now = offset(window)
        limit = (self.growth * window.baseline.offset).clamp(min=self.limit)
        grown = now > limit
        found = [self._finding(window, now, limit, i) for i in grown.nonzero().flatten().tolist()]
        if not may_have_moved(window, self.leap):
            return found
        return [*found, *self._leaps(window, grown)]

    def _leaps(self, window: Window, grown: torch.Tensor) -> list[Finding]:
        """Judge the batches of the newest steps by those before; ``grown`` are layers that are told of already."""
        if window.facts.thawed is not None and window.facts.thawed >= window.steps[0]:
            return []
        calm, structure = window.baseline.batch_distance, window.facts.structure
        # A cumulative average (momentum None) does not follow, so that its distance says nothing.
        known = window.training[-1] & warm(window)[-1] & calm.isfinite() & ~window.momentum[-1].isnan()
        far, judged = moved_mean(window), int(known.sum())
        leapt = known & (far > self.leap) & (far > self.leap_growth * calm)
        # Most layers at once are not the fault of one, nor is the layer at fault that sees data which have changed.
        if not leapt.any() or int(leapt.sum()) >= max(judged / 2, min(2, judged)):
            return []
        leapt &= torch.arange(len(window.layers), device="cpu") > 0
        if structure is not None and len(structure.places) == len(window.layers):
            leapt &= ~structure.roots()
        return [self._leap(window, layer, float(far[layer])) for layer in (leapt & ~grown).nonzero().flatten().tolist()]

    def _leap(self, window: Window, layer: int, far: float) -> Finding:
        step, momentum = onset(moves(window, layer) > far / 2, window), float(window.momentum[-1, layer])
        lasts = math.ceil(math.log(LAG_MEAN / far) / math.log1p(-min(momentum, 0.999))) if momentum > 0 else 0
        soon = f"an evaluation within {lasts} steps of that" if lasts else "an evaluation"
        return Finding(
            severity=Severity.WARNING,
            layer=layer,
            first_step=step,
            value=far,
            threshold=max(self.leap, self.leap_growth * float(window.baseline.batch_distance[layer])),
            message=f"the batch mean has leapt by {number(far)} standard deviations in the median channel, and the "
            f"running mean has to follow{run_note(window, layer, step)}",
            advice=f"find what moved the weights before this layer, or its input, at step {step}; before {soon} call "
            "bnmonitor.remedies.recalibrate(model, loader)",
        )

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
