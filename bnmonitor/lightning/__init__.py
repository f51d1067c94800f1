"""The adapter to a Lightning Trainer."""

from bnmonitor.lightning.base import CallbackBase
from bnmonitor.lightning.callback import BatchNormMonitor

__all__ = [
    "BatchNormMonitor",
    "CallbackBase",
]
