"""Gates for continuous integration: what is known, ignored or new among problems, and files for other programs."""

from bnmonitor.gates.baseline import read_baseline, update_baseline
from bnmonitor.gates.errors import GateError
from bnmonitor.gates.judging import Judged, counted, judged, told
from bnmonitor.gates.junit_xml import junit
from bnmonitor.gates.problem import Problem
from bnmonitor.gates.sarif_log import sarif
from bnmonitor.gates.suppressions import Suppressions, read_suppressions
from bnmonitor.gates.target import Target

__all__ = [
    "GateError",
    "Judged",
    "Problem",
    "Suppressions",
    "Target",
    "counted",
    "judged",
    "junit",
    "read_baseline",
    "read_suppressions",
    "sarif",
    "told",
    "update_baseline",
]
