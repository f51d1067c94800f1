"""What bnmonitor tests itself with, for the rules and sinks of others."""

from bnmonitor.testing.incidents import diagnose
from bnmonitor.testing.rule_check import check_rule
from bnmonitor.testing.samples import Values, make_sample
from bnmonitor.testing.sinks import RecordingSink
from bnmonitor.testing.windows import (
    drawn_window,
    held_out_window,
    in_a_row,
    make_structure,
    make_window,
    padded_window,
    path_window,
)

__all__ = [
    "RecordingSink",
    "Values",
    "check_rule",
    "diagnose",
    "drawn_window",
    "held_out_window",
    "in_a_row",
    "make_sample",
    "make_structure",
    "make_window",
    "padded_window",
    "path_window",
]
