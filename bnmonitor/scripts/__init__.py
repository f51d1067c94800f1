"""Scripts that nobody edits: they are started as ever, and the models that they train are found and watched."""

from bnmonitor.scripts.launch import ENTRY, environment, program

__all__ = [
    "ENTRY",
    "environment",
    "program",
]
