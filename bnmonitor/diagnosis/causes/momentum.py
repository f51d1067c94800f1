"""The cause ``momentum``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class Momentum(Cause):
    """The momentum does not average the batches as it should.

    ## What it is
    PyTorch's momentum is the weight of the new batch, that of other frameworks the weight of the past: a value copied
    from there keeps nothing but the last batch. With 0 nothing is ever updated; with 1 nothing is averaged.

    ## What follows
    The running statistics are those of one batch, or of none: evaluation differs from training (BN305), and validation
    data seem to differ (BN603).

    ## What to do
    Set the momentum to 0.1, or to 0.01 for long trainings.

    ## Example
    Wrong::

        nn.BatchNorm2d(64, momentum=0.99)  # Keras's: keeps one percent of the past here

    Right::

        nn.BatchNorm2d(64, momentum=0.01)
        bnmonitor.remedies.set_momentum(model, 0.01)  # for a model that is there already

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(momentum=0.99))
    >>> incident.cause, str(incident.severity)
    ('momentum', 'error')
    """

    name: ClassVar[str] = "momentum"
    leads: ClassVar[tuple[str, ...]] = ("BN302", "BN301")
    explains: ClassVar[frozenset[str]] = frozenset(
        {"BN303", "BN304", "BN305", "BN404", "BN603", "BN106", "BN109", "BN704", "BN707"}
    )
