"""BN505: averaged weights evaluated with the running statistics of other weights."""

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
    """Averaged weights (SWA, EMA) are evaluated with running statistics that belong to other weights.

    ## What it does
    Looks at weights that an evaluation uses and training does not: those of an averaged copy, and those swapped in for
    the evaluation, whether they are taken back before it ends or not (if not, they have to be further from the weights
    in training than training moves in ``1 / momentum`` steps). A copy is an ``AveragedModel``, or any other layer that
    training does not update and whose name ends like that of one that it does. Flags layers that were evaluated with
    exactly the running statistics of the network in training, or with statistics that did not change while the weights
    did and are by now far from those of training. In Lightning, where the rule cannot observe such an evaluation, it
    flags a weight-averaging callback that leaves the buffers out.

    With ``probe=True`` bnmonitor runs a kept training batch through the averaged weights just before they are
    evaluated. It compares each layer's output under its running statistics with its output under the statistics of the
    batch. This shows how much the fault matters, and unchanged statistics then need to be neither old nor far from
    those of training if the outputs differ.

    ## Why is this bad?
    Averaged weights produce other activations than the weights they were averaged from. With the running statistics of
    the latter, or with old ones, evaluation normalizes by statistics that do not match its activations, and the
    averaged weights look worse than they are.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = StaleAveragedWeights().check(make_window(ledger={"uses_training_statistics": True}))
    >>> str(finding.severity)
    'warning'

    Averaged weights with statistics of their own stay quiet:

    >>> StaleAveragedWeights().check(make_window(ledger={"averaged": True}))
    []

    ## Code
    Wrong::

        average = AveragedModel(model)  # leaves the statistics of the first copy

    Right::

        average = AveragedModel(model, use_buffers=True)

    ## What to do
    Average the buffers as well (``use_buffers=True``), or estimate the statistics of the averaged model before it is
    evaluated: ``torch.optim.swa_utils.update_bn(loader, averaged_model)``.

    ## Thresholds
    None for statistics that equal those of training, number for number. Unchanged statistics count after
    ``1 / momentum`` steps, the time in which training would have renewed them, or after one window if that is shorter.
    They must also differ from those in training by BN304's ``warn_mean = .1`` or ``warn_log_deviation = .2``. It is an
    error from ``error_mean = .25`` and ``error_log_deviation = .7`` on, or if the statistics have never changed. For
    the probe: BN305's ``warn_above = .25``, ``error_above = .5`` and ``least_samples = 32``.

    ## Look-alikes
    A teacher or target network whose buffers are copied from the network in training at every step, or at
    ``least_following = .5`` of them, as BN407 advises, is an info, unless the probe shows that it matters. Averaged
    buffers, and statistics that ``update_bn`` estimated. As long as the averaged weights equal the others, their
    statistics fit. Statistics that do not change in training either, as in a frozen layer, are the same for all
    weights.

    Federated averaging of ``parameters()`` leaves the statistics of the server's model as they were: seen if that model
    is watched as well, beside the one that trains. If one module serves all clients and the server, its statistics are
    those of the last client, and follow the next one: alike clients lost nothing by that, clients with other classes
    each up to 8 points, and the rule says nothing.

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
    least_following: float = 0.5

    def check(self, window: Window) -> list[Finding]:
        """Find the averaged layers with running statistics of other weights."""
        ledger = window.ledger
        evaluated = ledger.evaluated[EVALUATIONS].any(0)
        callback = evaluated & window.layers.tracked & ~ledger.averaged & window.facts.averages_without_buffers
        still = (window.auxiliary | ledger.swapped) & evaluated & (ledger.steps_stale > 0)
        if not (still | ledger.uses_training_statistics | callback).any():
            return []
        gap = self._gap(window).where(still | ledger.uses_training_statistics, 0.0)
        mean, deviation = ledger.distance
        distant = (mean > self.warn_mean) | (deviation > self.warn_log_deviation)
        needed = (1 / window.momentum[-1].nan_to_num(1.0)).clamp(max=len(window) - 1)
        behind = still & (ledger.steps_stale >= needed) & distant
        far = (mean > self.error_mean) | (deviation > self.error_log_deviation)
        error = (behind & (far | self._unmoved(window))) | (gap > self.error_above)
        # A copy of one's own with copied buffers is what BN407 advises: the probe knows what it costs.
        copied = window.auxiliary & ~ledger.averaged & ~ledger.swapped
        mild = copied & ledger.uses_training_statistics & ~behind & (gap <= self.warn_above)
        mild &= self._follows(window) if mild.any() else False
        stale = ledger.uses_training_statistics | callback | behind | (gap > self.warn_above)
        return [
            self._finding(window, i, float(gap[i]), error=bool(error[i]), mild=bool(mild[i]))
            for i in stale.nonzero().flatten().tolist()
        ]

    def _unmoved(self, window: Window) -> Tensor:
        """Copies with running statistics that never changed since the monitor was attached: ``[L]`` bool."""
        base = window.baseline
        moved = (window.running_mean[-1] != base.mean) | (window.running_var[-1] != base.var)
        return ~window.layers.segments.any(moved) & ~window.ledger.swapped

    def _follows(self, window: Window) -> Tensor:
        """Layers whose running statistics change in at least every other step: ``[L]`` bool."""
        moved = (window.running_mean[1:] != window.running_mean[:-1]).double().mean(0)
        return window.layers.segments.max(moved) >= self.least_following

    def _gap(self, window: Window) -> Tensor:
        """Gap that the probe measured with averaged weights: ``[L]``, 0 where it did not run."""
        gaps = window.facts.averaged_gaps
        if gaps is None:
            return torch.zeros(len(window.layers), dtype=torch.float64, device="cpu")
        return gaps.gap.where(gaps.size >= self.least_samples, 0.0).nan_to_num(0.0)

    def _finding(self, window: Window, layer: int, gap: float, *, error: bool, mild: bool) -> Finding:
        steps = int(window.ledger.steps_stale[layer])
        what = f"have not changed for {count(steps, 'step')}" if steps else "are those of the weights in training"
        effect = f"; on a training batch the output differs by {number(100 * gap)} % from that in training mode"
        return Finding(
            severity=Severity.INFO if mild else Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            first_step=window.steps[-1],
            value=gap,
            threshold=(self.error_above if gap > self.error_above else self.warn_above) if gap else 0.0,
            message=f"the evaluation uses averaged weights, but the running statistics {what}{effect if gap else ''}",
            advice="average the buffers as well (use_buffers=True), or estimate the statistics before evaluation: "
            "torch.optim.swa_utils.update_bn(loader, averaged_model)",
        )
