"""The cause ``changed-input``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor.diagnosis.base import Case, Cause, reads_the_input


@dataclass(frozen=True, kw_only=True)
class ChangedInput(Cause):
    """The data changed in the middle of the training.

    ## What it is
    Another data set, a changed augmentation or a normalization that got lost. What speaks for the data: the first layer
    of the network is the first that changes, and its own weights and gamma do not.

    ## What follows
    Every layer sees another distribution than its running statistics describe (BN304, BN603).

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
    leads: ClassVar[tuple[str, ...]] = ("BN106", "BN107")
    explains: ClassVar[frozenset[str]] = frozenset(
        {"BN103", "BN106", "BN107", "BN109", "BN304", "BN305", "BN601", "BN602", "BN603", "BN704"}
    )
    everywhere: ClassVar[bool] = True

    def fits(self, case: Case) -> bool:
        """Whether all channels of the first layer changed within a step, and its gamma did not."""
        window, name = case.window, case.lead.layer
        if window is None or name is None or not reads_the_input(window, name):
            return False
        place = window.layers.names.index(name)
        if case.lead.first_step not in window.steps:
            return False
        at, span = window.steps.index(case.lead.first_step), window.layers.span(place)
        if not 0 < at < len(window):
            return False
        gamma = window.gamma[[at - 1, -1], span]
        still = gamma.isnan().all() or torch.allclose(gamma[0], gamma[1], rtol=0.3, atol=0.1)
        jump = window.batch_var[at:, span].nanmedian(0).values / window.batch_var[:at, span].nanmedian(0).values
        return bool(still) and float((jump > 10).double().mean()) > 0.5

    def title(self, case: Case) -> str:
        """Say that the data changed."""
        return "the input changed"
