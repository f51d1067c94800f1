"""The cause ``small-batch``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Case, Cause
from bnmonitor.results import Severity


@dataclass(frozen=True, kw_only=True)
class SmallBatch(Cause):
    """Too few values are normalized together.

    ## What it is
    The statistics of a handful of values are noise. Each layer normalizes by that noise in training, and by its average
    in evaluation, which no training step ever saw.

    ## What follows
    The running statistics lag (BN304), evaluation differs from training (BN305), and validation data seem to differ
    from training data (BN603).

    ## What to do
    Normalize at least 16 samples together: enlarge the batch, convert to SyncBatchNorm over several devices, or replace
    BatchNorm by GroupNorm.

    ## Example
    Wrong::

        loader = DataLoader(data, batch_size=2)
        Trainer(accumulate_grad_batches=16)  # each batch of 2 is normalized by itself

    Right::

        loader = DataLoader(data, batch_size=32)

        # or, where memory is short:
        Trainer(devices=8, sync_batchnorm=True)
        nn.GroupNorm(8, 64)

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(sizes=4, values=4))
    >>> incident.cause, str(incident.severity)
    ('small-batch', 'error')
    """

    name: ClassVar[str] = "small-batch"
    leads: ClassVar[tuple[str, ...]] = ("BN205", "BN204", "BN201", "BN203", "BN202", "BN206")
    explains: ClassVar[frozenset[str]] = frozenset({"BN304", "BN305", "BN601", "BN603", "BN707", "BN303"})
    everywhere: ClassVar[bool] = True
    belated: ClassVar[bool] = True

    def fits(self, case: Case) -> bool:
        """Return whether it is about the size of the batch: a chain that shrinks a little hides no other fault."""
        return case.lead.code != "BN206" or case.lead.severity is Severity.ERROR
