"""The cause ``data-order``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class DataOrder(Cause):
    """The order of the data makes the batches differ from one another.

    ## What it is
    Batches of one class, one source or one video, or two kinds of batches in turn, have statistics of their own. The
    running average follows the last of them.

    ## What follows
    The running statistics lag (BN304), and validation data seem to differ from training data (BN603).

    ## What to do
    Shuffle over the whole data set, and mix the sources within each batch.

    ## Example
    Wrong::

        loader = DataLoader(sorted_by_class, batch_size=32)  # every batch is of one class

    Right::

        loader = DataLoader(sorted_by_class, batch_size=32, shuffle=True)
    """

    name: ClassVar[str] = "data-order"
    leads: ClassVar[tuple[str, ...]] = ("BN601", "BN602")
    explains: ClassVar[frozenset[str]] = frozenset({"BN304", "BN305", "BN601", "BN602", "BN603"})
    everywhere: ClassVar[bool] = True
    belated: ClassVar[bool] = True
