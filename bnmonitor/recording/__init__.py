"""Every step: buffers in, windows out."""

from bnmonitor.recording.moment import Moment, RecorderSettings
from bnmonitor.recording.recorder import Recorder
from bnmonitor.recording.snapshot import snapshot_window

__all__ = [
    "Moment",
    "Recorder",
    "RecorderSettings",
    "snapshot_window",
]
