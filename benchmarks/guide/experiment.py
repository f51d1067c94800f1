"""What an experiment is: what it varies and measures, what is claimed of it, and what follows from the results."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from .training import Trained

RESULTS = Path(__file__).parent / "results"

Key = tuple[str, float | str]
"""A setting: the series it belongs to, and its place on the axis."""


@dataclass
class Measured:
    """What one training, or a few of one setting and seed, gave.

    Attributes:
        values: The numbers that are compared, by name.
        courses: What changed on the way, by name: places and values.
        causes: Causes of the incidents of severity warning or error.
        map: What :meth:`keep` kept of a run.
    """

    values: dict[str, float]
    courses: dict[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    causes: Sequence[str] = ()
    map: dict[str, Any] | None = None

    def keep(self, trained: Trained, statistic: str = "health") -> Measured:
        """Keep the map of a run, to be drawn, and its incidents."""
        run = trained.run
        rows = np.unique(np.linspace(0, len(run.steps) - 1, 40).astype(int)) if len(run.steps) else []
        self.causes = trained.causes
        self.map = {
            "statistic": statistic,
            "layers": list(run.layers),
            "steps": [int(run.steps[row]) for row in rows],
            "values": [[rounded(v) for v in run.table(statistic)[row]] for row in rows],
            "incidents": [
                {"severity": str(i.severity), "first_step": i.first_step, "cause": i.cause} for i in run.incidents
            ],
        }
        return self


@dataclass(frozen=True)
class Context:
    """How a setting is to be measured.

    Attributes:
        seed: Of data, weights and order.
        tiny: Whether only to show that it runs.
    """

    seed: int
    tiny: bool = False

    def steps(self, wanted: int) -> int:
        """How many steps to train."""
        return 12 if self.tiny else wanted


@dataclass(frozen=True)
class Metric:
    """A number that is measured.

    Attributes:
        name: As in the results.
        label: As in tables and on axes.
        digits: Significant digits.
        log: Whether to average its logarithm, and to draw it on such an axis.
    """

    name: str
    label: str
    digits: int = 3
    log: bool = False


@dataclass(frozen=True)
class Claim:
    """A comparison of two settings, seed by seed.

    Attributes:
        text: What is claimed.
        metric: The number that decides.
        left: The setting that should win.
        right: The setting that it is compared with.
        less: Whether the smaller number wins.
        against: The number of the right setting, if it is another one.
    """

    text: str
    metric: str
    left: Key
    right: Key
    less: bool = False
    against: str = ""


@dataclass(frozen=True)
class Panel:
    """One part of the picture.

    Attributes:
        metric: What is drawn: a metric over the settings, or a course.
        x: Label of the axis.
        y: Label of the other one; empty: that of the metric.
        log_x: Whether the axis is logarithmic.
        log_y: Whether the other one is.
        course: Whether it is a course; each line is then a setting.
        only: Of which settings or series; empty: all.
        title: Above the panel.
    """

    metric: str
    x: str
    y: str = ""
    log_x: bool = False
    log_y: bool = False
    course: bool = False
    only: tuple[Key | str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Experiment:
    """One page of the guide; its text is in ``texts``.

    Attributes:
        name: Of the page.
        axis: What is varied, as the head of the table.
        settings: What is compared, by series and place on the axis, with the arguments of ``measure``.
        measure: Measures a setting: takes the context and the arguments.
        metrics: What is in the table.
        claims: What is decided.
        panels: The picture.
        maps: Settings of which the map of the first seed is drawn.
        facts: Numbers that the text names and that are not a mean of a setting, by name.
    """

    name: str
    axis: str
    settings: Mapping[Key, Mapping[str, Any]]
    measure: Callable[..., Measured]
    metrics: tuple[Metric, ...]
    claims: tuple[Claim, ...]
    panels: tuple[Panel, ...]
    maps: tuple[Key, ...]
    facts: Callable[[Results], Mapping[str, str]] = lambda results: {}

    def metric(self, name: str) -> Metric:
        """The metric of a name."""
        return next((each for each in self.metrics if each.name == name), Metric(name, name.replace("_", " ")))


@dataclass(frozen=True)
class Interval:
    """A mean over the seeds with its 95 % interval, from Student's t; in a metric of logarithms the geometric one."""

    mean: float
    low: float
    high: float
    digits: int = 3

    @classmethod
    def of(cls, values: Sequence[float], metric: Metric | None = None) -> Interval:
        """That of the values of the seeds."""
        log = metric is not None and metric.log
        x = np.asarray(values, float)
        with np.errstate(all="ignore"):
            x = np.log(x) if log else x
            mean = float(x.mean())
            half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
        ends = (mean, mean - half, mean + half)
        mean, low, high = map(math.exp, ends) if log and math.isfinite(mean) else ends
        return cls(mean, low, high, metric.digits if metric else 3)

    def __str__(self) -> str:
        if not math.isfinite(self.mean):
            return "not finite"
        if not math.isfinite(self.low):
            return number(self.mean, self.digits)
        return f"{number(self.mean, self.digits)} [{number(self.low, self.digits)}, {number(self.high, self.digits)}]"


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, and none behind the point if it is large: ``123``, ``1.00``."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def rounded(value: float) -> float | None:
    """Four significant digits; None for what is not finite, which JSON cannot hold."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


@dataclass(frozen=True)
class Verdict:
    """What came out of a claim."""

    claim: Claim
    left: Interval
    right: Interval
    difference: Interval
    outcome: str


class Results:
    """What an experiment gave, read from its file.

    Args:
        experiment: The experiment.
        data: The content of the file.
    """

    def __init__(self, experiment: Experiment, data: Mapping[str, Any]) -> None:
        self.experiment, self.data = experiment, data

    @classmethod
    def read(cls, experiment: Experiment) -> Results:
        """Read the file."""
        return cls(experiment, json.loads(path_of(experiment).read_text(encoding="utf-8")))

    @property
    def seeds(self) -> int:
        """How many seeds each setting was measured with."""
        return len(self.data["seeds"])

    def setting(self, key: Key) -> Mapping[str, Any]:
        """What a setting gave."""
        found: Mapping[str, Any] = self.data["settings"][label(key)]
        return found

    def values(self, key: Key, metric: str) -> list[float]:
        """A number of each seed; NaN where it was not finite."""
        return [math.nan if value is None else value for value in self.setting(key)["values"][metric]]

    def of(self, series: str, x: float | str, metric: str) -> Interval:
        """The interval of a number."""
        return Interval.of(self.values((series, x), metric), self.experiment.metric(metric))

    def causes(self, key: Key) -> Counter[str]:
        """In how many of the seeds each cause was named."""
        return Counter(self.setting(key)["causes"])

    def verdict(self, claim: Claim) -> Verdict:
        """Decide a claim: the interval of the paired difference is on one side of zero, or it is not."""
        metric = self.experiment.metric(claim.metric)
        other = claim.against or claim.metric
        left, right = (
            np.asarray(self.values(key, name)) for key, name in ((claim.left, claim.metric), (claim.right, other))
        )
        with np.errstate(all="ignore"):
            pairs = np.log(left) - np.log(right) if metric.log else left - right
        difference = Interval.of(list(pairs))
        sign = -1 if claim.less else 1
        low, high = sorted((sign * difference.low, sign * difference.high))
        same = bool((pairs == 0).all())
        outcome = "holds" if low > 0 and not same else "does not hold" if high < 0 and not same else "not shown"
        if metric.log:
            difference = Interval(*(math.exp(v) for v in (difference.mean, difference.low, difference.high)))
        return Verdict(claim, self.of(*claim.left, claim.metric), self.of(*claim.right, other), difference, outcome)

    def verdicts(self) -> list[Verdict]:
        """Decide every claim."""
        return [self.verdict(claim) for claim in self.experiment.claims]


def label(key: Key) -> str:
    """A setting as it is named in the results."""
    return f"{key[0]} | {key[1]}"


def path_of(experiment: Experiment) -> Path:
    """The file of the results."""
    return RESULTS / f"{experiment.name}.json"


def measured(experiment: Experiment, key: Key, context: Context) -> dict[str, Any]:
    """Measure a setting with a seed, as plain types."""
    found = experiment.measure(context, **experiment.settings[key])
    return {
        "values": {name: rounded(float(value)) for name, value in found.values.items()},
        "courses": {
            name: [[rounded(float(v)) for v in part] for part in course] for name, course in found.courses.items()
        },
        "causes": sorted(set(found.causes)),
        "map": found.map if key in experiment.maps and context.seed == 0 else None,
    }


def added(setting: Mapping[str, Any] | None, part: Mapping[str, Any]) -> dict[str, Any]:
    """What a setting gave with some seeds, and what it gave with one more; None: with none."""
    values, courses, causes, kept = setting["values"] if setting else {}, {}, Counter(part["causes"]), part["map"]
    for name, (x, y) in part["courses"].items():
        courses[name] = {"x": x, "y": [*(setting["courses"][name]["y"] if setting else []), y]}
    if setting:
        causes += Counter(setting["causes"])
        kept = kept or setting.get("map")
    return {
        "values": {name: [*values.get(name, []), value] for name, value in part["values"].items()},
        "courses": courses,
        "causes": dict(sorted(causes.items())),
        **({"map": kept} if kept else {}),
    }
