"""BN408: an evaluated layer without running statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import EVALUATIONS, Window


@dataclass(frozen=True, kw_only=True)
class BatchDependentEvaluation(Rule):
    """A layer keeps no running statistics, so the output of the model in evaluation depends on the rest of the batch.

    ## What it does
    Flags layers without running statistics that ran in an evaluation.

    ## Why is this bad?
    ``track_running_stats=False`` makes the layer use the batch's own statistics in evaluation mode as well. A
    prediction then changes with the size and order of the batch, a batch of one has no variance, and a test set sorted
    by class reveals the class to the model. This setting often serves to hide a gap between training and evaluation;
    the cause of the gap stays.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> import dataclasses
    >>> window = make_window(ledger={"evaluated": {"validation": 1}})
    >>> without = dataclasses.replace(window, layers=dataclasses.replace(window.layers, tracking=(False,)))
    >>> [finding] = BatchDependentEvaluation().check(without)
    >>> str(finding.severity)
    'warning'

    A layer with running statistics stays quiet:

    >>> BatchDependentEvaluation().check(window)
    []

    ## What to do
    Keep running statistics. If training and evaluation differ too much with them, look for the cause (BN304, BN305), or
    estimate them again before evaluation: ``torch.optim.swa_utils.update_bn``. To normalize each sample by itself, use
    ``InstanceNorm`` or ``GroupNorm``.

    ## Thresholds
    None: it is a fact that the layer has no running statistics and was evaluated.

    ## Look-alikes
    Meta-learning evaluates with the statistics of the support set on purpose, and test-time adaptation with those of
    the batch: ignore the rule there. A layer that is only trained, such as one of a discriminator, stays quiet.

    ## References
    pytorch/pytorch#156051, #20967; ArdhenduBehera/cap#8; TengdaHan/DPC#21.
    """

    code: ClassVar[str] = "BN408"
    name: ClassVar[str] = "batch-dependent-evaluation"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"ledger", "validation"})
    exact: ClassVar[bool] = True
    untrained: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Find the layers without running statistics that were evaluated."""
        bare = ~torch.tensor(window.layers.tracking, dtype=torch.bool, device="cpu")
        evaluated = window.ledger.evaluated[EVALUATIONS].any(0)
        at = (bare & window.layers.which("normalizes_batch") & evaluated).nonzero().flatten().tolist()
        return [
            Finding(
                severity=Severity.WARNING,
                layer=layer,
                first_step=window.steps[-1],
                value=0.0,
                threshold=0.0,
                message="the layer keeps no running statistics, so its output in evaluation depends on the whole batch",
                advice="keep running statistics (track_running_stats=True), or use InstanceNorm or GroupNorm",
            )
            for layer in at
        ]
