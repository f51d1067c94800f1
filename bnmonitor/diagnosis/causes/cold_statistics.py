"""The cause ``cold-statistics``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class ColdStatistics(Cause):
    """An evaluation comes before the running statistics are warm.

    ## What it is
    After n updates with momentum m the initial mean 0 and variance 1 still have the weight (1 - m) ** n.

    ## What follows
    Evaluation differs from training (BN305), and validation data seem to differ (BN603). It passes by itself.

    ## What to do
    Evaluate later, or raise the momentum for the first steps.

    ## Example
    Wrong::

        Trainer(val_check_interval=10)  # ten updates with momentum 0.01: 90 % of the initial mean 0 and variance 1

    Right::

        Trainer(val_check_interval=500, callbacks=[bnmonitor.remedies.Recalibrate(max_batches=100)])

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(momentum=0.01, seen=80, evaluation="test"))
    >>> incident.cause, str(incident.severity)
    ('cold-statistics', 'error')
    """

    name: ClassVar[str] = "cold-statistics"
    leads: ClassVar[tuple[str, ...]] = ("BN303",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN305", "BN304", "BN603"})
    everywhere: ClassVar[bool] = True
    belated: ClassVar[bool] = True
