"""BN101: running statistics that are NaN, infinite or negative."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import count, number
from bnmonitor.measures import rise
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, first, rate_note
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class NonFiniteStatistics(Rule):
    """A running mean or variance is NaN or infinite, or a running variance is negative.

    ## What it does
    Checks every running value at every step. Reports the first affected layer in execution order, the first step, and
    the last step at which the layer was still finite. If the learning rate rose fourfold or more from one step to the
    next within the 20 steps before, the rule names that as the likely cause.

    ## Why is this bad?
    The running average keeps a NaN or an infinity forever: no later batch can remove it. Training mode never reads the
    running statistics, so the loss may look perfect while every evaluation returns NaN.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = NonFiniteStatistics().check(make_window(running_var=[1.0, float("inf"), 1.0]))
    >>> str(finding.severity), finding.channels
    ('error', (1,))

    A large but finite value stays quiet:

    >>> NonFiniteStatistics().check(make_window(running_var=[1.0, 1e30, 1.0]))
    []

    ## Code
    Wrong::

        x = (x - x.mean()) / x.std()  # NaN for a constant sample

    Right::

        x = (x - x.mean()) / x.std().clamp(min=1e-6)

    ## What to do
    Find the batch: look for an infinite or missing value in the data, or an overflow in half precision just before the
    layer. Then ``bnmonitor.remedies.restore_last_finite(model, monitor)`` sets the running statistics back to the last
    step at which they were finite. To keep it from happening again, clip gradients
    (``Trainer(gradient_clip_val=1.0)``), lower the learning rate or use ``precision="bf16-mixed"``.

    ## Thresholds
    None: this is arithmetic, not statistics. An average that contains a NaN is NaN.

    ## Look-alikes
    None known. A layer that was never used keeps its initial 0 and 1.

    ## References
    pytorch/pytorch#1206, #88474, #96798, #115500.
    """

    code: ClassVar[str] = "BN101"
    name: ClassVar[str] = "non-finite-statistics"
    severity: ClassVar[Severity] = Severity.ERROR
    exact: ClassVar[bool] = True
    untrained: ClassVar[bool] = True
    silences_downstream: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with a running value that is not finite, or with a negative running variance."""
        new = slice(-max(1, window.fresh), None)
        mean, var = window.running_mean[new], window.running_var[new]
        least, most = map(float, torch.aminmax(var))
        if least >= 0 and math.isfinite(most) and math.isfinite(float(mean.sum())):
            return []
        tracked = window.layers.tracked[window.layers.owner]
        bad = ~(mean.isfinite() & (var >= 0) & var.isfinite()) & tracked
        hit = window.layers.segments.any(bad.any(0))
        return [self._finding(window, layer) for layer in hit.nonzero().flatten().tolist()]

    def _finding(self, window: Window, layer: int) -> Finding:
        span = window.layers.span(layer)
        mean, var = window.running_mean[:, span], window.running_var[:, span]
        bad = ~(mean.isfinite() & (var >= 0) & var.isfinite())
        step = first(bad.any(1), window)
        at = window.steps.index(step)
        # One step later every channel of the network may be NaN. The channels of the first step show where it entered.
        channels = tuple(bad[at].nonzero().flatten().tolist())
        finite = f"last finite at step {window.steps[at - 1]}" if at else "already so when the window began"
        values = torch.cat([mean[at], var[at]])
        what = "NaN" if values.isnan().any() else "infinite" if values.isinf().any() else "negative"
        cause, back = _cause(window, step)
        return Finding(
            severity=Severity.ERROR,
            layer=layer,
            channels=channels,
            first_step=step,
            value=float(len(channels)),
            threshold=0.0,
            message=f"the running statistics are {what} in {count(len(channels), 'channel')}, {finite}; "
            f"evaluation mode returns NaN from here on{cause}",
            advice=f"{back}, then bnmonitor.remedies.restore_last_finite(model, "
            "monitor); clip gradients: Trainer(gradient_clip_val=1.0)",
        )


def _cause(window: Window, step: int) -> tuple[str, str]:
    """Return the likely cause and the first thing to do about it."""
    raised = rise(window, step)
    if raised is None:
        return rate_note(window, step), "find the batch or the overflow at that step"
    at = window.steps.index(raised)
    low, high = (number(window.facts.learning_rates[i]) for i in (at - 1, at))
    return (
        f"; likely cause: the learning rate was raised from {low} to {high} at step {raised}",
        f"go back to a learning rate of {low}, or raise it step by step",
    )
