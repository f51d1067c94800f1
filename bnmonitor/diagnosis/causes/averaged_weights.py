"""The cause ``foreign-statistics``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class AveragedWeights(Cause):
    """Weights are evaluated with running statistics of other weights.

    ## What it is
    An average of the weights (EMA, SWA), a checkpoint without buffers or a copy has statistics that do not belong to
    its weights, or the initial 0 and 1.

    ## What follows
    Evaluation differs from training (BN305), most in the deep layers.

    ## What to do
    Average the buffers too (``use_buffers=True``), or estimate the statistics anew before the evaluation
    (``torch.optim.swa_utils.update_bn``).

    ## Example
    Wrong::

        average = AveragedModel(model)  # averages the weights, and leaves the statistics of the first copy
        ...
        evaluate(average)

    Right::

        average = AveragedModel(model, use_buffers=True)  # averages the running statistics too
        ...
        evaluate(average)

        # or, for an average that is complete:
        bnmonitor.remedies.recalibrate(average, train_loader)
        evaluate(average)

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(ledger={"uses_training_statistics": True}))
    >>> incident.cause, str(incident.severity)
    ('foreign-statistics', 'warning')
    """

    name: ClassVar[str] = "foreign-statistics"
    leads: ClassVar[tuple[str, ...]] = ("BN505", "BN404")
    explains: ClassVar[frozenset[str]] = frozenset({"BN303", "BN304", "BN305", "BN404", "BN603"})
    everywhere: ClassVar[bool] = True
    belated: ClassVar[bool] = True
