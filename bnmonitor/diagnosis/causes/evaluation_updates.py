"""The cause ``evaluation-updates-statistics``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class EvaluationUpdates(Cause):
    """An evaluation runs in training mode and updates the running statistics.

    ## What it is
    Somebody forgot ``model.eval()``, or a part of the model was put back into training mode.

    ## What follows
    The running statistics average validation data, so validation data seem to differ (BN603), and a small last batch or
    an input of zeros ruins them.

    ## What to do
    Call ``model.eval()`` before the evaluation and ``model.train()`` after it.

    ## Example
    Wrong::

        with torch.no_grad():  # stops gradients, and not the updates of running statistics
            for x, y in val_loader:
                model(x)

    Right::

        model.eval()
        with torch.no_grad():
            for x, y in val_loader:
                model(x)
        model.train()

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(ledger={"seen": {"validation": 6}, "latest": {"validation": 6}}))
    >>> incident.cause, str(incident.severity)
    ('evaluation-updates-statistics', 'warning')
    """

    name: ClassVar[str] = "evaluation-updates-statistics"
    leads: ClassVar[tuple[str, ...]] = ("BN406",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN303", "BN304", "BN305", "BN603", "BN106", "BN502"})
    everywhere: ClassVar[bool] = True
    belated: ClassVar[bool] = True
