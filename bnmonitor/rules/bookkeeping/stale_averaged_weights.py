"""BN505: averaged weights that are evaluated with the statistics of other weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor.frame import Window
from bnmonitor.ledger import EVALUATIONS
from bnmonitor.rules.base import Finding, Rule, Severity


@dataclass(frozen=True, kw_only=True)
class StaleAveragedWeights(Rule):
    """An average of the weights (SWA, EMA) is evaluated with running statistics that belong to other weights.

    ## What it does
    Flags layers of an averaged model that were evaluated with exactly the running statistics of the network in
    training, while their weights differ from it; and, in Lightning, a weight-averaging callback that leaves the buffers
    out. An error if the statistics of a copy whose parameters follow have never moved since watching began.

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
    None for statistics that are equal, number for number. Statistics that stand still count after ``1 / momentum``
    steps, when those of a network in training would have been renewed.

    ## Look-alikes
    Averaged buffers, and statistics that ``update_bn`` estimated. Before the averaged weights differ from the others
    their statistics fit.

    ## References
    Lightning-AI/pytorch-lightning#8811; pytorch/pytorch#84053; mosaicml/composer#624;
    huggingface/pytorch-image-models#102.
    """

    code: ClassVar[str] = "BN505"
    name: ClassVar[str] = "stale-averaged-weights"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger"})
    exact: ClassVar[bool] = True
    yields_to: ClassVar[frozenset[str]] = frozenset({"BN404"})

    def check(self, window: Window) -> list[Finding]:
        """Find the averaged layers with statistics of other weights."""
        ledger = window.ledger
        evaluated = ledger.evaluated[EVALUATIONS].any(0)
        tracking = torch.tensor(window.layers.tracking, dtype=torch.bool, device="cpu")
        callback = evaluated & tracking & ~ledger.averaged & window.facts.averages_without_buffers
        still = self._left_behind(window) & evaluated
        stale = (ledger.borrowed | callback | still).nonzero().flatten().tolist()
        return [self._finding(window, layer, error=bool(still[layer])) for layer in stale]

    def _left_behind(self, window: Window) -> Tensor:
        """Copies beside the trained network whose gamma or beta moved, and whose statistics never did: ``[L]``."""
        base, segments = window.baseline, window.layers.segments
        beside = torch.tensor([bool(name) for name in window.facts.auxiliary], dtype=torch.bool, device="cpu")
        if not beside.any():
            return torch.zeros(len(window.layers), dtype=torch.bool, device="cpu")
        moved = (window.running_mean[-1] != base.mean) | (window.running_var[-1] != base.var)
        long = window.ledger.steps * window.momentum[-1].nan_to_num(1.0) > 1
        return beside & long & ~segments.any(moved) & segments.any(window.gamma[-1] != base.gamma)

    def _finding(self, window: Window, layer: int, *, error: bool) -> Finding:
        whose = "have not moved since watching began" if error else "are those of the weights in training"
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            first_step=window.steps[-1],
            value=0.0,
            threshold=0.0,
            message=f"averaged weights are evaluated here, but the running statistics {whose}",
            advice="average the buffers as well (use_buffers=True), or estimate the statistics before evaluation: "
            "torch.optim.swa_utils.update_bn(loader, averaged_model)",
        )
