"""Where the monitor's findings go while a training runs."""

from bnmonitor.sinks.base import FanOut, Run, Sink, checked
from bnmonitor.sinks.black_box import BlackBox, read_black_box
from bnmonitor.sinks.console import Console
from bnmonitor.sinks.flight_record import FlightRecord
from bnmonitor.sinks.json_lines import JsonLines
from bnmonitor.sinks.loggers import Loggers, totals
from bnmonitor.sinks.tensorboard import TensorBoard

__all__ = [
    "BlackBox",
    "Console",
    "FanOut",
    "FlightRecord",
    "JsonLines",
    "Loggers",
    "Run",
    "Sink",
    "TensorBoard",
    "checked",
    "read_black_box",
    "totals",
]
