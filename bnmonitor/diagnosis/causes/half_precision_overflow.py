"""The cause ``half-precision-overflow``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor.diagnosis.base import Case, Cause


@dataclass(frozen=True, kw_only=True)
class HalfPrecisionOverflow(Cause):
    """Numbers leave the range of half precision.

    ## What it is
    fp16 ends at 65504. An activation or a gradient beyond it is infinite. A gradient scaler skips the optimizer step
    of such a batch, but its statistics are in the running averages by then (BN102).

    ## What follows
    Running statistics are infinite or NaN (BN101), or far from every other batch (BN603).

    ## What to do
    Train in ``bf16-mixed``, whose range is that of float32; or normalize the input, and set the running statistics back
    with ``bnmonitor.remedies.restore_last_finite(model, monitor)``.

    ## Example
    Wrong::

        Trainer(precision="16-mixed")  # fp16 ends at 65504

    Right::

        Trainer(precision="bf16-mixed")  # ends where float32 does

        # afterwards, for statistics that are infinite already:
        bnmonitor.remedies.restore_last_finite(model, monitor)
    """

    name: ClassVar[str] = "half-precision-overflow"
    leads: ClassVar[tuple[str, ...]] = ("BN102", "BN103", "BN101")
    explains: ClassVar[frozenset[str]] = frozenset({"BN1", "BN303", "BN304", "BN305", "BN603", "BN707"})

    def fits(self, case: Case) -> bool:
        """For a NaN or infinity: whether a layer reads fp16."""
        window = case.window
        if case.lead.code == "BN102":
            return window is None or bool(window.facts.scales) or "scaler" in case.lead.message
        if case.lead.code != "BN101":
            return True
        if window is None or window.sample is None:
            return False
        return torch.float16 in window.sample.input_dtypes or bool(window.facts.scales)

    def title(self, case: Case) -> str:
        """Name what left the range."""
        if case.lead.code == "BN101":
            return "numbers left the range of half precision"
        return super().title(case)
