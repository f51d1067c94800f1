"""The statistics of a history in words: what each is, its unit, and the scale it is drawn on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Scale = Literal["health", "linear", "log", "signed", "share", "count"]
"""How a statistic is drawn: ``share`` from 0 to 1, ``signed`` around 0, ``health`` from 0 to 100."""


@dataclass(frozen=True)
class Statistic:
    """One number per layer, or per channel, at a step.

    Attributes:
        name: As it is stored.
        label: As people read it.
        unit: ``σ``, ``nats`` or empty.
        scale: How it is drawn.
        meaning: One sentence.
    """

    name: str
    label: str
    unit: str
    scale: Scale
    meaning: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)


LAYER = (
    Statistic("health", "health", "", "health", "100 is well; at most 60 with an open warning, 20 with an open error."),
    Statistic("batch_var", "batch variance", "", "log", "Variance of the last batch, mean of the channels."),
    Statistic("running_var", "running variance", "", "log", "Running variance, mean of the channels."),
    Statistic(
        "batch_offset",
        "batch mean over deviation",
        "σ",
        "linear",
        "Distance of the last batch's mean from zero, in running deviations; middle channel.",
    ),
    Statistic(
        "offset",
        "mean over deviation",
        "σ",
        "linear",
        "Distance of the running mean from zero, in running deviations; middle channel.",
    ),
    Statistic(
        "mean_lag",
        "running-versus-batch gap of the mean",
        "σ",
        "linear",
        "Distance of batch mean and running mean, noise averaged out over the window; middle channel.",
    ),
    Statistic(
        "log_lag",
        "running-versus-batch gap of the deviation",
        "nats",
        "linear",
        "Log ratio of batch and running deviation, without sign, averaged over the window; middle channel.",
    ),
    Statistic(
        "var_gap",
        "gap of the deviation, with its sign",
        "nats",
        "signed",
        "Log ratio of batch and running deviation over the window: above 0 the batches vary more; middle channel.",
    ),
    Statistic(
        "noise",
        "noise of the batch mean",
        "σ",
        "linear",
        "Spread of the batch mean around the running mean from step to step; middle channel.",
    ),
    Statistic(
        "var_noise",
        "noise of the batch deviation",
        "nats",
        "linear",
        "Spread of the log of the batch deviation from step to step; middle channel.",
    ),
    Statistic(
        "covariate_shift",
        "covariate shift",
        "nats",
        "log",
        "How far the distribution of the layer's input moved over the window: symmetric divergence of its running "
        "Gaussian; middle channel.",
    ),
    Statistic("gamma", "gamma", "", "linear", "Size of gamma; middle channel."),
    Statistic("gamma_min", "smallest gamma", "", "linear", "Size of gamma; smallest channel."),
    Statistic("gamma_max", "largest gamma", "", "linear", "Size of gamma; largest channel."),
    Statistic("beta", "beta", "", "signed", "Beta; middle channel."),
    Statistic(
        "dead",
        "dead share",
        "",
        "share",
        "Channels whose gamma fell below a hundredth of its start, or that a ReLU behind never lets through.",
    ),
    Statistic("silent", "silent share", "", "share", "Channels whose output was never positive in the last sample."),
    Statistic("gamma_grad", "gradient of gamma", "", "log", "Size of the gradient of gamma; middle channel."),
    Statistic(
        "gamma_update", "update of gamma", "per step", "log", "Change of gamma in a step, over gamma; middle channel."
    ),
    Statistic("updates", "updates in the window", "", "count", "Updates of the running statistics over the window."),
    Statistic("size", "samples normalized together", "", "count", "N of a call, as the samples taken say."),
    Statistic("values", "values per channel", "", "count", "Values per channel in a call, as the samples taken say."),
    Statistic("training", "share of steps in training mode", "", "share", "Over the window."),
)
"""The columns of a frame, in order."""

CHANNEL = (
    Statistic("batch_mean", "batch mean", "", "signed", "Mean of the batch."),
    Statistic("batch_var", "batch variance", "", "log", "Unbiased variance of the batch."),
    Statistic("running_mean", "running mean", "", "signed", "After the step."),
    Statistic("running_var", "running variance", "", "log", "After the step."),
    Statistic("gamma", "gamma", "", "signed", "The layer's weight."),
    Statistic("beta", "beta", "", "signed", "The layer's bias."),
    Statistic("gamma_grad", "gradient of gamma", "", "signed", "As it was after the step."),
    Statistic(
        "nonpositive",
        "outputs not positive",
        "",
        "share",
        "What a ReLU behind turns to zero, last sample.",
    ),
    Statistic("peak", "largest input", "", "log", "Largest input without sign, last sample."),
)
"""The statistics of the channel detail, in order."""
