"""BN305: a layer that puts out something else in evaluation mode than in training mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import number
from bnmonitor.frame import Window
from bnmonitor.measures import warm
from bnmonitor.rules.base import Finding, Moment, Rule, Severity


@dataclass(frozen=True, kw_only=True)
class TrainEvalGap(Rule):
    """On the same batch, a layer's output in evaluation mode is far from that in training mode.

    ## What it does
    At the start of a validation, runs a kept training batch through the model once more, dropout off, and compares each
    layer's output with the statistics of the batch and with its running statistics:
    ``norm(training - evaluation) / norm(training)``. Blames the first layer in execution order. It leaves buffers,
    modes, gradients and random generators exactly as they were, and runs only with ``probe=True``.

    ## Why is this bad?
    It is what a validation that is much worse than training looks like from inside: whatever the cause (stale
    statistics, small batches, another distribution), evaluation computes another function than the one that was
    trained.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> from bnmonitor.samples import Gaps
    >>> import torch
    >>> def probed(gap, size=64):
    ...     gaps = Gaps(step=63, gap=torch.tensor([gap]), size=torch.tensor([size]))
    ...     return make_window(facts={"gaps": gaps})
    >>> [finding] = TrainEvalGap().check(probed(0.4))
    >>> str(finding.severity)
    'warning'

    The difference that the noise of a batch makes stays quiet:

    >>> TrainEvalGap().check(probed(0.1))
    []

    ## What to do
    Look for the cause in the other alerts. As a remedy for all of them, estimate the statistics anew before validation:
    ``torch.optim.swa_utils.update_bn(loader, model)``.

    ## Thresholds
    ``warn_above = .25``, ``error_above = .5``: healthy trainings show up to .1, with batches of 16 up to .14; at .5 the
    accuracy of validation fell. ``least_samples = 32`` in the batch, as a smaller one is itself that noisy.

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

    warn_above: float = 0.25
    error_above: float = 0.5
    least_samples: int = 32

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with a gap, and blame the first."""
        gaps = window.facts.gaps
        if gaps is None:
            return []
        wide = (gaps.gap > self.warn_above) & (gaps.size >= self.least_samples) & warm(window)[-1]
        return [self._finding(window, i, float(gaps.gap[i])) for i in wide.nonzero().flatten().tolist()]

    def _finding(self, window: Window, layer: int, gap: float) -> Finding:
        error = gap > self.error_above
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            first_step=window.steps[-1],
            value=gap,
            threshold=self.error_above if error else self.warn_above,
            message=f"on the same batch its output in evaluation mode differs by {number(100 * gap)} % from that in "
            "training mode",
            advice="look for the cause in the other alerts, or estimate the statistics anew before validation: "
            "torch.optim.swa_utils.update_bn(loader, model)",
        )
