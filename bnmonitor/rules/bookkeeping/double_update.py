"""BN501: running statistics that a recomputation updates a second time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import count, number, weight
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class DoubleUpdate(Rule):
    """Activation checkpointing runs a layer again in the backward pass, and that updates its running statistics again.

    ## What it does
    In a sampled step, counts the forwards of a layer during the backward pass, and the updates of its running
    statistics beyond those that its other forwards explain. Flags layers with such updates.

    ## Why is this bad?
    Each batch counts twice: momentum .1 acts like .19, so the running statistics are noisier and remember half as long.
    Loss and gradients are exactly those of a training without checkpointing, so nothing else shows the problem.
    ``SyncBatchNorm`` also synchronizes twice.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = DoubleUpdate().check(make_window(updates=2, ledger={"latest": {"training": 2, "recompute": 1}}))
    >>> str(finding.severity), finding.value
    ('warning', 1.0)

    A layer that training calls twice a step, with an update from each call, stays quiet:

    >>> DoubleUpdate().check(make_window(updates=2, ledger={"latest": {"training": 2}}))
    []

    ## What to do
    Set the momentum of these layers to ``1 - sqrt(1 - m)``: .0513 for .1. Or leave normalization out of the
    checkpointed part, or use a checkpoint function that does not track statistics in one of its passes, as fairscale's
    does.

    ## Thresholds
    None: the rule counts updates and calls.

    ## Look-alikes
    Several forwards in one step (ghost batches, two views) are not a recomputation. A recomputation in evaluation mode,
    or with ``track_running_stats`` switched off, updates nothing.

    ## References
    pytorch/pytorch#96136, #62471; facebookresearch/fairscale#1035; pfnet/pytorch-pfn-extras#117;
    deepinsight/insightface#2053.
    """

    code: ClassVar[str] = "BN501"
    name: ClassVar[str] = "double-update"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger", "samples"})
    exact: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that a backward pass updated."""
        again = window.ledger.of("latest", "recompute")
        sampled = window.sample.step if window.sample is not None else window.steps[0]
        return [
            self._finding(window, layer, int(again[layer]), max(sampled, window.steps[0]))
            for layer in (again > 0).nonzero().flatten().tolist()
        ]

    def _finding(self, window: Window, layer: int, again: int, step: int) -> Finding:
        momentum = float(window.momentum[-1, layer])
        acts = "" if not 0 < momentum < 1 else f", so momentum {weight(momentum)} acts like "
        acts += weight(1 - (1 - momentum) ** (1 + again)) if acts else ""
        advice = "leave normalization out of the checkpointed part"
        if acts:
            equal = number(1 - (1 - momentum) ** (1 / (1 + again)))
            advice += f"; or set its momentum to {equal}, which has the same effect, and ignore the rule"
        return Finding(
            severity=Severity.WARNING,
            layer=layer,
            first_step=step,
            value=float(again),
            threshold=0.0,
            message=f"the backward pass runs the layer again (activation checkpointing) and makes "
            f"{count(again, 'extra update')} of the running statistics per step{acts}",
            advice=advice,
        )
