"""The cause ``changed-input``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import number
from bnmonitor.diagnosis.base import Case, Cause, reads_the_input
from bnmonitor.measures import InputJump, input_jump, variances

TRACE = 1e-7
"""Part of a variance that single precision no longer resolves beside it."""


@dataclass(frozen=True, kw_only=True)
class ChangedInput(Cause):
    """The data changed in the middle of the training.

    ## What it is
    Another data set, a changed augmentation or a normalization that got lost. What speaks for the data: the first layer
    of the network is the first that changes, and its own weights and gamma do not.

    ## What follows
    Every layer sees another distribution than its running statistics describe (BN304, BN603). A much larger scale
    makes a rate too high that was not: gamma runs away (BN704, BN702), up to a NaN (BN101). A much smaller one leaves
    the first layer nothing but its eps to divide by (BN105).

    ## What to do
    Compare a batch from before with one from now. If the change is intended, let the statistics settle before the next
    evaluation.

    ## Example
    Wrong::

        for epoch in range(20):
            scale = 1.0 if epoch < 10 else 255.0  # the second data set has pixels from 0 to 255
            train(loader, scale)

    Right::

        for epoch in range(20):
            train(normalized(loader))  # one mean and one standard deviation for all epochs
    """

    name: ClassVar[str] = "changed-input"
    leads: ClassVar[tuple[str, ...]] = ("BN106", "BN107", "BN105", "BN101")
    explains: ClassVar[frozenset[str]] = frozenset(
        {"BN101", "BN103", "BN105", "BN106", "BN107", "BN109", "BN304", "BN305"}
        | {"BN601", "BN602", "BN603", "BN702", "BN704"}
    )
    everywhere: ClassVar[bool] = True

    def fits(self, case: Case) -> bool:
        """Whether the data jumped shortly before, or all channels of the first layer changed and its gamma did not."""
        window, name = case.window, case.lead.layer
        if window is None:
            return False
        if _jump(case) is not None:
            return True
        at = _place(case)
        if name is None or at is None or case.lead.code == "BN101" or not reads_the_input(window, name):
            return False
        layer = window.layers.names.index(name)
        span = window.layers.span(layer)
        gamma = window.gamma[[at - 1, -1], span]
        unknown = gamma.isnan()
        still = (
            unknown.all()
            or (layer in window.layers.split and unknown.any())
            or torch.allclose(gamma[0], gamma[1], rtol=0.3, atol=0.1)
        )
        batch = variances(window)[:, span]
        jump_of = batch[at:].nanmedian(0).values / batch[:at].nanmedian(0).values
        jumped = jump_of < 0.1 if case.lead.code == "BN105" else jump_of > 10
        return bool(still) and float(jumped.double().mean()) > 0.5

    def title(self, case: Case) -> str:
        """Say that the data changed."""
        return "the input changed"

    def detail(self, case: Case) -> str:
        """Say by how much, as the step of the change shows it."""
        window, at = case.window, _place(case)
        jump = _jump(case)
        if jump is not None:
            what = "variance of the first layer grew ×" if jump.by_variance else "mean of the first layer moved by "
            unit = "" if jump.by_variance else " standard deviations"
            return f"the batch {what}{number(jump.size)}{unit} at step {jump.step}; gamma had not moved"
        if window is None or at is None or case.lead.code not in ("BN105", "BN106"):
            return "" if case.was is not None else case.lead.message
        span = window.layers.span(window.layers.names.index(str(case.lead.layer)))
        batch = variances(window)[:, span]
        grown = float((batch[at] / batch[:at].nanmedian(0).values).nanmedian())
        last = float((batch[at] / batch[at - 1]).nanmedian())
        how = f"grew ×{number(grown)}" if case.lead.code == "BN106" else f"fell ×{number(grown)}"
        how = how if grown > TRACE else "vanished"
        # Where the last step is less than half of the way, in the log, the scale moves on from step to step.
        when = "by" if grown > TRACE and last > 0 and abs(math.log(last)) < abs(math.log(grown)) / 2 else "at"
        return f"the batch variance of the first layer {how} {when} step {case.lead.first_step}; gamma had not moved"

    def advice(self, case: Case) -> str:
        """Point at the data of that step, and say how to go on."""
        jump = _jump(case)
        if jump is None and case.was is not None:
            return ""
        step = case.lead.first_step if jump is None else jump.step
        look = f"compare a batch of step {step} with an earlier one: its range and its normalization"
        return f"{look}; then go on from a checkpoint from before it" if case.lost else look

    def lasts(self, case: Case) -> bool:
        """Whether the training is lost."""
        return case.lost


def _jump(case: Case) -> InputJump | None:
    """The jump of the data that the evidence began with; a layer's own variance jumps at that very step."""
    if case.window is None:
        return None
    jump = input_jump(case.window, case.lead.first_step)
    if jump is not None and case.lead.code in ("BN105", "BN106") and jump.step != case.lead.first_step:
        return None
    return jump


def _place(case: Case) -> int | None:
    """Position of the step of the change in the window; None if it is not there, or nothing is before it."""
    if case.window is None or case.lead.layer is None or case.lead.first_step not in case.window.steps:
        return None
    return case.window.steps.index(case.lead.first_step) or None
