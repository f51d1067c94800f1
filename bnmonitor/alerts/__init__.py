"""Findings become episodes: pending, open, cleared."""

from bnmonitor.alerts.book import AlertBook

__all__ = [
    "AlertBook",
]
