"""BN305: a layer that puts out something else in evaluation mode than in training mode."""

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
    """On the same batch, a layer's output in evaluation mode is far from that in training mode.

    ## What it does
    At the start of a validation, runs a kept training batch through the model once more, dropout off, and compares each
    layer's output with the statistics of the batch and with its running statistics:
    ``norm(training - evaluation) / norm(training)``. What the batches of the window differ by from one another is taken
    off. Blames the first layer in execution order. It leaves buffers, modes, gradients and random generators exactly as
    they were, and runs only with ``probe=True``.

    ## Why is this bad?
    It is what a validation that is much worse than training looks like from inside: whatever the cause (stale
    statistics, small batches, another distribution), evaluation computes another function than the one that was
    trained.

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

    The difference that the noise of a batch makes stays quiet, however large it is:

    >>> TrainEvalGap().check(probed(0.1))
    []
    >>> noisy = make_window(batch_mean=torch.tensor([0.4, -0.4]).repeat(32)[:, None].expand(64, 3))
    >>> TrainEvalGap().check(replace(noisy, facts=probed(0.4).facts))
    []

    ## What to do
    Look for the cause in the other alerts. As a remedy for all of them, estimate the statistics anew before validation:
    ``torch.optim.swa_utils.update_bn(loader, model)``.

    ## Thresholds
    ``warn_above = .25``, ``error_above = .5``, the noise taken off; at .5 the accuracy of validation fell.
    ``least_samples = 32`` in the batch.

    The mean of ``n`` values is off by ``1 / sqrt(n)`` deviations, their deviation by ``1 / sqrt(2 n)``: together a gap
    of ``sqrt(1.5 / n)``, .22 in a layer of vectors at batches of 32, which harms nobody and which no better statistics
    remove. How large it is shows in how the batches of the window differ from their neighbors: ``chance = .95`` of them
    by less than what is taken off, squares from squares. Of 30 trainings on digits at a rate of .05, ten had a gap
    above .25. In six of them statistics estimated anew improved accuracy or loss in validation by 2.9 to 9 standard
    errors; four of these are warned of. In the other four they did not, by 2.2 or less; none of them is.

    ## Look-alikes
    Dropout is off in both modes. Before the running statistics are warm the gap is BN303's to explain. A frozen layer
    is in evaluation mode in training as well, and is left out.

    ## References
    pytorch/pytorch#5406, #4741; Lightning-AI/pytorch-lightning#14085; keras-team/keras#7265.
    """

    code: ClassVar[str] = "BN305"
    name: ClassVar[str] = "train-eval-gap"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "probe"})
    moment: ClassVar[Moment] = "evaluation"
    yields_to: ClassVar[frozenset[str]] = frozenset({"BN303"})

    warn_above: float = GAP_WARNING
    error_above: float = GAP_ERROR
    least_samples: int = GAP_SAMPLES
    chance: float = 0.95

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with a gap, and blame the first."""
        gaps = window.facts.gaps
        if gaps is None:
            return []
        wide = (gaps.gap > self.warn_above) & (gaps.size >= self.least_samples) & warm(window)[-1]
        judged = ((i, float(gaps.gap[i]), self._noise(window, i)) for i in wide.nonzero().flatten().tolist())
        return [self._finding(window, *each) for each in judged if each[1] > math.hypot(self.warn_above, each[2])]

    def _noise(self, window: Window, layer: int) -> float:
        """The gap that the noise of a batch makes in a layer, by what neighbors in the window differ by."""
        span = window.layers.span(layer)
        gamma, beta = (rows[-1, span].double() for rows in (window.gamma, window.beta))
        weight = (gamma.square() / (gamma.square() + beta.square()).nansum()).nan_to_num(0.0)
        steps = (rows[:, span].double().diff(dim=0).square() / 2 for rows in (window.shift, window.ratio))
        gaps = (sum(steps, torch.zeros(())) * weight).sum(1)
        gaps = gaps[gaps.isfinite()]
        return gaps.quantile(self.chance).sqrt().item() if len(gaps) else 0.0

    def _finding(self, window: Window, layer: int, gap: float, noise: float) -> Finding:
        error = gap > math.hypot(self.error_above, noise)
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            first_step=window.steps[-1],
            value=gap,
            threshold=math.hypot(self.error_above if error else self.warn_above, noise),
            message=f"on the same batch its output in evaluation mode differs by {number(100 * gap)} % from that in "
            f"training mode; the noise of a batch is up to {number(100 * noise)} %",
            advice="look for the cause in the other alerts, or estimate the statistics anew before validation: "
            "torch.optim.swa_utils.update_bn(loader, model)",
        )
