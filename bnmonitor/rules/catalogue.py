"""The catalogue: every rule, in one explicit tuple."""

from __future__ import annotations

from bnmonitor.rules.architecture.dropout_before_norm import DropoutBeforeNorm
from bnmonitor.rules.architecture.missing_norm import MissingNorm
from bnmonitor.rules.architecture.norm_after_activation import NormAfterActivation
from bnmonitor.rules.architecture.norm_under_per_sample_gradients import NormUnderPerSampleGradients
from bnmonitor.rules.architecture.redundant_bias import RedundantBias
from bnmonitor.rules.architecture.wrong_axis import WrongAxis
from bnmonitor.rules.base import Rule
from bnmonitor.rules.bookkeeping.double_update import DoubleUpdate
from bnmonitor.rules.bookkeeping.frozen_compiled_evaluation import FrozenCompiledEvaluation
from bnmonitor.rules.bookkeeping.layer_never_called import LayerNeverCalled
from bnmonitor.rules.bookkeeping.lossy_sync_conversion import LossySyncConversion
from bnmonitor.rules.bookkeeping.mixed_calls import MixedCalls
from bnmonitor.rules.bookkeeping.rank_divergence import RankDivergence
from bnmonitor.rules.bookkeeping.shared_at_several_places import SharedAtSeveralPlaces
from bnmonitor.rules.bookkeeping.side_forwards import SideForwards
from bnmonitor.rules.bookkeeping.stale_averaged_weights import StaleAveragedWeights
from bnmonitor.rules.bookkeeping.unregistered_layer import UnregisteredLayer
from bnmonitor.rules.bookkeeping.unwatched_evaluation import UnwatchedEvaluation
from bnmonitor.rules.bookkeeping.unwatched_normalization import UnwatchedNormalization
from bnmonitor.rules.data.alternating_domains import AlternatingDomains
from bnmonitor.rules.data.correlated_batches import CorrelatedBatches
from bnmonitor.rules.data.outlier_batch import OutlierBatch
from bnmonitor.rules.data.padding_contamination import PaddingContamination
from bnmonitor.rules.data.path_dependent_statistics import PathDependentStatistics
from bnmonitor.rules.data.validation_shift import ValidationShift
from bnmonitor.rules.modes.auxiliary_network_updates import AuxiliaryNetworkUpdates
from bnmonitor.rules.modes.batch_dependent_evaluation import BatchDependentEvaluation
from bnmonitor.rules.modes.eval_mode_in_training import EvalModeInTraining
from bnmonitor.rules.modes.evaluation_updates_statistics import EvaluationUpdatesStatistics
from bnmonitor.rules.modes.initial_statistics_in_use import InitialStatisticsInUse
from bnmonitor.rules.modes.leaking_freeze import LeakingFreeze
from bnmonitor.rules.modes.split_freeze import SplitFreeze
from bnmonitor.rules.modes.unfreeze_shock import UnfreezeShock
from bnmonitor.rules.monitor.rolled_back import RolledBack
from bnmonitor.rules.monitor.rule_error import RuleError
from bnmonitor.rules.monitor.sink_error import SinkError
from bnmonitor.rules.numerics.half_precision_buffers import HalfPrecisionBuffers
from bnmonitor.rules.numerics.half_precision_headroom import HalfPrecisionHeadroom
from bnmonitor.rules.numerics.implausible_statistics import ImplausibleStatistics
from bnmonitor.rules.numerics.mean_explosion import MeanExplosion
from bnmonitor.rules.numerics.non_finite_statistics import NonFiniteStatistics
from bnmonitor.rules.numerics.skipped_step_poisoning import SkippedStepPoisoning
from bnmonitor.rules.numerics.unnormalized_input import UnnormalizedInput
from bnmonitor.rules.numerics.variance_collapse import VarianceCollapse
from bnmonitor.rules.numerics.variance_explosion import VarianceExplosion
from bnmonitor.rules.parameters.dead_channels import DeadChannels
from bnmonitor.rules.parameters.folding_hazard import FoldingHazard
from bnmonitor.rules.parameters.gamma_explosion import GammaExplosion
from bnmonitor.rules.parameters.gradient_growth_with_depth import GradientGrowthWithDepth
from bnmonitor.rules.parameters.identical_channels import IdenticalChannels
from bnmonitor.rules.parameters.learning_rate_too_high import LearningRateTooHigh
from bnmonitor.rules.parameters.learning_rate_too_low import LearningRateTooLow
from bnmonitor.rules.parameters.weight_decay_on_affine import WeightDecayOnAffine
from bnmonitor.rules.running_average.cold_statistics import ColdStatistics
from bnmonitor.rules.running_average.degenerate_momentum import DegenerateMomentum
from bnmonitor.rules.running_average.handwritten_statistics import HandwrittenStatistics
from bnmonitor.rules.running_average.inverted_momentum import InvertedMomentum
from bnmonitor.rules.running_average.stale_statistics import StaleStatistics
from bnmonitor.rules.running_average.train_eval_gap import TrainEvalGap
from bnmonitor.rules.sample_size.accumulation_keeps_small_batch import AccumulationKeepsSmallBatch
from bnmonitor.rules.sample_size.biased_variance_chain import BiasedVarianceChain
from bnmonitor.rules.sample_size.pooled_to_few_values import PooledToFewValues
from bnmonitor.rules.sample_size.ragged_last_batch import RaggedLastBatch
from bnmonitor.rules.sample_size.small_batch import SmallBatch
from bnmonitor.rules.sample_size.unsynchronized_ranks import UnsynchronizedRanks

CATALOGUE: tuple[type[Rule], ...] = (
    RuleError,
    SinkError,
    RolledBack,
    NonFiniteStatistics,
    SkippedStepPoisoning,
    HalfPrecisionHeadroom,
    HalfPrecisionBuffers,
    VarianceCollapse,
    VarianceExplosion,
    MeanExplosion,
    UnnormalizedInput,
    ImplausibleStatistics,
    SmallBatch,
    PooledToFewValues,
    RaggedLastBatch,
    AccumulationKeepsSmallBatch,
    UnsynchronizedRanks,
    BiasedVarianceChain,
    InvertedMomentum,
    DegenerateMomentum,
    ColdStatistics,
    StaleStatistics,
    TrainEvalGap,
    HandwrittenStatistics,
    EvalModeInTraining,
    LeakingFreeze,
    SplitFreeze,
    InitialStatisticsInUse,
    UnfreezeShock,
    EvaluationUpdatesStatistics,
    AuxiliaryNetworkUpdates,
    BatchDependentEvaluation,
    DoubleUpdate,
    MixedCalls,
    RankDivergence,
    LossySyncConversion,
    StaleAveragedWeights,
    LayerNeverCalled,
    UnregisteredLayer,
    SideForwards,
    SharedAtSeveralPlaces,
    UnwatchedNormalization,
    FrozenCompiledEvaluation,
    UnwatchedEvaluation,
    CorrelatedBatches,
    AlternatingDomains,
    ValidationShift,
    PaddingContamination,
    PathDependentStatistics,
    OutlierBatch,
    DeadChannels,
    GammaExplosion,
    WeightDecayOnAffine,
    LearningRateTooHigh,
    LearningRateTooLow,
    GradientGrowthWithDepth,
    FoldingHazard,
    IdenticalChannels,
    NormAfterActivation,
    DropoutBeforeNorm,
    RedundantBias,
    WrongAxis,
    NormUnderPerSampleGradients,
    MissingNorm,
)

MONITOR_FAULTS = frozenset(rule.code for rule in CATALOGUE if rule.about_monitor)
"""Codes of the rules about bnmonitor itself, whose alerts must not stop a training."""

FAMILIES = {
    "BN0": "the monitor itself",
    "BN1": "numerics",
    "BN2": "sample size",
    "BN3": "running average",
    "BN4": "modes and freezing",
    "BN5": "bookkeeping",
    "BN6": "data",
    "BN7": "parameters and learning rate",
    "BN8": "architecture",
}


def all_rules() -> tuple[Rule, ...]:
    """Return every rule of the catalogue with its default thresholds, by code."""
    return tuple(rule() for rule in CATALOGUE)


def default_rules() -> tuple[Rule, ...]:
    """Return the rules that run when nothing is selected."""
    return tuple(rule for rule in all_rules() if rule.default)
