"""The cause ``eval-mode-in-training``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Case, Cause


@dataclass(frozen=True, kw_only=True)
class EvalMode(Cause):
    """A layer that is trained runs in evaluation mode.

    ## What it is
    ``model.eval()`` was called before training, or a validation did not return to training mode. The layer normalizes
    by running statistics that no longer follow the weights.

    ## What follows
    Nothing holds the activations: variances, means and gammas grow (BN106, BN702). In a network that was never trained
    the statistics are still the initial 0 and 1 (BN404): it does not normalize at all. Once ``model.train()`` is called
    again, the batches are far from the statistics that stood still (BN405), which also had fewer updates than the
    weights (BN303).

    ## What to do
    Call ``model.train()`` at the start of each epoch, and freeze what should stay frozen on purpose.

    ## Example
    Wrong::

        for epoch in range(10):
            train(model)
            model.eval()
            validate(model)  # from the second epoch on, training runs in evaluation mode

    Right::

        for epoch in range(10):
            model.train()
            train(model)
            model.eval()
            validate(model)
    """

    name: ClassVar[str] = "eval-mode-in-training"
    leads: ClassVar[tuple[str, ...]] = ("BN401",)
    explains: ClassVar[frozenset[str]] = frozenset(
        {"BN702", "BN704", "BN106", "BN107", "BN109", "BN303", "BN304", "BN305", "BN404", "BN405", "BN701", "BN105"}
    )

    def detail(self, case: Case) -> str:
        """Say what the statistics are, if they never saw data."""
        initial = any(alert.code == "BN404" for alert in case.evidence)
        return f"{case.lead.message}, and are still the initial 0 and 1" if initial else case.lead.message

    def advice(self, case: Case) -> str:
        """Add what a network needs whose statistics were lost when its weights were loaded."""
        loaded = "; if the weights were loaded, load their running statistics too"
        return case.lead.advice + (loaded if any(alert.code == "BN404" for alert in case.evidence) else "")
