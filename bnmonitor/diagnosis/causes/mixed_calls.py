"""The cause ``mixed-calls``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class MixedCalls(Cause):
    """One layer normalizes inputs of different distributions.

    ## What it is
    A step calls the layer for several domains, views or scales, at several places of the network, or in forwards that
    train nothing; or each step takes another path to it. Its running statistics average them all, and are right for
    none.

    ## What follows
    Evaluation differs from training (BN305), and validation data seem to differ from training data (BN603).

    ## What to do
    Give each kind of input its own normalization, or put all kinds into one batch.

    ## Example
    Wrong::

        logits = model(photos), model(sketches)  # the running statistics average both kinds

    Right::

        logits = model(torch.cat([photos, sketches]))  # one batch of both kinds

        # or a normalization for each kind:
        self.bn = nn.ModuleDict({"photo": nn.BatchNorm2d(64), "sketch": nn.BatchNorm2d(64)})
    """

    name: ClassVar[str] = "mixed-calls"
    leads: ClassVar[tuple[str, ...]] = ("BN502", "BN509", "BN508", "BN605")
    explains: ClassVar[frozenset[str]] = frozenset({"BN304", "BN305", "BN601", "BN602", "BN603", "BN106"})
    belated: ClassVar[bool] = True
