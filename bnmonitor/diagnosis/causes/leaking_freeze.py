"""The cause ``leaking-freeze``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class LeakingFreeze(Cause):
    """Parts of the network are frozen, but their running statistics are not.

    ## What it is
    ``requires_grad_(False)`` freezes gamma and beta. The running statistics are buffers, and move as long as the layer
    is in training mode.

    ## What follows
    The frozen part computes something else in evaluation than before (BN305, BN603).

    ## What to do
    Put the frozen layers into evaluation mode after each call of ``model.train()``:
    ``bnmonitor.remedies.freeze(model.backbone)`` keeps them there.

    ## Example
    Wrong::

        for parameter in model.backbone.parameters():
            parameter.requires_grad_(False)  # the running statistics still move

    Right::

        bnmonitor.remedies.freeze(model.backbone)  # parameters and statistics, through every model.train()

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(affine_trains=False, running_mean=[0.6, -0.5], start_mean=0.0))
    >>> incident.cause, str(incident.severity)
    ('leaking-freeze', 'error')
    """

    name: ClassVar[str] = "leaking-freeze"
    leads: ClassVar[tuple[str, ...]] = ("BN402", "BN407")
    explains: ClassVar[frozenset[str]] = frozenset({"BN304", "BN305", "BN603", "BN405"})
