"""The cause ``unfreeze-shock``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class UnfreezeShock(Cause):
    """Unfreezing moved layers away from their running statistics.

    ## What it is
    A frozen layer was put into training mode, where its batches are far from the statistics it used so far.

    ## What follows
    The layers after it get another input than before (BN106, BN304).

    ## What to do
    Unfreeze in evaluation mode of the normalization layers, or warm the statistics up before the weights train.

    ## Example
    Wrong::

        bnmonitor.remedies.thaw(model.backbone)  # its batches are far from the statistics it was frozen with

    Right::

        bnmonitor.remedies.recalibrate(model, train_loader)
        bnmonitor.remedies.thaw(model.backbone)
    """

    name: ClassVar[str] = "unfreeze-shock"
    leads: ClassVar[tuple[str, ...]] = ("BN405",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN106", "BN107", "BN109", "BN303", "BN304", "BN305", "BN704"})
