"""What goes with a row of the tape: when it was read, and what is not among the numbers on the tape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from bnmonitor.recording.held import AFFINE
from bnmonitor.recording.recovery import Seen
from bnmonitor.recording.traces import Traces
from bnmonitor.transfer import Unpack

READ = ("running_mean", "running_var", *AFFINE)
"""The numbers per channel on the tape, in their order."""


@dataclass(frozen=True)
class Row:
    """What goes with a row of the tape: a training step, or None for a state that a later step is compared with.

    Rows that are alike share one object for it, so that it is turned into a tensor once.
    """

    step: int | None
    rate: float
    training: bytes
    momentum: list[float | None]
    traces: Traces
    seen: Mapping[int, Seen] | None
    foreign: bool = False
    witness: Tensor | None = None

    @property
    def loose(self) -> list[Tensor]:
        """What is on the layers' device and not on the tape."""
        return [
            *([] if self.witness is None else [self.witness]),
            *(t for seen in (self.seen or {}).values() for t in (seen.mean, seen.var)),
        ]

    def arrived(self, loose: Iterator[Tensor]) -> Row:
        """Return the same with what has arrived of :attr:`loose`."""
        witness = None if self.witness is None else next(loose)
        seen = self.seen and {key: replace(s, mean=next(loose), var=next(loose)) for key, s in self.seen.items()}
        return replace(self, witness=witness, seen=seen)


class Sent(NamedTuple):
    """What goes with rows of the tape that are on their way: themselves, and what makes the rest of what arrives."""

    rows: list[Row]
    moved: bool
    unpack: Unpack
