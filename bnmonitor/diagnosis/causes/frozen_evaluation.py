"""The cause ``frozen-compiled-evaluation``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class FrozenEvaluation(Cause):
    """Every evaluation uses the weights and statistics of the first one, which its compiled graph holds as constants.

    ## What it is
    Inductor freezes what it compiles for inference: parameters and buffers become constants of the graph. That is meant
    for a network whose training is over.

    ## What follows
    The accuracy stands still while the network learns, evaluation differs from training (BN305), and validation data
    seem to differ (BN603).

    ## What to do
    Turn freezing off while the model trains, and call ``torch._dynamo.reset()``.

    ## Example
    Wrong::

        torch._inductor.config.freezing = True  # in a program that trains
        model = torch.compile(model)

    Right::

        model = torch.compile(model)  # freeze once the training is over

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(ledger={"folded": True}))
    >>> incident.cause, str(incident.severity)
    ('frozen-compiled-evaluation', 'error')
    """

    name: ClassVar[str] = "frozen-compiled-evaluation"
    leads: ClassVar[tuple[str, ...]] = ("BN511",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN303", "BN304", "BN305", "BN505", "BN603"})
    everywhere: ClassVar[bool] = True
    belated: ClassVar[bool] = True
