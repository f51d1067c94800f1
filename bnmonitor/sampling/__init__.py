"""What hooks see, on sampled steps and at the start of evaluations."""

from bnmonitor.sampling.autograd import kept_by_autograd
from bnmonitor.sampling.evaluation import EvaluationProbe
from bnmonitor.sampling.held_out import HeldOutSampler
from bnmonitor.sampling.schedule import SampleSchedule

__all__ = [
    "EvaluationProbe",
    "HeldOutSampler",
    "SampleSchedule",
    "kept_by_autograd",
]
