"""BN506: a layer that is part of the model and takes no part in its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class LayerNeverCalled(Rule):
    """A layer was not called in the first steps of training.

    ## What it does
    Flags layers that had no update, no gradient and no call seen in the first twenty training steps.

    ## Why is this bad?
    It may be meant: an unused head, a branch for later. Otherwise the forward passes it by: a subclass whose forward
    does not call its parent's, a layer that is made in ``__init__`` and forgotten, or one whose twin in a plain list is
    called in its place.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = LayerNeverCalled().check(make_window(updates=0, ledger={"called": False}))
    >>> str(finding.severity)
    'info'

    A layer that ran at least once stays quiet:

    >>> LayerNeverCalled().check(make_window(updates=0, ledger={"called": True}))
    []

    ## What to do
    Remove the layer if nothing needs it; else look why the forward does not reach it.

    ## Thresholds
    ``after = 20`` training steps: enough for an alternating or random branch to have come up.

    ## Look-alikes
    Unused heads of a pretrained network, branches that are switched on later, an averaged copy that is only evaluated.

    ## References
    feinanshan/FANet#5; official-stockfish/nnue-pytorch#91.
    """

    code: ClassVar[str] = "BN506"
    name: ClassVar[str] = "layer-never-called"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[frozenset[str]] = frozenset({"ledger", "samples"})

    after: int = 20

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that training has not reached."""
        ledger = window.ledger
        if ledger.steps < self.after:
            return []
        return [
            Finding(
                severity=Severity.INFO,
                layer=layer,
                first_step=window.steps[0],
                value=float(ledger.steps),
                threshold=float(self.after),
                message=f"it is part of the model, but was not called in the first {ledger.steps} training steps",
                advice="remove it if nothing needs it; else look why the forward does not reach it",
            )
            for layer in (~ledger.called & ~ledger.averaged).nonzero().flatten().tolist()
        ]
