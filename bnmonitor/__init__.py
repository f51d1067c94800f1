"""bnmonitor: the flight recorder for batch normalization.

The names below are loaded when they are first used, so that importing the package costs nothing: TensorBoard imports it
to find the tab, and should not pay for torch.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from bnmonitor._version import __version__ as __version__

if TYPE_CHECKING:
    from bnmonitor.layers import LayerTable
    from bnmonitor.lightning import BatchNormMonitor
    from bnmonitor.monitor import AlertError, BatchNormWarning, Monitor
    from bnmonitor.results import Alert, Incident, Severity
    from bnmonitor.rules import Finding, Rule, all_rules, default_rules
    from bnmonitor.runs import Run, Runs, open  # noqa: A004 -- as gzip and zipfile have one
    from bnmonitor.sinks import Sink
    from bnmonitor.summary import Summary

# Without a handler, Python prints warnings of a library to standard error, where the console has printed them already.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "Alert": "results",
    "AlertError": "monitor",
    "BatchNormMonitor": "lightning",
    "BatchNormWarning": "monitor",
    "Finding": "rules",
    "Incident": "results",
    "LayerTable": "layers",
    "Monitor": "monitor",
    "Rule": "rules",
    "Run": "runs",
    "Runs": "runs",
    "Severity": "results",
    "Sink": "sinks",
    "Summary": "summary",
    "all_rules": "rules",
    "default_rules": "rules",
    "open": "runs",
}

__all__ = [
    "Alert",
    "AlertError",
    "BatchNormMonitor",
    "BatchNormWarning",
    "Finding",
    "Incident",
    "LayerTable",
    "Monitor",
    "Rule",
    "Run",
    "Runs",
    "Severity",
    "Sink",
    "Summary",
    "all_rules",
    "default_rules",
    "open",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'bnmonitor' has no attribute {name!r}")
    value: object = getattr(import_module(f"bnmonitor.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
