"""BN303: an evaluation with running statistics that still contain their initial values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.limits import INITIAL_WEIGHT, LAG_LOG_DEVIATION, LAG_MEAN, SEVERE_LAG_LOG_DEVIATION
from bnmonitor.measures import averaged, initial_weight, median
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window

ROUNDING = 1e-4
"""Part of a running variance that rounding may leave where the data do not vary."""


@dataclass(frozen=True, kw_only=True)
class ColdStatistics(Rule):
    """An evaluation uses running statistics that still contain part of their initial mean 0 and variance 1.

    ## What it does
    Judges the layers that an evaluation has run (the sanity check before training does not count). Running statistics
    have no bias correction: after ``k`` updates with momentum ``m``, mean 0 and variance 1 still have the weight
    ``(1 - m)^k`` in them. A small weight is enough where the data vary little: a variance of 1 that weighs 4 % more
    than doubles one of .03. An average of the buffers, as of an ``AveragedModel`` with ``use_buffers=True``, adds its
    own memory to that: how much of it is left is computed from the buffers of every step. Statistics that were loaded
    or estimated again are not cold. One alert for all affected layers: it names the first in execution order, and the
    one with the largest weight.

    A first validation after a few updates is an info: the next one cures it. It is a warning or an error if people
    will act on the evaluation: a test or a prediction, the last evaluation of the run, or the third in a row.

    ``bnmonitor audit`` goes by the count of updates in the file, if the values agree with it.

    ## Why is this bad?
    The evaluation normalizes with a mixture of the data and of numbers that were never measured. Its result is too bad,
    and improves from one evaluation to the next only because those numbers lose weight.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = ColdStatistics().check(make_window(momentum=0.01, seen=80, evaluation="test"))
    >>> str(finding.severity), round(finding.value, 2)
    ('error', 0.45)

    At PyTorch's default momentum, thirty updates are enough:

    >>> ColdStatistics().check(make_window(momentum=0.1, seen=30, evaluation="test"))
    []

    ## Code
    Wrong::

        train(model, steps=10)
        validate(model)  # the running statistics are mostly the initial 0 and 1

    Right::

        train(model, steps=10)
        bnmonitor.remedies.recalibrate(model, train_loader)
        validate(model)

    ## What to do
    Estimate the statistics before the evaluation: ``torch.optim.swa_utils.update_bn(loader, model)``. Or evaluate
    later, or choose a momentum that fits the length of the run. For an average of the buffers, begin it later, or let
    its decay grow with the steps.

    ## Thresholds
    ``warn_weight = .05``, reached after 29 updates at momentum .1, 299 at .01, 2995 at .001; ``error_weight = .3``,
    after 12, 120 and 1204. The effect of a weight ``w`` on the statistics can be computed: the mean is off by
    ``w / (1 - w)`` of itself, and the variance is ``(1 - w) v + w`` instead of ``v``. At any weight above .001 it is a
    warning if that moves the median channel of a layer by more than BN304 allows for a lag (``least_mean = .1``
    standard deviations, ``least_log_deviation = .2``), and an error beyond
    ``error_mean = .5`` and ``error_log_deviation = .7``. Between the two weights it is an info if not: the effect is
    small in a layer with an input variance of about 1. On digits, an evaluation after 22 steps at .1 (a weight of .098)
    gave six networks 10 to 60 % accuracy where fresh statistics gave 60 to 79 %; where the median channel moved by less
    than .1, the two agreed. torchvision's MobileNetV3, which has momentum .01, learned digits in 200 steps, and in
    evaluation was at chance until the 405th, at a weight of .017 in layers whose data have a variance of .03; at a
    weight of .004 it had 95 %.
    ``least_evaluations = 3``: a run that is evaluated before the statistics are warm, and only once or twice, goes on
    to evaluations that are not.

    ## Look-alikes
    In fine-tuning the statistics began as those of another training: BN304 judges them. Statistics that no training
    step has touched are BN404's.

    ## References
    chemprop/chemprop#607; keras-team/keras#6014; ludwig-ai/ludwig#328; facebookresearch/schedule_free#60.
    """

    code: ClassVar[str] = "BN303"
    name: ClassVar[str] = "cold-statistics"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger", "validation"})
    at_end: ClassVar[bool] = True

    warn_weight: float = INITIAL_WEIGHT
    error_weight: float = 0.3
    least_mean: float = LAG_MEAN
    least_log_deviation: float = LAG_LOG_DEVIATION
    error_mean: float = 0.5
    error_log_deviation: float = SEVERE_LAG_LOG_DEVIATION
    least_evaluations: int = 3

    def check(self, window: Window) -> list[Finding]:
        """Judge what the latest evaluation has run."""
        ledger = window.ledger
        if not (ledger.cold > 0).any():
            return []
        weight = ledger.cold.where(self._judged(window), 0.0)
        if not (weight > 0).any():
            return []
        moved = self._moved(window, weight)
        cold = (weight > self.warn_weight) | moved.above(self.least_mean, self.least_log_deviation)
        layers = cold.nonzero().flatten().tolist()
        return [self._finding(window, weight, moved, layers)] if layers else []

    def _judged(self, window: Window) -> Tensor:
        """Layers that train on their batches, and averages of such layers.

        BN302 judges momentum 0, which never moves the statistics; a cumulative average forgets at its first update.
        """
        momentum, updates = window.momentum[-1], window.baseline.updates
        trained = window.training[-1] & (momentum != 0) & ~(momentum.isnan() & (updates > 0))
        return ((trained & (updates > 0)) | averaged(window)) & ~window.ledger.initial

    def _moved(self, window: Window, weight: Tensor) -> _Moved:
        """By how much the initial statistics moved those of the median channel of each layer in the evaluation."""
        owner, eps = window.layers.owner, window.layers.eps_by_channel
        now, then = initial_weight(window).clamp(max=0.99)[owner], weight.clamp(max=0.99)[owner]
        mean, var = window.running_mean[-1] / (1 - now), (window.running_var[-1] - now) / (1 - now)
        used = then + (1 - then) * var.clamp(min=0)
        off = then * mean.abs() / (used + eps).sqrt()
        # Of what never varies rounding is left, and evaluation puts out the same for it whatever the variance is.
        log_ratio = (0.5 * ((used + eps) / (var.clamp(min=0) + eps)).log()).where(var > ROUNDING * used, 0.0)
        both = (median(each, window).where(weight > 0, 0.0) for each in (off, log_ratio))
        return _Moved(*(each.nan_to_num(0.0, math.inf, -math.inf) for each in both))

    def _severity(self, window: Window, weight: Tensor, moved: _Moved, layer: int) -> Severity:
        """How bad it is, if it is an evaluation that people will act on."""
        ledger = window.ledger
        repeated = int(ledger.times[layer]) >= self.least_evaluations
        if not (repeated or window.facts.ending or bool(ledger.tested[layer])):
            return Severity.INFO
        if bool((weight > self.error_weight).any()) or bool(
            moved.above(self.error_mean, self.error_log_deviation).any()
        ):
            return Severity.ERROR
        felt = bool(moved.above(self.least_mean, self.least_log_deviation).any())
        return Severity.WARNING if felt else Severity.INFO

    def _updates(self, window: Window, weight: Tensor) -> list[int]:
        """Updates of each layer when it was evaluated: those until now, but for as many as have forgotten since."""
        keeps = torch.log1p(-window.momentum[-1].double().clamp(max=1 - 1e-9))
        since = ((initial_weight(window) / weight).log() / keeps).nan_to_num(0.0, 0.0, 0.0).round().long().clamp(min=0)
        updates = window.baseline.updates
        return (updates - since).where(since < updates, updates).tolist()

    def _finding(self, window: Window, weight: Tensor, moved: _Moved, cold: list[int]) -> Finding:
        coldest = int(weight.argmax())
        value, threshold = self._value(float(weight.max()), moved)
        return Finding(
            severity=self._severity(window, weight, moved, coldest),
            layer=cold[0],
            layers=tuple(cold),
            first_step=window.steps[-1],
            value=value,
            threshold=threshold,
            message=self._message(window, weight, moved, cold[0], coldest),
            advice=self._advice(window, weight, moved, coldest),
        )

    def _value(self, worst: float, moved: _Moved) -> tuple[float, float]:
        """The largest weight, or where that is small what it moves, and the limit that is exceeded."""
        if worst > self.warn_weight:
            return worst, self.error_weight if worst > self.error_weight else self.warn_weight
        _, mean, log_ratio = moved.most(self.least_mean, self.least_log_deviation)
        if mean:
            return mean, self.error_mean if mean > self.error_mean else self.least_mean
        severe = log_ratio > self.error_log_deviation
        return log_ratio, self.error_log_deviation if severe else self.least_log_deviation

    def _message(self, window: Window, weight: Tensor, moved: _Moved, layer: int, coldest: int) -> str:
        """What the initial statistics weigh in the first layer and in the coldest, and what they move most."""
        updates, names, average = self._updates(window, weight), window.layers.names, averaged(window).tolist()
        own, worst = float(weight[layer]), float(weight[coldest])
        left = f"the initial mean 0 and variance 1 still weigh {number(100 * own)} % in"
        if average[layer]:
            message = f"an average is evaluated early: {left} its averaged running statistics"
        else:
            at = f"{count(updates[layer], 'update')} at momentum {number(float(window.momentum[-1, layer]))}"
            message = f"evaluated after {at}: {left} the running statistics"
        if worst > own:
            since = "" if average[coldest] else f", after {count(updates[coldest], 'update')}"
            message += f", and {number(100 * worst)} % in those of {names[coldest]}{since}"
        at_most, mean, log_ratio = moved.most(self.least_mean, self.least_log_deviation)
        if mean > self.least_mean:
            message += (
                f"; in the median channel of {names[at_most]} the mean is off by {number(mean)} standard deviations"
            )
        elif log_ratio > self.least_log_deviation:
            off = f"the standard deviation is {number(math.exp(log_ratio))} times that of the data"
            message += f"; in the median channel of {names[at_most]} {off}"
        return message

    def _advice(self, window: Window, weight: Tensor, moved: _Moved, coldest: int) -> str:
        remedy = "call torch.optim.swa_utils.update_bn(loader, model) before the evaluation"
        if averaged(window)[coldest]:
            return f"begin the average later or let its decay grow with the steps, or {remedy}"
        limit = min(self.warn_weight, moved.enough(weight, self.least_mean / 4, self.least_log_deviation / 4))
        enough = math.log(max(limit, 1e-6)) / math.log1p(-min(float(window.momentum[-1, coldest]), 1 - 1e-9))
        return f"evaluate after {count(math.ceil(enough), 'update')} or more, or {remedy}"


@dataclass(frozen=True)
class _Moved:
    """By how much the initial statistics move those of the median channel of each layer: ``[L]`` each.

    Attributes:
        mean: In standard deviations.
        log_ratio: Log of the ratio of the standard deviation to that of the data.
    """

    mean: Tensor
    log_ratio: Tensor

    def above(self, mean: float, log_ratio: float) -> Tensor:
        """Layers in which either is above its limit: ``[L]`` bool."""
        return (self.mean > mean) | (self.log_ratio.abs() > log_ratio)

    def most(self, mean: float, log_ratio: float) -> tuple[int, float, float]:
        """The layer in which one of the two is furthest above its limit, and that one there, the other as 0."""
        by_mean, by_ratio = self.mean / mean, self.log_ratio / log_ratio
        at = int(torch.maximum(by_mean, by_ratio).argmax())
        if by_mean[at] > by_ratio[at]:
            return at, float(self.mean[at]), 0.0
        return at, 0.0, float(self.log_ratio[at])

    def enough(self, weight: Tensor, mean: float, log_ratio: float) -> float:
        """The weight from which down both are below their limits in all layers."""
        by_mean = weight * mean / self.mean
        by_ratio = weight * math.expm1(2 * log_ratio) / (2 * self.log_ratio).expm1()
        both = torch.minimum(by_mean, by_ratio.where(self.log_ratio > 0, torch.inf))
        return float(both.where(weight > 0, torch.inf).nan_to_num(math.inf).min())
