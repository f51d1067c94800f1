"""The cause ``constant-initialization``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class ConstantInitialization(Cause):
    """Weights began equal, so that channels compute the same and get the same gradient for ever.

    ## What it is
    The weights before a layer were set to one value, or copied from channel to channel.

    ## What follows
    A layer of many channels learns one feature, and the loss stays high. What the optimizer does to one channel it does
    to all: gamma moves in all of them at once (BN702, BN704), and gradients add up over the layers (BN706).

    ## What to do
    Initialize the weights at random, and begin again: equal channels do not part by training.

    ## Example
    Wrong::

        nn.init.constant_(conv.weight, 0.01)

    Right::

        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    A window of such a training:

    >>> import torch
    >>> from bnmonitor.testing import diagnose, make_window
    >>> noise = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    >>> copies = {"batch_mean": 0.1 * noise.expand(64, 8), "batch_var": (1 + noise.square()).expand(64, 8)}
    >>> [incident] = diagnose(make_window(**copies, seen=64))
    >>> incident.cause, str(incident.severity)
    ('constant-initialization', 'error')
    """

    name: ClassVar[str] = "constant-initialization"
    leads: ClassVar[tuple[str, ...]] = ("BN708",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN702", "BN704", "BN706"})
