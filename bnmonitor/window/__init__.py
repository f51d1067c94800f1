"""The immutable records that a rule judges: no computing, no modules."""

from bnmonitor.window.baseline import Baseline
from bnmonitor.window.facts import Facts, GatheredAffine, Loader, RankStatistics
from bnmonitor.window.ledger import EVALUATIONS, PHASES, Ledger
from bnmonitor.window.lookup import SERIES, series
from bnmonitor.window.recovery import Recovery
from bnmonitor.window.sample import EvaluationGap, HeldOut, Moments, Sample
from bnmonitor.window.statistics import Statistic
from bnmonitor.window.structure import Bare, Operation, Place, Producer, Role, Structure
from bnmonitor.window.window import CHANNEL_STATISTICS, LAYER_STATISTICS, STATISTICS, Window

__all__ = [
    "CHANNEL_STATISTICS",
    "EVALUATIONS",
    "LAYER_STATISTICS",
    "PHASES",
    "SERIES",
    "STATISTICS",
    "Bare",
    "Baseline",
    "EvaluationGap",
    "Facts",
    "GatheredAffine",
    "HeldOut",
    "Ledger",
    "Loader",
    "Moments",
    "Operation",
    "Place",
    "Producer",
    "RankStatistics",
    "Recovery",
    "Role",
    "Sample",
    "Statistic",
    "Structure",
    "Window",
    "series",
]
