"""Every cause, the one that explains most first."""

from __future__ import annotations

from bnmonitor._text import nearest
from bnmonitor.diagnosis.base import Cause
from bnmonitor.diagnosis.causes.averaged_weights import AveragedWeights
from bnmonitor.diagnosis.causes.changed_input import ChangedInput
from bnmonitor.diagnosis.causes.changed_weights import ChangedWeights
from bnmonitor.diagnosis.causes.cold_statistics import ColdStatistics
from bnmonitor.diagnosis.causes.constant_initialization import ConstantInitialization
from bnmonitor.diagnosis.causes.data_order import DataOrder
from bnmonitor.diagnosis.causes.dead_channels import DeadChannels
from bnmonitor.diagnosis.causes.eval_mode import EvalMode
from bnmonitor.diagnosis.causes.evaluation_updates import EvaluationUpdates
from bnmonitor.diagnosis.causes.frozen_evaluation import FrozenEvaluation
from bnmonitor.diagnosis.causes.half_precision_overflow import HalfPrecisionOverflow
from bnmonitor.diagnosis.causes.handwritten_statistics import HandwrittenStatistics
from bnmonitor.diagnosis.causes.leaking_freeze import LeakingFreeze
from bnmonitor.diagnosis.causes.learning_rate import LearningRateTooHigh
from bnmonitor.diagnosis.causes.mixed_calls import MixedCalls
from bnmonitor.diagnosis.causes.momentum import Momentum
from bnmonitor.diagnosis.causes.non_finite import NonFinite
from bnmonitor.diagnosis.causes.non_finite_input import NonFiniteInput
from bnmonitor.diagnosis.causes.outlier_batch import OutlierBatch
from bnmonitor.diagnosis.causes.ruined_statistics import RuinedStatistics
from bnmonitor.diagnosis.causes.skipped_step import SkippedStep
from bnmonitor.diagnosis.causes.small_batch import SmallBatch
from bnmonitor.diagnosis.causes.split_freeze import SplitFreeze
from bnmonitor.diagnosis.causes.unfreeze_shock import UnfreezeShock
from bnmonitor.diagnosis.causes.unnormalized_input import UnnormalizedInput
from bnmonitor.diagnosis.causes.validation_shift import ValidationShift
from bnmonitor.diagnosis.causes.variance_collapse import VarianceCollapse

CAUSES: tuple[Cause, ...] = (
    UnfreezeShock(),
    EvalMode(),
    ConstantInitialization(),
    OutlierBatch(),
    LearningRateTooHigh(),
    HalfPrecisionOverflow(),
    ChangedInput(),
    NonFiniteInput(),
    NonFinite(),
    SkippedStep(),
    RuinedStatistics(),
    SmallBatch(),
    Momentum(),
    HandwrittenStatistics(),
    LeakingFreeze(),
    SplitFreeze(),
    EvaluationUpdates(),
    FrozenEvaluation(),
    AveragedWeights(),
    ColdStatistics(),
    MixedCalls(),
    DataOrder(),
    UnnormalizedInput(),
    DeadChannels(),
    ChangedWeights(),
    VarianceCollapse(),
    ValidationShift(),
)
"""Where two causes could lead an incident, the one that comes first here leads it and explains the other's alert."""

OTHER = Cause()
"""The cause of an alert that none of :data:`CAUSES` claims: what its rule found."""


def find_cause(name: str) -> Cause:
    """Return the cause with a name.

    Raises:
        KeyError: There is none; the message names the nearest one.
    """
    by_name = {cause.name: cause for cause in CAUSES if cause.name}
    if name not in by_name:
        raise KeyError(f"no cause is named {name!r}{nearest(name, by_name)}")
    return by_name[name]
