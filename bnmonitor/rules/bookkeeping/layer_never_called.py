"""BN506: a layer of the model that training does not use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class LayerNeverCalled(Rule):
    """Training did not call a layer in its first steps.

    ## What it does
    Flags layers that had no update, no gradient and no observed call in the first twenty training steps.

    ``bnmonitor audit`` notes layers with less than a twentieth of the updates of the median layer.

    ## Why is this bad?
    It may be intended: an unused head, or a branch for later. Otherwise the forward pass skips the layer: a subclass
    with a forward that does not call its parent's, a layer that ``__init__`` makes and the forward forgets, or a layer
    with a copy in a plain list that is called in its place.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = LayerNeverCalled().check(make_window(updates=0, ledger={"called": False}))
    >>> str(finding.severity)
    'info'

    A layer that ran at least once stays quiet:

    >>> LayerNeverCalled().check(make_window(updates=0, ledger={"called": True}))
    []

    ## Code
    Wrong::

        self.bn = nn.BatchNorm2d(64)  # forward calls nn.functional.relu(self.conv(x))

    Right::

        self.bn = nn.BatchNorm2d(64)  # forward calls nn.functional.relu(self.bn(self.conv(x)))

    ## What to do
    Remove the layer if nothing needs it; otherwise find out why the forward pass does not reach it.

    ## Thresholds
    ``after = 20`` training steps: enough for an alternating or random branch to run at least once.

    ## Look-alikes
    Unused heads of a pretrained network, branches that are switched on later, and an averaged copy that is only
    evaluated.

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
                message=f"the layer is in the model, but training did not call it in the first {ledger.steps} steps",
                advice="remove the layer if nothing needs it; otherwise find out why the forward does not reach it",
            )
            for layer in (~ledger.called & ~ledger.averaged).nonzero().flatten().tolist()
        ]
