"""The cause ``learning-rate-too-high``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import number
from bnmonitor.diagnosis.base import Case, Cause
from bnmonitor.diagnosis.course import NO_BETTER, growth, loss_course, loss_is_back
from bnmonitor.limits import RAW
from bnmonitor.measures import rise
from bnmonitor.results import Severity


@dataclass(frozen=True, kw_only=True)
class LearningRateTooHigh(Cause):
    """The learning rate is too high for the network.

    ## What it is
    The weights take steps after which every layer computes something else. It happens from the first step, at the end
    of a warm-up, or when the rate is raised. Batch normalization makes the scale of the weights before it irrelevant,
    but not that of gamma and beta: at a rate too high they run away, and channels die.

    ## What follows
    Gamma and the batch variances explode (BN106, BN702), channels die (BN701), the running statistics describe no
    network that ever existed (BN304), and in the end everything is NaN (BN101). After that nothing says anything new.

    ## What to do
    Stop, go back to a checkpoint from before, and restart at the rate that the incident names. A warm-up or clipped
    gradients (``Trainer(gradient_clip_val=1.0)``) allow a higher rate, and so does an input that is normalized (BN108):
    the incident says so where it is not.

    ## Example
    Wrong::

        optimizer = torch.optim.SGD(model.parameters(), lr=3.0)

    Right::

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # the rate that the incident names
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=500)
    """

    name: ClassVar[str] = "learning-rate-too-high"
    leads: ClassVar[tuple[str, ...]] = ("BN704",)
    explains: ClassVar[frozenset[str]] = frozenset(
        {"BN1", "BN203", "BN303", "BN304", "BN305", "BN405", "BN6", "BN701", "BN702", "BN705", "BN706", "BN707"}
    )
    everywhere: ClassVar[bool] = True

    def title(self, case: Case) -> str:
        """Name the learning rate, and the one before it where it was raised at once."""
        window = case.window
        if case.was is not None and case.was.cause == self.name:
            return case.was.title  # later the rate may be another
        if window is None or case.lead.first_step not in window.steps:
            return super().title(case)
        at = window.steps.index(case.lead.first_step)
        rate = window.learning_rate(at)
        if not math.isfinite(rate):
            return super().title(case)
        group = _group(case)
        if group is not None:
            return f"learning rate {number(window.facts.group_rates[group])} of parameter group {group} is too high"
        raised = rise(window, case.lead.first_step + 1)
        if raised is None:
            return f"learning rate {number(rate)} is too high"
        before = window.learning_rate(window.steps.index(raised) - 1)
        return f"learning rate {number(rate)} is too high (was {number(before)})"

    def detail(self, case: Case) -> str:
        """Say how far the statistics and the loss have gone."""
        window = case.window
        if window is None:
            return super().detail(case)
        since = case.lead.first_step
        own = case.was is not None and case.was.cause == self.name
        grown = growth(window, since) or (case.was.detail.split("; loss ")[0] if own and case.was is not None else "")
        parts = [part for part in (grown, loss_course(window, since)) if part]
        return "; ".join(parts) or super().detail(case)

    def advice(self, case: Case) -> str:
        """Add that the input should be normalized, where the newest sample shows that it is not."""
        sample = None if case.window is None else case.window.sample
        power = math.nan if sample is None or sample.data is None else float(sample.data[0].nan_to_num(0.0).max())
        if not power > RAW:
            return case.lead.advice
        return f"{case.lead.advice}; normalize the input too, whose mean square is {number(power)} (BN108)"

    def severity(self, case: Case) -> Severity:
        """An error once the training is lost, or its loss is no better than at its start, or has not come back."""
        if case.lost or (
            case.window is not None and loss_is_back(case.window, case.lead.first_step, NO_BETTER) is False
        ):
            return Severity.ERROR
        return case.severity

    def lasts(self, case: Case) -> bool:
        """Whether the loss has not come back yet."""
        return case.lost or (case.window is not None and loss_is_back(case.window, case.lead.first_step) is False)


def _group(case: Case) -> int | None:
    """The parameter group whose layers alone are affected, if its rate differs from that of the other layers."""
    window = case.window
    if window is None or window.facts.group is None:
        return None
    affected = [name in case.lead.layers for name in window.layers.names]
    inside = {int(g) for g, hit in zip(window.facts.group, affected, strict=True) if hit}
    outside = {int(g) for g, hit in zip(window.facts.group, affected, strict=True) if not hit and int(g) >= 0}
    if len(inside) != 1 or -1 in inside or not outside or inside & outside:
        return None
    [group] = inside
    rates = window.facts.group_rates
    return group if all(rates[group] > rates[other] for other in outside) else None
