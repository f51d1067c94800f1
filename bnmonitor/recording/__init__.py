"""Every step: buffers in, windows out."""

from bnmonitor.recording.recorder import Recorder
from bnmonitor.recording.snapshot import snapshot_window

__all__ = [
    "Recorder",
    "snapshot_window",
]
