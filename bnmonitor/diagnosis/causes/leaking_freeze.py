"""The cause ``leaking-freeze``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Case, Cause


@dataclass(frozen=True, kw_only=True)
class LeakingFreeze(Cause):
    """Parts of the network are frozen, but their running statistics are not.

    ## What it is
    ``requires_grad_(False)`` freezes gamma and beta. The running statistics are buffers, and move as long as the layer
    is in training mode. They also move where a model was copied or rebuilt after its optimizer had been made: no
    optimizer has any of its parameters, and nothing trains.

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

    def title(self, case: Case) -> str:
        """Say that the whole model does not train, if no optimizer has any of its parameters."""
        if case.window is None and case.was is not None:
            return case.was.title
        if case.lead.code == "BN402" and case.window is not None and case.window.facts.untouched:
            return "no optimizer trains the model, but its running statistics are updated"
        return super().title(case)
