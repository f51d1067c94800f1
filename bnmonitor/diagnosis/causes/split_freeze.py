"""The cause ``split-freeze``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class SplitFreeze(Cause):
    """Training normalizes by the batch, evaluation by running statistics that nothing updates.

    ## What it is
    ``track_running_stats = False`` on a layer that has running statistics stops their updates, but evaluation uses
    them.

    ## What follows
    Evaluation is cold (BN303) and differs from training (BN305).

    ## What to do
    Freeze with ``layer.eval()``, and leave ``track_running_stats`` alone.

    ## Example
    Wrong::

        model.bn.track_running_stats = False  # training normalizes by the batch, evaluation by old statistics

    Right::

        bnmonitor.remedies.freeze(model, include=["bn"])  # both normalize by the running statistics

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(updates=0, ledger={"tracks": False}))
    >>> incident.cause, str(incident.severity)
    ('split-freeze', 'warning')
    """

    name: ClassVar[str] = "split-freeze"
    leads: ClassVar[tuple[str, ...]] = ("BN403",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN303", "BN305", "BN404", "BN603"})
