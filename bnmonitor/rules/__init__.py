"""The catalogue: one rule a file, pure over a window, and the vocabulary that rules are written in."""

from bnmonitor._docstring import Docstring
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, MonitorFault, Rule, first, onset, sampled
from bnmonitor.rules.catalogue import CATALOGUE, FAMILIES, MONITOR_FAULTS, all_rules, default_rules
from bnmonitor.rules.manual import described, explained, plain
from bnmonitor.rules.needs import NEEDS, Conditions, Need, absent_needs, unmet
from bnmonitor.rules.selection import by_layer, choose, find, near, search
from bnmonitor.rules.thresholds import ForLayers, Thresholds, check_patterns, judge
from bnmonitor.window import Window

__all__ = [
    "CATALOGUE",
    "FAMILIES",
    "MONITOR_FAULTS",
    "NEEDS",
    "Conditions",
    "Docstring",
    "Finding",
    "ForLayers",
    "MonitorFault",
    "Need",
    "Rule",
    "Severity",
    "Thresholds",
    "Window",
    "absent_needs",
    "all_rules",
    "by_layer",
    "check_patterns",
    "choose",
    "default_rules",
    "described",
    "explained",
    "find",
    "first",
    "judge",
    "near",
    "onset",
    "plain",
    "sampled",
    "search",
    "unmet",
]
