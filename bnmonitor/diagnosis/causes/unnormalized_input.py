"""The cause ``unnormalized-input``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Cause


@dataclass(frozen=True, kw_only=True)
class UnnormalizedInput(Cause):
    """The input of the network is not normalized.

    ## What it is
    Pixels from 0 to 255, or features in their own units, reach the first layer.

    ## What follows
    Activations are large before the first normalization: too large for half precision (BN103).

    ## What to do
    Subtract the mean and divide by the standard deviation of the training data, the same way in evaluation.

    ## Example
    Wrong::

        x = torch.from_numpy(image).float()  # pixels from 0 to 255

    Right::

        x = torch.from_numpy(image).float() / 255
        x = (x - mean) / std  # of the training data, in training and in evaluation
    """

    name: ClassVar[str] = "unnormalized-input"
    leads: ClassVar[tuple[str, ...]] = ("BN108",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN103", "BN106", "BN107", "BN603", "BN707"})
