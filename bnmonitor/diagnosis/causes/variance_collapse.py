"""The cause ``variance-collapse``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class VarianceCollapse(Cause):
    """Channels before a layer no longer vary.

    ## What it is
    The weights before the layer, or the channels that feed it, have vanished: the layer divides by eps.

    ## What follows
    The scales of the channels differ too much for 8 bits (BN707), and what reads the channels is dead (BN701).

    ## What to do
    Look at weight decay and at the learning rate of the layer before; restart the channels, or prune them.

    ## Example
    Wrong::

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)  # drives weights to zero

    Right::

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(batch_var=[1.0] * 8 + [1e-7] * 2, running_var=[1.0] * 8 + [1e-7] * 2))
    >>> incident.cause, str(incident.severity)
    ('variance-collapse', 'warning')
    """

    name: ClassVar[str] = "variance-collapse"
    leads: ClassVar[tuple[str, ...]] = ("BN105",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN707", "BN701", "BN702", "BN304", "BN305"})
