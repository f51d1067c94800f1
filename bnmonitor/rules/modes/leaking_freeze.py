"""BN402: a frozen layer with running statistics that still change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import number
from bnmonitor.measures import median
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, first, last_run
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class LeakingFreeze(Rule):
    """Gamma and beta are frozen, but the running statistics are still updated.

    ## What it does
    Flags layers in training mode that still update their running statistics although gamma and beta do not train (no
    gradient wanted, or in no optimizer) and have not changed. A layer without gamma and beta is flagged if it comes
    after a frozen layer. It is an error once the running statistics have moved far from where they were when the
    monitor was attached.

    ``bnmonitor audit`` with a ``--reference`` finds it: gamma and beta are those of the reference bit for bit, and
    the running statistics are not.

    ## Why is this bad?
    ``requires_grad_(False)``, ``torch.no_grad()`` and leaving parameters out of the optimizer do not stop the running
    statistics. The features that were meant to stay fixed change with every batch of the new data, and a checkpoint
    with only the trained part cannot reproduce them. Where no optimizer has any parameter of the model, it was perhaps
    meant to train: it was copied or rebuilt after the optimizer had been made.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> window = make_window(affine_trains=False, running_mean=[0.6, -0.5], start_mean=0.0)
    >>> [finding] = LeakingFreeze().check(window)
    >>> str(finding.severity), round(finding.value, 2)
    ('error', 0.5)

    A layer frozen in evaluation mode, as it should be, stays quiet:

    >>> LeakingFreeze().check(make_window(affine_trains=False, training=False, updates=0))
    []

    ## Code
    Wrong::

        for parameter in model.backbone.parameters():
            parameter.requires_grad_(False)  # the running statistics still move

    Right::

        bnmonitor.remedies.freeze(model.backbone)  # parameters and statistics, through every model.train()

    ## What to do
    Freeze the layer so that it stays frozen through every ``model.train()``:
    ``bnmonitor.remedies.freeze(model, include=["backbone.*"])``, or the callback ``bnmonitor.remedies.Freeze``.
    ``requires_grad_(False)`` alone is not enough, and ``layer.eval()`` lasts only until the next ``model.train()``.

    ## Thresholds
    It is a fact that the statistics change. ``error_drift = .25`` standard deviations in the mean, or
    ``error_log_variance = .5`` in the log of the variance, in the median channel, against the start.

    ## Look-alikes
    Estimating the running statistics again for new data (AdaBN) does this on purpose: ignore the rule there. A GAN
    switches ``requires_grad`` back and forth, so gamma and beta must also have been constant over the last five steps.
    For an averaged copy, the averaging changes the buffers, not a forward of the copy.

    ## References
    Lightning-AI/pytorch-lightning#18930, #2551; chemprop/chemprop#952; huggingface/peft#1732.
    """

    code: ClassVar[str] = "BN402"
    name: ClassVar[str] = "leaking-freeze"
    severity: ClassVar[Severity] = Severity.WARNING
    exact: ClassVar[bool] = True

    error_drift: float = 0.25
    error_log_variance: float = 0.5
    least_steps: int = 5

    def check(self, window: Window) -> list[Finding]:
        """Find the frozen layers that still update their running statistics."""
        new, frozen = slice(-max(self.least_steps, window.fresh), None), self._frozen(window)
        if not frozen.any():
            return []
        moving = frozen & window.training[-1] & (window.updates[new] > 0).any(0)
        moving &= window.ran_in_training()
        if len(window) < self.least_steps or not moving.any():
            return []
        recent = window.last(self.least_steps)
        changed = (recent.gamma != recent.gamma[-1]).any(0) | (recent.beta != recent.beta[-1]).any(0)
        at = (moving & ~window.layers.segments.any(changed)).nonzero().flatten().tolist()
        if not at:
            return []
        mean, log_var = self._drift(window)
        return [self._finding(window, layer, float(mean[layer]), float(log_var[layer])) for layer in at]

    def _frozen(self, window: Window) -> torch.Tensor:
        affine = torch.tensor(window.layers.affine, dtype=torch.bool, device="cpu")
        structure = window.facts.structure
        if structure is None:
            return affine & ~window.facts.affine_trains
        behind_frozen = torch.tensor([p is False for p in structure.producer_trains], device="cpu")
        return torch.where(affine, ~window.facts.affine_trains, behind_frozen)

    def _began(self, window: Window, layer: int) -> int:
        """The first update after the last change of gamma and beta."""
        span = window.layers.span(layer)
        gamma, beta = window.gamma[:, span], window.beta[:, span]
        same = ((gamma == gamma[-1]) & (beta == beta[-1])).all(1)
        # The gamma of a step is its value after the step: at the last step that changed it, the layer was not frozen.
        frozen = same if same.all() else same & same.roll(1)
        return first(last_run(frozen) & (window.updates[:, layer] > 0), window)

    def _drift(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        base, eps = window.baseline, window.layers.eps_by_channel
        mean = (window.running_mean[-1] - base.mean).abs() / (base.var + eps).sqrt()
        log_var = ((window.running_var[-1] + eps) / (base.var + eps)).log().abs()
        return median(mean, window), median(log_var, window)

    def _finding(self, window: Window, layer: int, mean: float, log_var: float) -> Finding:
        error = mean > self.error_drift or log_var > self.error_log_variance
        by_mean = mean / self.error_drift >= log_var / self.error_log_variance
        limit = self.error_drift if by_mean else self.error_log_variance
        frozen = "gamma and beta are frozen" if window.layers.affine[layer] else "the operation before it is frozen"
        advice = (
            "call bnmonitor.remedies.freeze(model, include=[...]), which lasts through every model.train(); "
            "requires_grad_(False) does not stop the updates"
        )
        if window.facts.untouched:
            frozen = "no optimizer has any parameter of the model"
            advice = (
                "if the model should train, make the optimizer from its parameters() after it was copied, loaded or "
                f"rebuilt; if not, {advice}"
            )
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            first_step=self._began(window, layer),
            value=mean if by_mean else log_var,
            threshold=limit if error else 0.0,
            message=f"{frozen}, but training still updates the running statistics: the mean has moved by "
            f"{number(mean)} standard deviations, the variance by a factor {number(math.exp(min(log_var, 80.0)))}",
            advice=advice,
        )
