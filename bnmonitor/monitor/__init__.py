"""The engine: when rules run, and what happens then."""

from bnmonitor.monitor.actions import AlertError, BatchNormWarning, warn
from bnmonitor.monitor.harmless import RefusedError, make_harmless
from bnmonitor.monitor.monitor import Monitor, Phase, running
from bnmonitor.monitor.rollback import Rollback
from bnmonitor.monitor.settings import Action, OneAction, Settings, as_folder

__all__ = [
    "Action",
    "AlertError",
    "BatchNormWarning",
    "Monitor",
    "OneAction",
    "Phase",
    "RefusedError",
    "Rollback",
    "Settings",
    "as_folder",
    "make_harmless",
    "running",
    "warn",
]
