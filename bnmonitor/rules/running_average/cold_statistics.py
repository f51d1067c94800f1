"""BN303: an evaluation with running statistics that still contain their initial values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.limits import INITIAL_WEIGHT, LAG_LOG_DEVIATION, LAG_MEAN
from bnmonitor.measures import initial_weight, median
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Moment, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class ColdStatistics(Rule):
    """An evaluation begins while the running statistics still contain part of their initial mean 0 and variance 1.

    ## What it does
    Judges the moment when an evaluation begins (the sanity check before training does not count). Running statistics
    have no bias correction: after ``k`` updates with momentum ``m``, mean 0 and variance 1 still have the weight
    ``(1 - m)^k`` in them. A layer that trains on batches without ever updating its statistics counts too. Statistics
    that were loaded or estimated again are not cold. One alert for all affected layers: it names the first in execution
    order, and the one with the largest weight, which decides about the severity.

    ## Why is this bad?
    The evaluation normalizes with a mixture of the data and of numbers that were never measured. Its result is too bad,
    and improves from one evaluation to the next only because those numbers lose weight.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = ColdStatistics().check(make_window(momentum=0.01, seen=80, evaluation="validation"))
    >>> str(finding.severity), round(finding.value, 2)
    ('error', 0.45)

    At PyTorch's default momentum, thirty updates are enough:

    >>> ColdStatistics().check(make_window(momentum=0.1, seen=30, evaluation="validation"))
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
    later, or choose a momentum that fits the length of the run.

    ## Thresholds
    ``warn_weight = .05``, reached after 29 updates at momentum .1, 299 at .01, 2995 at .001; ``error_weight = .3``,
    after 12, 120 and 1204. The effect of a weight ``w`` on the statistics can be computed: the mean is off by
    ``w / (1 - w)`` of itself, and the variance is ``(1 - w) v + w`` instead of ``v``. Between the two thresholds it is
    a warning if that moves the median channel of a layer by more than BN304 allows for a lag (``least_mean = .1``
    standard deviations, ``least_log_deviation = .2``), and an info if not: the effect is small in a layer with an input
    variance of about 1. On digits, an evaluation after 22 steps at .1 (a weight of .098) gave six networks 10 to 60 %
    accuracy where fresh statistics gave 60 to 79 %; where the median channel moved by less than .1, the two agreed.

    ## Look-alikes
    In fine-tuning the statistics began as those of another training: BN304 judges them.

    ## References
    chemprop/chemprop#607; keras-team/keras#6014; ludwig-ai/ludwig#328; facebookresearch/schedule_free#60.
    """

    code: ClassVar[str] = "BN303"
    name: ClassVar[str] = "cold-statistics"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "validation"})
    moment: ClassVar[Moment] = "evaluation"

    warn_weight: float = INITIAL_WEIGHT
    error_weight: float = 0.3
    least_mean: float = LAG_MEAN
    least_log_deviation: float = LAG_LOG_DEVIATION

    def check(self, window: Window) -> list[Finding]:
        """Judge all layers that update their statistics, if an evaluation begins."""
        facts = window.facts
        if facts.evaluation in ("", "sanity"):
            return []
        weight = initial_weight(window).where(self._judged(window), 0.0)
        if facts.rewritten is not None:
            weight = weight.where(~facts.rewritten, 0.0)
        cold = (weight > self.warn_weight).nonzero().flatten().tolist()
        return [self._finding(window, weight, cold)] if cold else []

    def _judged(self, window: Window) -> Tensor:
        """Layers that normalize with their batches; one without an update counts if a sample saw a call of it.

        BN302 judges momentum 0, which never moves the statistics; a cumulative average forgets at its first update.
        """
        momentum, updates = window.momentum[-1], window.baseline.updates
        trained = window.training[-1] & (momentum != 0) & ~(momentum.isnan() & (updates > 0))
        called = torch.zeros_like(trained) if window.sample is None else window.sample.calls > window.sample.eval_calls
        return trained & ((updates > 0) | called) & ~window.copied

    def _felt(self, window: Window, weight: Tensor) -> Tensor:
        """Layers with a median channel that the initial statistics move by more than a lag may: ``[L]`` bool."""
        left = weight.clamp(max=0.99)[window.layers.owner]
        mean, var, eps = window.running_mean[-1], window.running_var[-1], window.layers.eps_by_channel
        off = left / (1 - left) * mean.abs() / (var + eps).sqrt()
        true = ((var - left) / (1 - left)).clamp(min=0)
        log_ratio = 0.5 * ((true + eps) / (var + eps)).log().abs()
        return (median(off, window) > self.least_mean) | (median(log_ratio, window) > self.least_log_deviation)

    def _finding(self, window: Window, weight: Tensor, cold: list[int]) -> Finding:
        worst = float(weight.max())
        error = worst > self.error_weight
        felt = bool((self._felt(window, weight) & (weight > self.warn_weight)).any())
        layer, coldest = cold[0], int(weight.argmax())
        updates, momentum = window.baseline.updates.tolist(), window.momentum[-1].tolist()
        begins = f"the {window.facts.evaluation} begins"
        if updates[layer]:
            message = (
                f"{begins} after {count(updates[layer], 'update')} at momentum {number(momentum[layer])}: the initial "
                f"mean 0 and variance 1 still weigh {number(100 * float(weight[layer]))} % in the running statistics"
            )
        else:
            message = f"{begins} with running statistics that training never updated"
        if worst > float(weight[layer]):
            those = f", and {number(100 * worst)} % in those of {window.layers.names[coldest]}"
            since = f", after {count(updates[coldest], 'update')}" if updates[coldest] else ", never updated"
            message += those + since
        if updates[coldest]:
            enough = math.log(self.warn_weight) / math.log1p(-min(momentum[coldest], 1 - 1e-9))
            advice = f"evaluate after {count(math.ceil(enough), 'update')} or more, or call"
        else:
            advice = "let training forwards reach the layer's own buffers, or call"
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING if felt else Severity.INFO,
            layer=layer,
            layers=tuple(cold),
            first_step=window.steps[-1],
            value=worst,
            threshold=self.error_weight if error else self.warn_weight,
            message=message,
            advice=f"{advice} torch.optim.swa_utils.update_bn(loader, model) before the evaluation",
        )
