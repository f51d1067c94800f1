"""Turns findings into alerts that open, get worse and are cleared."""

from bnmonitor.alerts.book import AlertBook

__all__ = [
    "AlertBook",
]
