"""The command line."""

from bnmonitor.cli.commands import main

__all__ = [
    "main",
]
