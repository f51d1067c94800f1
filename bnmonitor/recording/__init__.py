"""Every step: buffers in, windows out."""

from bnmonitor.recording.recorder import Recorder

__all__ = [
    "Recorder",
]
