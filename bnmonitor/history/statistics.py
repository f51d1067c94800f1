"""The statistics of a history, one row each: every name it goes by, its unit, how it is drawn, and what it means.

The event files hold ``name``. The other names are what people read: the tab shows ``label``, a report ``title``, the
table in the terminal ``short``; ``tag`` is the group of TensorBoard scalars, and ``row`` the attribute of
:class:`bnmonitor.results.LayerSummary`. The lag of the running mean has most of them:

>>> lag = BY_NAME["mean_lag"]
>>> lag.name, lag.row, lag.tag, lag.title, lag.short
('mean_lag', 'running_gap', 'bn_running_gap', 'running gap', 'gap')

To add a statistic, add its row here, and its function to :mod:`bnmonitor.measures.columns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bnmonitor.limits import (
    DEAD_GAMMA,
    LAG_LOG_DEVIATION,
    LAG_MEAN,
    MANY_DEAD,
    SEVERE_LAG_LOG_DEVIATION,
    SEVERE_LAG_MEAN,
)
from bnmonitor.results import HEALTH_CAPS, NEAR_LIMIT_HEALTH, Severity

Scale = Literal["health", "linear", "log", "signed", "share", "count"]
"""How a statistic is drawn: ``share`` from 0 to 1, ``signed`` around 0, ``health`` from 0 to 100."""


@dataclass(frozen=True)
class Statistic:
    """One number per layer, or per channel, at a step.

    Attributes:
        name: Name in the event files and of the function that computes it.
        label: Name in the tab.
        unit: ``σ``, ``nats`` or empty.
        scale: How it is drawn.
        meaning: One sentence.
        title: Name in reports; the label if empty.
        short: Head of its column in the terminal; the title if empty.
        tag: Group of scalars in TensorBoard, which recorded runs have; empty: it has none.
        row: Attribute of :class:`bnmonitor.results.LayerSummary`; empty: it has none.
        limits: The value from which it stands for a severity, by the severity's name.
        judged: Codes of the rules that compare it with a limit.
        seen: Codes of other rules whose finding is visible in it.
        sampled: Whether it is known on sampled steps only; a black box has none of these.
    """

    name: str
    label: str
    unit: str
    scale: Scale
    meaning: str
    title: str = ""
    short: str = ""
    tag: str = ""
    row: str = ""
    limits: Mapping[str, float] = field(default_factory=dict, hash=False)
    judged: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    sampled: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.label)
        object.__setattr__(self, "short", self.short or self.title)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)


_CAPS = {str(severity): HEALTH_CAPS[severity] for severity in (Severity.WARNING, Severity.ERROR)}

LAYER = (
    Statistic(
        "health",
        "health",
        "",
        "health",
        f"100 is healthy, {NEAR_LIMIT_HEALTH:g} is at a limit; at most {_CAPS['warning']:g} while a warning is open, "
        f"{_CAPS['error']:g} while an error is open.",
        tag="bn_health",
        row="health",
        limits={**_CAPS, "near": NEAR_LIMIT_HEALTH},
    ),
    Statistic(
        "batch_var",
        "batch variance",
        "",
        "log",
        "Variance of the last batch, mean of the channels.",
        title="batch σ²",
        tag="bn_batch_var",
        row="batch_var",
        seen=("BN102", "BN105", "BN106", "BN109", "BN606"),
    ),
    Statistic("running_var", "running variance", "", "log", "Running variance, mean of the channels."),
    Statistic(
        "batch_offset",
        "batch mean over deviation",
        "σ",
        "linear",
        "Distance of the last batch's mean from zero, in running standard deviations; median channel.",
        seen=("BN107", "BN108", "BN601", "BN602"),
    ),
    Statistic(
        "offset",
        "mean over deviation",
        "σ",
        "linear",
        "Distance of the running mean from zero, in running standard deviations; median channel.",
    ),
    Statistic(
        "mean_lag",
        "running-versus-batch gap of the mean",
        "σ",
        "linear",
        "Distance of batch mean and running mean, noise averaged out over the window; median channel.",
        title="running gap",
        short="gap",
        tag="bn_running_gap",
        row="running_gap",
        limits={"warning": LAG_MEAN, "error": SEVERE_LAG_MEAN},
        judged=("BN304",),
        seen=("BN303", "BN305", "BN402", "BN403", "BN405", "BN406", "BN603"),
    ),
    Statistic(
        "log_lag",
        "running-versus-batch gap of the deviation",
        "nats",
        "linear",
        "Log ratio of batch and running standard deviation, without sign, averaged over the window; median channel.",
        title="running gap of the deviation",
        limits={"warning": LAG_LOG_DEVIATION, "error": SEVERE_LAG_LOG_DEVIATION},
        judged=("BN304",),
    ),
    Statistic(
        "var_gap",
        "gap of the deviation, with its sign",
        "nats",
        "signed",
        "Log ratio of batch and running standard deviation over the window: above 0 the batches vary more; median "
        "channel.",
    ),
    Statistic(
        "noise",
        "noise of the batch mean",
        "σ",
        "linear",
        "Spread of the batch mean around the running mean from step to step; median channel.",
    ),
    Statistic(
        "var_noise",
        "noise of the batch deviation",
        "nats",
        "linear",
        "Spread of the log of the batch's standard deviation from step to step; median channel.",
    ),
    Statistic(
        "covariate_shift",
        "covariate shift",
        "nats",
        "log",
        "How far the distribution of the layer's input moved over the window: symmetric divergence of its running "
        "Gaussian; median channel.",
    ),
    Statistic("gamma", "gamma", "", "linear", "Size of gamma; median channel."),
    Statistic(
        "gamma_min",
        "smallest gamma",
        "",
        "linear",
        "Size of gamma; smallest channel.",
        title="γ min",
        row="gamma_min",
    ),
    Statistic(
        "gamma_max",
        "largest gamma",
        "",
        "linear",
        "Size of gamma; largest channel.",
        seen=("BN702", "BN704", "BN707"),
    ),
    Statistic("beta", "beta", "", "signed", "Beta; median channel."),
    Statistic(
        "dead",
        "dead share",
        "",
        "share",
        f"Channels whose gamma fell below {100 * DEAD_GAMMA:g} % of its start, or that a ReLU behind the layer never "
        "lets through.",
        limits={"info": MANY_DEAD},
        judged=("BN701",),
    ),
    Statistic(
        "silent",
        "silent share",
        "",
        "share",
        "Channels whose output was never positive in the last sample.",
        short="silent",
        row="silent",
    ),
    Statistic("gamma_grad", "gradient of gamma", "", "log", "Size of the gradient of gamma; median channel."),
    Statistic(
        "gamma_update",
        "update of gamma",
        "per step",
        "log",
        "Change of gamma in a step, over gamma; median channel.",
        seen=("BN705",),
    ),
    Statistic("updates", "updates in the window", "", "count", "Updates of the running statistics over the window."),
    Statistic(
        "size",
        "samples normalized together",
        "",
        "count",
        "N of a call, as the last samples show it.",
        judged=("BN201", "BN205"),
    ),
    Statistic(
        "values",
        "values per channel",
        "",
        "count",
        "Values per channel in a call, as the last samples show.",
        judged=("BN202",),
    ),
    Statistic("training", "share of steps in training mode", "", "share", "Over the window.", seen=("BN401",)),
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
        "Outputs that a ReLU behind the layer turns to zero, last sample.",
        sampled=True,
    ),
    Statistic("peak", "largest input", "", "log", "Largest input without sign, last sample.", sampled=True),
)
"""The statistics of the channel detail, in order."""

BY_NAME: Mapping[str, Statistic] = {statistic.name: statistic for statistic in LAYER}
"""The statistics of layers by name."""


def logarithmic(statistic: str, of: tuple[Statistic, ...]) -> bool:
    """Return whether a statistic of :data:`LAYER` or :data:`CHANNEL` is drawn on a log scale."""
    return any(each.name == statistic and each.scale == "log" for each in of)
