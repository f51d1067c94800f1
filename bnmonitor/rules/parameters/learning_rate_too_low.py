"""BN705: a learning rate that is too low to change the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.measures import mean_over_steps, median
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, rate_note
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class LearningRateTooLow(Rule):
    """Gamma, beta and the batch statistics of every layer do not change, although gradients arrive.

    ## What it does
    Compares the first and the last step of a long window in two ways. The first is the change of gamma and beta per
    step, relative to the size of gamma. The second is the drift of the batch means, relative to what the noise of the
    batches lets one detect. Reports if no trained layer has moved, and either gamma has hardly changed since the start
    or the learning rate is far below its peak.

    ## Why is this bad?
    The run costs as much as one that learns. A network with batch normalization allows higher learning rates than the
    same network without: the usual mistake is to keep the rate of the latter.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = LearningRateTooLow().check(make_window(learning_rate=1e-8))
    >>> str(finding.severity), finding.value
    ('info', 0.0)

    >>> import torch
    >>> moving = torch.linspace(0.9, 1.0, 64)[:, None].expand(64, 3)
    >>> LearningRateTooLow().check(make_window(gamma=moving))
    []

    ## What to do
    Raise the learning rate tenfold, and again, until the loss moves; with a warm-up of a few hundred steps, raise it as
    far as the loss stays stable. If a schedule has lowered it this far, end the run or restart the schedule.

    ## Thresholds
    ``least_ratio = 1e-6`` of gamma per step, or of 1 if gamma began at zero: 100,000 steps would change it by a tenth.
    Below 6e-8 a number near 1 does not change at all in float32. ``least_drift = 1e-4`` standard deviations per step,
    or three standard errors of the batch means if that is more. ``moved = 1e-3`` since the start and ``lowered = 30``
    below the peak: a network that has learned and no longer changes at an unchanged rate has converged. The window must
    have at least ``least_steps = 50`` steps, during which no schedule moves the rate, and four optimizer steps.

    ## Look-alikes
    The tail of a cosine schedule, in which the rate still moves; a converged network; frozen layers, which are not
    judged.

    ## References
    Ioffe and Szegedy, Batch Normalization, 2015, section 4.2.1; Santurkar et al., How Does Batch Normalization Help
    Optimization, 2018.
    """

    code: ClassVar[str] = "BN705"
    name: ClassVar[str] = "learning-rate-too-low"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[frozenset[str]] = frozenset({"affine", "gradients"})

    least_ratio: float = 1e-6
    least_drift: float = 1e-4
    moved: float = 1e-3
    lowered: float = 30.0
    schedule: float = 0.01
    least_steps: int = 50

    def check(self, window: Window) -> list[Finding]:
        """Judge all layers that train together."""
        if len(window) < max(self.least_steps, 4 * window.facts.accumulate) or self._scheduled(window):
            return []
        if self._moves(window):
            return []
        gradient = window.layers.segments.max(window.gamma_grad[-1].abs())
        judged = window.facts.affine_trains & (gradient > 0)
        if not judged.any():
            return []
        ratio = self._ratio(window)
        if not (ratio[judged] < self.least_ratio).all() or not self._low(window)[judged].all():
            return []
        if (self._drifts(window) & judged).any():
            return []
        return [self._finding(window, judged, ratio)]

    def _scheduled(self, window: Window) -> bool:
        rates = window.facts.learning_rates
        return bool(rates) and not min(rates) >= (1 - self.schedule) * max(rates)

    def _moves(self, window: Window) -> bool:
        """Whether the first trained layer has clearly moved, so that the others need no check."""
        layer = int(window.facts.affine_trains.long().argmax())
        span = window.layers.span(layer)
        gradient, gamma, beta = (
            rows.detach()[:, span].numpy() for rows in (window.gamma_grad, window.gamma, window.beta)
        )
        if not bool(window.facts.affine_trains[layer]) or not (np.abs(gradient[-1]) > 0).any():
            return False
        size, began = np.abs(gamma[-1]), window.baseline.gamma[span].numpy() != 0
        least = max(float(np.linalg.norm(np.where(began, size, np.maximum(size, 1.0)))), 1e-12)
        gone = max(float(np.linalg.norm(rows[-1] - rows[0])) for rows in (gamma, beta))
        return gone > 2 * self.least_ratio * (len(window) - 1) * least

    def _ratio(self, window: Window) -> Tensor:
        """Change of gamma and beta per step, relative to the size of gamma: ``[L]``."""
        size = self._scale(window)
        gone = torch.maximum(*(self._size(window, rows[-1] - rows[0]) for rows in (window.gamma, window.beta)))
        return gone / size.clamp(min=1e-12) / (len(window) - 1)

    def _scale(self, window: Window) -> Tensor:
        """Reference for a change: the size of gamma, or 1 for each gamma that began at zero: ``[L]``."""
        gamma = window.gamma[-1].abs()
        return self._size(window, gamma.where(window.baseline.gamma != 0, gamma.clamp(min=1.0)))

    def _size(self, window: Window, values: Tensor) -> Tensor:
        return window.layers.segments.sum(values.square()).sqrt()

    def _low(self, window: Window) -> Tensor:
        """Layers that have not learned yet, or stopped learning because the rate was lowered: ``[L]`` bool."""
        gone = self._size(window, window.gamma[-1] - window.baseline.gamma)
        moved = gone > self.moved * self._scale(window)
        return ~moved | (window.baseline.rate > self.lowered * window.learning_rate())

    def _drifts(self, window: Window) -> Tensor:
        """Layers with batch means that drifted by more than noise explains: ``[L]`` bool."""
        half = len(window) // 2
        halves = [mean_over_steps(rows) for rows in (window.batch_mean[:half], window.batch_mean[-half:])]
        spread = (window.running_var[-1] + window.layers.eps_by_channel).sqrt()
        drift = (halves[1] - halves[0]).abs() / spread
        noise = mean_over_steps(window.batch_mean.diff(dim=0).square_()).sqrt() / spread * (2 / half) ** 0.5
        allowed = torch.maximum(3 * median(noise, window), torch.tensor(self.least_drift * half, device="cpu"))
        return median(drift, window) > allowed

    def _finding(self, window: Window, judged: Tensor, ratio: Tensor) -> Finding:
        layers = judged.nonzero().flatten().tolist()
        value, rate = float(ratio[judged].max()), window.learning_rate()
        return Finding(
            severity=Severity.INFO,
            layer=layers[0],
            layers=tuple(layers),
            first_step=window.steps[0],
            value=value,
            threshold=self.least_ratio,
            message=f"gamma and beta of {count(len(layers), 'layer')} change by at most {number(value)} of gamma per "
            f"step, and the batch statistics do not change{rate_note(window, window.steps[-1])}",
            advice=f"raise the learning rate{f' to {number(10 * rate)}' * (rate > 0)} and check whether the loss moves",
        )
