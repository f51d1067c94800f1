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
    """

    name: ClassVar[str] = "dead-channels"
    leads: ClassVar[tuple[str, ...]] = ("BN701",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN105", "BN702", "BN707"})
