"""The remedies that rules advise: functions that repair a model, and Lightning callbacks that call them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnmonitor.remedies.freezing import freeze, thaw
from bnmonitor.remedies.parameters import parameter_groups, set_momentum
from bnmonitor.remedies.recalibration import Recalibration, recalibrate
from bnmonitor.remedies.restoring import restore_last_finite
from bnmonitor.remedies.syncing import convert_sync

if TYPE_CHECKING:
    from bnmonitor.remedies.callbacks import Freeze, Recalibrate

__all__ = [
    "Freeze",
    "Recalibrate",
    "Recalibration",
    "convert_sync",
    "freeze",
    "parameter_groups",
    "recalibrate",
    "restore_last_finite",
    "set_momentum",
    "thaw",
]


def __getattr__(name: str) -> object:
    if name not in ("Freeze", "Recalibrate"):  # these alone need Lightning
        raise AttributeError(f"module 'bnmonitor.remedies' has no attribute {name!r}")
    from bnmonitor.remedies import callbacks

    return getattr(callbacks, name)
