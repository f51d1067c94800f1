"""The cause ``dead-channels``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class DeadChannels(Cause):
    """Channels are switched off, and no gradient will bring them back.

    ## What it is
    Gamma has vanished, or beta is so negative that the ReLU after the layer never opens.

    ## What follows
    The layers after it get constant channels (BN105).

    ## What to do
    Lower the learning rate, spare gamma and beta the weight decay, or restart from an earlier checkpoint.

    ## Example
    Wrong::

        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.05)  # decays gamma as well

    Right::

        groups = bnmonitor.remedies.parameter_groups(model, weight_decay=5e-4)  # spares gamma and beta
        optimizer = torch.optim.SGD(groups, lr=0.1)

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(beta=[0.0, -5.0, -6.0, 0.1], relu=True))
    >>> incident.cause, str(incident.severity)
    ('dead-channels', 'warning')
    """

    name: ClassVar[str] = "dead-channels"
    leads: ClassVar[tuple[str, ...]] = ("BN701",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN105", "BN702", "BN707"})
