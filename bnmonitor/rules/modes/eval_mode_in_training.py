"""BN401: a layer that trains, in evaluation mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, onset
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class EvalModeInTraining(Rule):
    """A layer ran in evaluation mode during training although its parameters are being trained.

    ## What it does
    Flags layers that took part in the training steps in evaluation mode, with a gamma or beta that an optimizer
    trains; for a layer without them, if the layer before is trained. One alert for all layers concerned.

    ## Why is this bad?
    The layer normalizes with fixed statistics while the network before it changes: it does not normalize what it is
    given. If the statistics are still 0 and 1, it does not normalize at all.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = EvalModeInTraining().check(make_window(training=False, updates=0))
    >>> str(finding.severity)
    'warning'

    A layer that is frozen on purpose, with its gamma and beta, stays quiet:

    >>> EvalModeInTraining().check(make_window(training=False, updates=0, affine_trains=False))
    []

    ## What to do
    Call ``model.train()`` before the training steps (a stray ``eval()``, often after validation or loading, is the
    usual cause). If the layer is meant to be frozen, freeze its gamma and beta as well, with
    ``bnmonitor.remedies.freeze``.

    ## Thresholds
    None: the mode is a fact.

    ## Look-alikes
    A frozen BatchNorm in fine-tuning, common in detection: gamma and beta do not train, so it is taken as meant.

    ## References
    Lightning-AI/pytorch-lightning#20105, #19820, #20573; keras-team/keras-io#198.
    """

    code: ClassVar[str] = "BN401"
    name: ClassVar[str] = "eval-mode-in-training"
    severity: ClassVar[Severity] = Severity.WARNING
    exact: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that trained in evaluation mode in every new step."""
        new = slice(-max(1, window.fresh), None)
        still = ~window.training[new].any(0) & (window.updates[new] == 0).all(0)
        if not still.any():
            return []
        fresh = window.last(max(1, window.fresh))
        at = (still & self._trains(window) & self._took_part(fresh)).nonzero().flatten().tolist()
        if not at:
            return []
        return [
            Finding(
                severity=Severity.WARNING,
                layer=at[0],
                layers=tuple(at),
                first_step=min(onset(~window.training[:, i], window) for i in at),
                value=float(len(at)),
                threshold=0.0,
                message="training runs through it in evaluation mode, although its parameters are trained: "
                "it normalizes with statistics that stand still",
                advice="call model.train() before the training steps; to freeze it on purpose, its gamma and beta too: "
                "bnmonitor.remedies.freeze(model, include=[...])",
            )
        ]

    def _trains(self, window: Window) -> torch.Tensor:
        affine = torch.tensor(window.layers.affine, dtype=torch.bool, device="cpu")
        structure = window.facts.structure
        if structure is None:
            return window.facts.affine_trains
        producer = torch.tensor([p is True for p in structure.producer_trains], device="cpu")
        return window.facts.affine_trains | (~affine & producer)

    def _took_part(self, fresh: Window) -> torch.Tensor:
        """Whether a layer ran: it was updated earlier or has a gradient, unless the last sample did not see it."""
        gradient = fresh.layers.segments.any((fresh.gamma_grad.abs() > 0).any(0))
        ran = gradient | (fresh.baseline.updates > 0)
        if fresh.sample is None:
            return ran
        return (fresh.sample.eval_calls > 0) | (ran & (fresh.sample.calls > 0))
