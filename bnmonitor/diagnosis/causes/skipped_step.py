"""The cause ``skipped-step``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class SkippedStep(Cause):
    """A guard skipped a step, and its batch stayed in the running statistics.

    ## What it is
    A guard against NaN or large gradients protects the parameters. The forward had already written the running
    statistics, which nothing puts back.

    ## What follows
    Running statistics are far from every other batch, or not finite (BN101), and evaluation is wrong (BN305, BN603)
    until they have forgotten the batch.

    ## What to do
    Keep a copy of the buffers and put it back where a step is skipped.

    ## Example
    Wrong::

        if norm < 10:  # the batch is in the running statistics all the same
            optimizer.step()

    Right::

        kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
        ...
        if norm < 10:
            optimizer.step()
        else:
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])

    A window of such a training:

    >>> import torch
    >>> from bnmonitor.testing import diagnose, make_window
    >>> shift, gamma = torch.zeros(64, 3), 1 + 1e-3 * torch.arange(64.0)[:, None].expand(-1, 3)
    >>> shift[60], gamma[60] = 8.0, gamma[59]
    >>> [incident] = diagnose(make_window(shift=shift, gamma=gamma))
    >>> incident.cause, str(incident.severity)
    ('skipped-step', 'warning')
    """

    name: ClassVar[str] = "skipped-step"
    leads: ClassVar[tuple[str, ...]] = ("BN102",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN101", "BN304", "BN305", "BN603"})
