"""The cause ``outlier-batch``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class OutlierBatch(Cause):
    """One batch of data was far from all others.

    ## What it is
    A broken file, a picture without normalization, a sensor that failed. The next batch was as usual again.

    ## What follows
    The running statistics remember the batch, so that evaluation is wrong for a while (BN305) and validation data seem
    to differ (BN603). Where the loss does not bear such a batch, its gradient throws the weights away, and everything
    that a learning rate too high does follows (BN704, BN106, BN101).

    ## What to do
    Look at the data of that step, estimate the statistics again, and go back to a checkpoint from before if the loss
    has not come back.

    ## Example
    Wrong::

        x = load(path)  # now and then pixels from 0 to 255 instead of 0 to 1

    Right::

        x = load(path)
        if not -10 < x.mean() < 10:
            raise ValueError(path)

    A window of such a training:

    >>> import torch
    >>> from bnmonitor.testing import diagnose, make_structure, make_window
    >>> course = torch.ones(64, 3)
    >>> course[60] = 1e4
    >>> [incident] = diagnose(make_window(batch_var=course, facts={"structure": make_structure(root=True)}))
    >>> incident.cause, str(incident.severity)
    ('outlier-batch', 'warning')
    """

    name: ClassVar[str] = "outlier-batch"
    leads: ClassVar[tuple[str, ...]] = ("BN606",)
    explains: ClassVar[frozenset[str]] = frozenset(
        {"BN1", "BN203", "BN303", "BN304", "BN305", "BN603", "BN701", "BN702", "BN704", "BN706", "BN707"}
    )
    everywhere: ClassVar[bool] = True
