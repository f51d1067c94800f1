"""BN305: a layer with another output in evaluation mode than in training mode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import number
from bnmonitor.limits import GAP_ERROR, GAP_SAMPLES, GAP_WARNING
from bnmonitor.measures import warm
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Moment, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class TrainEvalGap(Rule):
    """On the same batch, a layer's output in evaluation mode is far from its output in training mode.

    ## What it does
    At the start of a validation, runs a kept training batch through the model once more, with dropout off. Compares
    each layer's output under the statistics of the batch with its output under its running statistics:
    ``norm(training - evaluation) / norm(training)``. The usual difference between the batches of the window is
    subtracted. A gap is the layer's own, as every layer gets its input in training mode: the rule blames the layer with
    the largest, compared with its limit. The probe leaves buffers, modes, gradients and
    random generators exactly as they were, and runs only with ``probe=True``.

    ## Why is this bad?
    This is the inside view of a validation that is much worse than training: whatever the cause (stale statistics,
    small batches, another distribution), evaluation computes a different function than the one that was trained.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> from bnmonitor.window import EvaluationGap
    >>> from dataclasses import replace
    >>> import torch
    >>> def probed(gap, size=64):
    ...     gaps = EvaluationGap(step=63, gap=torch.tensor([gap]), size=torch.tensor([size]))
    ...     return make_window(facts={"gaps": gaps})
    >>> [finding] = TrainEvalGap().check(probed(0.4))
    >>> str(finding.severity)
    'warning'

    A difference that the noise of a batch explains stays quiet, however large it is:

    >>> TrainEvalGap().check(probed(0.1))
    []
    >>> noisy = make_window(batch_mean=torch.tensor([0.4, -0.4]).repeat(32)[:, None].expand(64, 3))
    >>> TrainEvalGap().check(replace(noisy, facts=probed(0.4).facts))
    []

    ## What to do
    Look for the cause in the other alerts. As a remedy for all of them, estimate the running statistics again before
    validation: ``torch.optim.swa_utils.update_bn(loader, model)``.

    ## Thresholds
    ``warn_above = .25``, ``error_above = .5``, after subtracting the noise; at .5 the accuracy of validation fell.
    ``least_samples = 32`` in the batch.

    The mean of ``n`` values is off by ``1 / sqrt(n)`` standard deviations, their standard deviation by
    ``1 / sqrt(2 n)``. Together this gives a gap of ``sqrt(1.5 / n)``, .22 in a layer of vectors at batches of 32, which
    is harmless and which better statistics cannot remove. The differences between neighboring batches of the window
    show its size: the rule subtracts, squares from squares, the largest of these differences. Of one batch in twenty
    the gap is beyond what ``.95`` of them stay below.

    Of 30 trainings on digits at a rate of .05, ten had a gap above .25. In six of them, statistics estimated again
    improved accuracy or loss in validation by 2.9 to 9 standard errors; the rule warns of four of these. In the other
    four they did not, by 2.2 or less; the rule warns of none of these.

    ## Look-alikes
    Dropout is off in both modes. Before the running statistics are warm, BN303 explains the gap. A frozen layer is in
    evaluation mode in training as well, and is left out.

    ## References
    pytorch/pytorch#5406, #4741; Lightning-AI/pytorch-lightning#14085; keras-team/keras#7265.
    """

    code: ClassVar[str] = "BN305"
    name: ClassVar[str] = "train-eval-gap"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "probe"})
    own: ClassVar[bool] = True
    moment: ClassVar[Moment] = "evaluation"
    yields_to: ClassVar[frozenset[str]] = frozenset({"BN303"})

    warn_above: float = GAP_WARNING
    error_above: float = GAP_ERROR
    least_samples: int = GAP_SAMPLES

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with a gap."""
        gaps = window.facts.gaps
        if gaps is None:
            return []
        wide = (gaps.gap > self.warn_above) & (gaps.size >= self.least_samples) & warm(window)[-1]
        judged = ((i, float(gaps.gap[i]), self._noise(window, i)) for i in wide.nonzero().flatten().tolist())
        return [self._finding(window, *each) for each in judged if each[1] > math.hypot(self.warn_above, each[2])]

    def _noise(self, window: Window, layer: int) -> float:
        """The gap that the noise of a batch gives in a layer, from the differences between neighboring batches."""
        span = window.layers.span(layer)
        gamma, beta = (rows[-1, span].double() for rows in (window.gamma, window.beta))
        weight = (gamma.square() / (gamma.square() + beta.square()).nansum()).nan_to_num(0.0)
        steps = (rows[:, span].double().diff(dim=0).square() / 2 for rows in (window.shift, window.ratio))
        gaps = (sum(steps, torch.zeros((), device="cpu")) * weight).sum(1)
        gaps = gaps[gaps.isfinite()]
        return gaps.amax().sqrt().item() if len(gaps) else 0.0

    def _finding(self, window: Window, layer: int, gap: float, noise: float) -> Finding:
        error = gap > math.hypot(self.error_above, noise)
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            first_step=window.steps[-1],
            value=gap,
            threshold=math.hypot(self.error_above if error else self.warn_above, noise),
            message=f"on the same batch the output in evaluation mode differs by {number(100 * gap)} % from that in "
            f"training mode; the noise of a batch explains up to {number(100 * noise)} %",
            advice="look for the cause in the other alerts, or estimate the statistics again before validation: "
            "torch.optim.swa_utils.update_bn(loader, model)",
        )
