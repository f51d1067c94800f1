"""The cause ``validation-shift``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class ValidationShift(Cause):
    """Validation data have other statistics than training data.

    ## What it is
    Augmentation, resizing, color or the source of the data differ between training and validation.

    ## What to do
    Compare the two pipelines on one sample: the same resize, crop, order of channels and normalization.

    ## Example
    Wrong::

        train = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
        val = transforms.ToTensor()  # not normalized

    Right::

        prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
        train = transforms.Compose([transforms.RandomCrop(32, 4), prepare])
        val = prepare

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, held_out_window
    >>> [incident] = diagnose(held_out_window(mean=2.0))
    >>> incident.cause, str(incident.severity)
    ('validation-shift', 'warning')
    """

    name: ClassVar[str] = "validation-shift"
    leads: ClassVar[tuple[str, ...]] = ("BN603", "BN305")
    explains: ClassVar[frozenset[str]] = frozenset({"BN603", "BN305"})
    everywhere: ClassVar[bool] = True
    belated: ClassVar[bool] = True
