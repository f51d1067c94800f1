"""BN405: a layer that goes back to batch statistics which differ from those it was frozen with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import number
from bnmonitor.measures import median
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class UnfreezeShock(Rule):
    """A frozen layer was put into training mode, and its batches look nothing like its running statistics.

    ## What it does
    Flags layers that ran in evaluation mode for some steps of the training and then in training mode, if the first
    batch after that is far from the running statistics of before, in the middle channel.

    ## Why is this bad?
    From one step to the next the layer normalizes with other statistics. What follows it was trained on the output of
    the frozen layer and now sees another distribution, so the loss jumps, and the gradients with it.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> import torch
    >>> modes = torch.arange(64)[:, None] >= 60
    >>> shift = torch.where(modes, 0.9, float("nan"))
    >>> [finding] = UnfreezeShock().check(make_window(training=modes, updates=modes.long(), shift=shift))
    >>> finding.first_step, round(finding.value, 2)
    (60, 0.9)

    Unfrozen where the data is what the statistics say stays quiet:

    >>> UnfreezeShock().check(make_window(training=modes, updates=modes.long(), shift=shift / 9))
    []

    ## What to do
    Estimate the statistics anew before unfreezing, with ``torch.optim.swa_utils.update_bn``, or keep the layer frozen.
    Lower the learning rate for the first steps after it.

    ## Thresholds
    ``shift = .5`` deviations in the mean, or ``log_ratio = .7`` in the log of the deviation (a factor 2): five times
    the worst of a healthy run, where the first batch differs from the running statistics by noise. ``least_frozen = 3``
    steps in evaluation mode in a row before it, so that a mode that changes with every step is not one freeze.

    ## Look-alikes
    Gradual unfreezing where the data matches the statistics; a network that is trained every other step.

    ## References
    VisualComputingInstitute/TrackR-CNN#102; keras-team/keras#9965. The numbers are those of Batch Renormalization
    (Ioffe 2017).
    """

    code: ClassVar[str] = "BN405"
    name: ClassVar[str] = "unfreeze-shock"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger"})
    exact: ClassVar[bool] = True

    shift: float = 0.5
    log_ratio: float = 0.7
    least_frozen: int = 3

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that were unfrozen in the window, with a jump."""
        if window.training.all():
            return []
        at = self._unfrozen(window)
        if not (at >= 0).any():
            return []
        step = at.clamp(min=0)[window.layers.owner]
        here = torch.arange(window.layers.total, device="cpu")
        shift = median(window.shift[step, here].abs(), window)
        log_ratio = median(window.ratio[step, here].log().abs(), window)
        jump = (at >= 0) & ((shift > self.shift) | (log_ratio > self.log_ratio)) & window.ledger.called
        return [
            self._finding(window, i, int(at[i]), float(shift[i]), float(log_ratio[i]))
            for i in jump.nonzero().flatten().tolist()
        ]

    def _unfrozen(self, window: Window) -> Tensor:
        """Position of the first update after the last change to training mode: ``[L]``; -1 if there is none."""
        least = int(self.least_frozen)
        if len(window) <= least:
            return torch.full((len(window.layers),), -1, device="cpu")
        training = window.training.unfold(0, least + 1, 1)
        flips = training[..., -1] & ~training[..., :-1].any(-1)
        steps = torch.arange(len(window), device="cpu")[:, None]
        flipped = torch.where(flips, steps[least:], -1).max(0).values
        updated = (window.updates > 0) & (steps >= flipped)
        return torch.where((flipped >= 0) & updated.any(0), updated.long().argmax(0), -1)

    def _finding(self, window: Window, layer: int, at: int, shift: float, log_ratio: float) -> Finding:
        by_mean = not shift / self.shift < log_ratio / self.log_ratio
        return Finding(
            severity=Severity.WARNING,
            layer=layer,
            first_step=window.steps[at],
            value=shift if by_mean else log_ratio,
            threshold=self.shift if by_mean else self.log_ratio,
            message=f"unfrozen at step {window.steps[at]}: the first batch is {number(shift)} deviations from the "
            f"statistics it was frozen with, and wider or narrower by a factor {number(math.exp(min(log_ratio, 80)))}",
            advice="estimate the statistics anew before unfreezing (torch.optim.swa_utils.update_bn), or keep the "
            "layer in evaluation mode; lower the learning rate for the first steps",
        )
