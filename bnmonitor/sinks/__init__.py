"""Where the monitor's findings go."""

from bnmonitor.sinks.base import Run, Sink, checked
from bnmonitor.sinks.console import Console
from bnmonitor.sinks.jsonlines import JsonLines
from bnmonitor.sinks.loggers import Loggers
from bnmonitor.sinks.tensorboard import TensorBoard

__all__ = ["Console", "JsonLines", "Loggers", "Run", "Sink", "TensorBoard", "checked"]
