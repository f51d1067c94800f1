"""The cause ``changed-weights``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class ChangedWeights(Cause):
    """The weights of one layer have changed far more than those of the others.

    ## What it is
    The batch variance, the mean or gamma of one layer runs away while the layers before it are calm. If it grew step
    by step, the usual reason is a learning rate that is too high for this layer, or a gradient that was not clipped. If
    it jumped in one step, weights were loaded or initialized in the middle of the training.

    ## What follows
    The layers after it get another input, their running statistics lag (BN304), numbers come near the limit of half
    precision (BN103), and some channels are scaled far more than others (BN707).

    ## What to do
    Lower the learning rate, of the layer's parameter group or of all, or clip gradients. After a jump, look at what
    wrote the weights of the layer at the step that the incident names.

    ## Example
    Wrong::

        loss.backward()
        optimizer.step()
        model.head.load_state_dict(other)  # in the middle of the training

    Right::

        model.head.load_state_dict(other)  # before the first step, or with a warm-up after it
        for x, y in loader:
            loss(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(gamma=[1.0, 12.0, 0.9]))
    >>> incident.cause, str(incident.severity)
    ('changed-weights', 'warning')
    """

    name: ClassVar[str] = "changed-weights"
    leads: ClassVar[tuple[str, ...]] = ("BN103", "BN106", "BN107", "BN702")
    explains: ClassVar[frozenset[str]] = frozenset(
        {"BN103", "BN105", "BN106", "BN109", "BN107", "BN304", "BN305", "BN603", "BN701", "BN702", "BN706", "BN707"}
    )
