"""Whether batch statistics could be recovered, and if not, why."""

from __future__ import annotations

from enum import IntEnum


class Recovery(IntEnum):
    """Whether the batch statistics of a layer and step could be recovered, and if not, why."""

    EXACT = 0
    AVERAGED = 1
    OBSERVED = 2
    NO_UPDATE = 3
    NO_BUFFERS = 4
    PRECISION = 5
    FOREIGN = 6
    NO_MOMENTUM = 7
    NON_FINITE = 8
    MOMENTUM_CHANGED = 9
    DOUBTFUL = 10

    @property
    def known(self) -> bool:
        """Whether there are batch statistics."""
        return self <= Recovery.OBSERVED

    @property
    def reason(self) -> str:
        """One sentence for people."""
        return _REASONS[self]


_REASONS = {
    Recovery.EXACT: "recovered from one update of the running statistics",
    Recovery.AVERAGED: "several batches between two reads: their weighted average",
    Recovery.OBSERVED: "the layer keeps no running statistics: read from its forward",
    Recovery.NO_UPDATE: "the running statistics were not updated in this step",
    Recovery.NO_BUFFERS: "the layer keeps no running statistics, and its forward was not observed",
    Recovery.PRECISION: "rounding of the running statistics hides the batch: too small a momentum or batch variance",
    Recovery.FOREIGN: "something other than this layer's forward wrote or replaced its running statistics",
    Recovery.NON_FINITE: "the running statistics are not finite",
    Recovery.NO_MOMENTUM: "momentum is 0: the running statistics carry nothing of the batch",
    Recovery.DOUBTFUL: "an odd batch or an unseen write: the mean alone jumped, or the layer was in evaluation mode",
    Recovery.MOMENTUM_CHANGED: "momentum was changed between the forward and the end of the step",
}
