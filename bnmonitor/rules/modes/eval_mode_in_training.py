"""BN401: a trained layer that runs in evaluation mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor.measures import newest
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, onset
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class EvalModeInTraining(Rule):
    """A layer ran in evaluation mode during training although its parameters are being trained.

    ## What it does
    Flags layers that took part in the training steps in evaluation mode and have a gamma or beta that an optimizer
    trains. A layer without gamma and beta is flagged if the operation before it is trained. One alert for all affected
    layers.

    ## Why is this bad?
    The layer normalizes with fixed statistics while the network before it changes, so it no longer normalizes its
    input. If the statistics are still 0 and 1, it does not normalize at all.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = EvalModeInTraining().check(make_window(training=False, updates=0))
    >>> str(finding.severity)
    'warning'

    A layer frozen on purpose, together with its gamma and beta, stays quiet:

    >>> EvalModeInTraining().check(make_window(training=False, updates=0, affine_trains=False))
    []

    ## Code
    Wrong::

        model.eval()
        validate(model)
        train(model)  # still in evaluation mode

    Right::

        model.eval()
        validate(model)
        model.train()
        train(model)

    ## What to do
    Call ``model.train()`` before the training steps: the usual cause is an ``eval()`` without a ``train()`` after it,
    often after validation or loading. To freeze the layer on purpose, freeze its gamma and beta as well, with
    ``bnmonitor.remedies.freeze``.

    ## Thresholds
    None: the mode is a fact.

    ## Look-alikes
    A frozen BatchNorm in fine-tuning, common in detection: gamma and beta do not train, so the rule takes it as
    intended.

    ## References
    Lightning-AI/pytorch-lightning#20105, #19820, #20573; keras-team/keras-io#198.
    """

    code: ClassVar[str] = "BN401"
    name: ClassVar[str] = "eval-mode-in-training"
    severity: ClassVar[Severity] = Severity.WARNING
    exact: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that took part in the newest training steps in evaluation mode."""
        new = newest(window)
        still = ~window.training[new].any(0) & (window.updates[new] == 0).all(0)
        if not still.any():
            return []
        fresh = window.last(-new.start)
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
                message="the layer runs in evaluation mode during training, although its parameters are trained: "
                "it normalizes with running statistics that do not change",
                advice="call model.train() before the training steps; to freeze the layer on purpose, use "
                "bnmonitor.remedies.freeze(model, include=[...]), which freezes gamma and beta too",
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
        """Whether a layer ran: it has a gradient or earlier updates, unless the last sample did not see it run."""
        gradient = fresh.layers.segments.any((fresh.gamma_grad.abs() > 0).any(0))
        ran = gradient | (fresh.baseline.updates > 0)
        if fresh.sample is None:
            return ran
        return (fresh.sample.eval_calls > 0) | (ran & (fresh.sample.calls > 0))
