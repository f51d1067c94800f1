"""The cause ``ruined-statistics``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class RuinedStatistics(Cause):
    """The model that was loaded comes from a training that had diverged.

    ## What it is
    Running means or variances are larger than any that a trained network has, and nothing in this training explains it:
    they came with the checkpoint.

    ## What follows
    Evaluation divides by deviations that no batch has (BN305), and the running statistics need hundreds of steps to
    come back (BN304).

    ## What to do
    Load a checkpoint from before the training diverged. If the weights are sound, estimate the statistics again:
    ``bnmonitor.remedies.recalibrate(model, loader)``.

    ## Example
    Wrong::

        model.load_state_dict(torch.load("last.pt"))  # saved after the loss had gone to 1e12

    Right::

        model.load_state_dict(torch.load("best.pt"))  # bnmonitor audit best.pt finds nothing

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(channels=(2, 2), running_var=[1.0, 2.0, 1e22, 1e21], batch_var=1.0))
    >>> incident.cause, str(incident.severity)
    ('ruined-statistics', 'error')
    """

    name: ClassVar[str] = "ruined-statistics"
    leads: ClassVar[tuple[str, ...]] = ("BN109",)
    explains: ClassVar[frozenset[str]] = frozenset(
        {"BN103", "BN105", "BN106", "BN107", "BN303", "BN304", "BN305", "BN603", "BN704", "BN707"}
    )
    everywhere: ClassVar[bool] = True
