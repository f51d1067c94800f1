"""The experiments, one a file, in the order of the guide."""

from __future__ import annotations

from ..experiment import Experiment
from . import (
    batch_size,
    convolution,
    covariate_shift,
    depth,
    fine_tuning,
    gradient_norms,
    gradient_term,
    initialization,
    learning_rate,
    momentum,
    monitoring,
    placement,
    precise_statistics,
    regularization,
    train_and_eval,
    training_speed,
)

GROUPS: dict[str, tuple[Experiment, ...]] = {
    "What it is good for": tuple(
        each.EXPERIMENT
        for each in (training_speed, learning_rate, initialization, depth, gradient_norms, regularization)
    ),
    "How it works": tuple(each.EXPERIMENT for each in (gradient_term, covariate_shift, convolution)),
    "Where it belongs": tuple(each.EXPERIMENT for each in (placement, batch_size)),
    "Training and evaluation": tuple(
        each.EXPERIMENT for each in (train_and_eval, momentum, precise_statistics, fine_tuning)
    ),
    "What to watch": (monitoring.EXPERIMENT,),
}
"""The pages by what they are about."""

EXPERIMENTS = tuple(experiment for group in GROUPS.values() for experiment in group)
"""All of them, in the order of the guide."""
