"""BN405: an unfrozen layer with batches far from its running statistics."""

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
    """A frozen layer was put into training mode, and its batches are far from its running statistics.

    ## What it does
    Flags layers that ran in evaluation mode for some steps of the training and then in training mode, if the first
    batch after the change is far from the running statistics before it, in the median channel.

    ## Why is this bad?
    From one step to the next the layer normalizes with other statistics. The layers after it were trained on the output
    of the frozen layer and now see another distribution, so the loss and the gradients jump.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> import torch
    >>> modes = torch.arange(64)[:, None] >= 60
    >>> shift = torch.where(modes, 0.9, float("nan"))
    >>> [finding] = UnfreezeShock().check(make_window(training=modes, updates=modes.long(), shift=shift))
    >>> finding.first_step, round(finding.value, 2)
    (60, 0.9)

    An unfrozen layer with data that matches its running statistics stays quiet:

    >>> UnfreezeShock().check(make_window(training=modes, updates=modes.long(), shift=shift / 9))
    []

    ## Code
    Wrong::

        bnmonitor.remedies.thaw(model.backbone)  # its batches are far from its running statistics

    Right::

        bnmonitor.remedies.recalibrate(model, train_loader)
        bnmonitor.remedies.thaw(model.backbone)

    ## What to do
    Estimate the running statistics again before unfreezing, with ``torch.optim.swa_utils.update_bn``, or keep the layer
    frozen. Lower the learning rate for the first steps after unfreezing.

    ## Thresholds
    ``shift = .5`` standard deviations in the mean, or ``log_ratio = .7`` in the log of the standard deviation (a factor
    2): five times the worst of a healthy run, in which the first batch differs from the running statistics only by
    noise. ``least_frozen = 3`` consecutive steps in evaluation mode before the change, so that a mode that changes with
    every step does not count as a freeze.

    ## Look-alikes
    Gradual unfreezing on data that matches the running statistics; a network that is trained every other step.

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
        """Find the layers that were unfrozen within the window and jumped."""
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
            message=f"the layer was unfrozen at step {window.steps[at]}: the mean of the first batch is "
            f"{number(shift)} standard deviations from the frozen running mean, and the standard deviation differs "
            f"by a factor {number(math.exp(min(log_ratio, 80)))}",
            advice="estimate the statistics again before unfreezing (torch.optim.swa_utils.update_bn), or keep the "
            "layer in evaluation mode; lower the learning rate for the first steps",
        )
