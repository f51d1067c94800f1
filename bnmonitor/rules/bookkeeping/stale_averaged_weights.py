"""BN505: averaged weights that are evaluated with the statistics of other weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.limits import (
    GAP_ERROR,
    GAP_SAMPLES,
    GAP_WARNING,
    LAG_LOG_DEVIATION,
    LAG_MEAN,
    SEVERE_LAG_LOG_DEVIATION,
    SEVERE_LAG_MEAN,
)
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import EVALUATIONS, Window


@dataclass(frozen=True, kw_only=True)
class StaleAveragedWeights(Rule):
    """An average of the weights (SWA, EMA) is evaluated with running statistics that belong to other weights.

    ## What it does
    Looks at weights that an evaluation uses and training does not: those of an averaged copy, and those swapped in for
    the evaluation. Flags layers that were evaluated with exactly the running statistics of the network in training, or
    with statistics that stand still while the weights move and that are far from those of training by now; in
    Lightning, where the evaluation can not be looked into, a weight-averaging callback that leaves the buffers out.
    With ``probe=True`` a kept training batch is run through the averaged weights as they are about to be evaluated, and
    each layer's output with its running statistics is compared with that with the statistics of the batch. That says
    how much it matters, and statistics that stand still need be neither old nor apart if the outputs are.

    ## Why is this bad?
    Averaged weights produce other activations than the weights they were averaged from. With the running statistics of
    the latter, or with those of long ago, evaluation normalizes what it does not see, and the average looks worse than
    it is.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = StaleAveragedWeights().check(make_window(ledger={"borrowed": True}))
    >>> str(finding.severity)
    'warning'

    An average with statistics of its own stays quiet:

    >>> StaleAveragedWeights().check(make_window(ledger={"averaged": True}))
    []

    ## What to do
    Average the buffers as well (``use_buffers=True``), or estimate the statistics of the averaged model before it is
    evaluated: ``torch.optim.swa_utils.update_bn(loader, averaged_model)``.

    ## Thresholds
    None for statistics that are those of training, number for number. Statistics that stand still count after
    ``1 / momentum`` steps, when those of a network in training would have been renewed, at the latest after a window,
    if they are apart from those in training by BN304's ``warn_mean = .1`` or ``warn_log_deviation = .2``;
    ``error_mean = .25`` and ``error_log_deviation = .7``, or never to have moved, make an error. For the probe, BN305's
    ``warn_above = .25``, ``error_above = .5`` and ``least_samples = 32``.

    ## Look-alikes
    Averaged buffers, and statistics that ``update_bn`` estimated. Before the averaged weights differ from the others
    their statistics fit. Statistics that stand still in training too, as of a frozen layer, are the same for all.

    ## References
    Lightning-AI/pytorch-lightning#8811; pytorch/pytorch#84053; mosaicml/composer#624;
    huggingface/pytorch-image-models#102.
    """

    code: ClassVar[str] = "BN505"
    name: ClassVar[str] = "stale-averaged-weights"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger", "whole"})
    exact: ClassVar[bool] = True
    yields_to: ClassVar[frozenset[str]] = frozenset({"BN404"})

    warn_mean: float = LAG_MEAN
    error_mean: float = SEVERE_LAG_MEAN
    warn_log_deviation: float = LAG_LOG_DEVIATION
    error_log_deviation: float = SEVERE_LAG_LOG_DEVIATION
    warn_above: float = GAP_WARNING
    error_above: float = GAP_ERROR
    least_samples: int = GAP_SAMPLES

    def check(self, window: Window) -> list[Finding]:
        """Find the averaged layers with statistics of other weights."""
        ledger = window.ledger
        evaluated = ledger.evaluated[EVALUATIONS].any(0)
        callback = evaluated & window.layers.tracked & ~ledger.averaged & window.facts.averages_without_buffers
        still = (window.beside | ledger.swapped) & evaluated & (ledger.behind > 0)
        if not (still | ledger.borrowed | callback).any():
            return []
        gap = self._gap(window).where(still | ledger.borrowed, 0.0)
        mean, deviation = ledger.apart
        apart = (mean > self.warn_mean) | (deviation > self.warn_log_deviation)
        needed = (1 / window.momentum[-1].nan_to_num(1.0)).clamp(max=len(window) - 1)
        behind = still & (ledger.behind >= needed) & apart
        far = (mean > self.error_mean) | (deviation > self.error_log_deviation)
        error = (behind & (far | self._unmoved(window))) | (gap > self.error_above)
        stale = ledger.borrowed | callback | behind | (gap > self.warn_above)
        return [
            self._finding(window, i, float(gap[i]), error=bool(error[i])) for i in stale.nonzero().flatten().tolist()
        ]

    def _unmoved(self, window: Window) -> Tensor:
        """Copies whose statistics have never moved since watching began: ``[L]`` bool."""
        base = window.baseline
        moved = (window.running_mean[-1] != base.mean) | (window.running_var[-1] != base.var)
        return ~window.layers.segments.any(moved) & ~window.ledger.swapped

    def _gap(self, window: Window) -> Tensor:
        """What the probe told of averaged weights: ``[L]``, 0 where it did not run."""
        gaps = window.facts.averaged_gaps
        if gaps is None:
            return torch.zeros(len(window.layers), dtype=torch.float64, device="cpu")
        return gaps.gap.where(gaps.size >= self.least_samples, 0.0).nan_to_num(0.0)

    def _finding(self, window: Window, layer: int, gap: float, *, error: bool) -> Finding:
        steps = int(window.ledger.behind[layer])
        whose = f"have not moved for {count(steps, 'step')}" if steps else "are those of the weights in training"
        told = f"; on a training batch its output differs by {number(100 * gap)} % from that in training mode"
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            first_step=window.steps[-1],
            value=gap,
            threshold=(self.error_above if gap > self.error_above else self.warn_above) if gap else 0.0,
            message=f"averaged weights are evaluated here, but the running statistics {whose}{told if gap else ''}",
            advice="average the buffers as well (use_buffers=True), or estimate the statistics before evaluation: "
            "torch.optim.swa_utils.update_bn(loader, averaged_model)",
        )
