"""The cause ``non-finite-input``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Case, Cause, reads_the_input
from bnmonitor.diagnosis.causes.non_finite import EFFECTS
from bnmonitor.diagnosis.course import repair


@dataclass(frozen=True, kw_only=True)
class NonFiniteInput(Cause):
    """A NaN or an infinity came in with the data.

    ## What it is
    One missing pixel or one division by zero in a sample makes the statistics of its whole batch NaN, in every layer
    after the first. What speaks for the data: the first layer of the network is the first that is not finite, and until
    then nothing had grown.

    ## What follows
    The running averages keep the NaN forever (BN101), and the gradients of the batch make the weights NaN.

    ## What to do
    Find the sample: ``torch.isfinite(x).all()`` in the data set. If the weights are NaN too, go back to the newest
    checkpoint in which they are finite; if not, ``bnmonitor.remedies.restore_last_finite(model, monitor)``.

    ## Example
    Wrong::

        x = (x - x.mean()) / x.std()  # a black image has standard deviation 0: NaN

    Right::

        x = (x - x.mean()) / x.std().clamp(min=1e-6)
        assert torch.isfinite(x).all()

        # afterwards, if the weights are finite:
        bnmonitor.remedies.restore_last_finite(model, monitor)
    """

    name: ClassVar[str] = "non-finite-input"
    leads: ClassVar[tuple[str, ...]] = ("BN101",)
    explains: ClassVar[frozenset[str]] = EFFECTS
    everywhere: ClassVar[bool] = True

    def fits(self, case: Case) -> bool:
        """Whether the first layer is the first that is not finite, in its batch and in whole."""
        window, name = case.window, case.lead.layer
        if window is None or name is None or not reads_the_input(window, name):
            return False
        place = window.layers.names.index(name)
        whole = len(case.lead.layers) >= max(2, len(window.layers) // 2)
        if not whole or case.lead.first_step not in window.steps:
            return False
        at, span = window.steps.index(case.lead.first_step), window.layers.span(place)
        before = window.running_var[max(0, at - 1), span]
        return bool(before.isfinite().all()) and float(before.max()) < 1e10

    def title(self, case: Case) -> str:
        """Say that the data are the likely origin."""
        return "a NaN or infinity came in with the data"

    def advice(self, case: Case) -> str:
        """Say whether the weights are finite, and how to go on."""
        return repair(case.window, case.lead.advice)

    def lasts(self, case: Case) -> bool:
        """Whether the training is lost."""
        return case.lost
