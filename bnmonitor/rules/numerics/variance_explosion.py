"""BN106: a batch variance that has grown far beyond its baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from bnmonitor._text import count, number
from bnmonitor.limits import FLAT
from bnmonitor.measures import NEWEST, loss_level, variances
from bnmonitor.results import Severity
from bnmonitor.rules.advice import retreat
from bnmonitor.rules.base import Finding, Rule, run_note
from bnmonitor.window import Window

MAD = 1.4826
"""A Gaussian's standard deviation in units of its median absolute deviation."""


@dataclass(frozen=True, kw_only=True)
class VarianceExplosion(Rule):
    """The batch variance of a channel has grown a hundredfold against its own baseline.

    ## What it does
    Compares each channel's batch variance, in three consecutive steps, with the larger of two levels. The first is the
    channel's baseline: the robust median of its past after warm-up, which follows slow changes and is fixed while an
    alert is open. The second is the channel's own level as many steps ago as the running average remembers,
    ``1 / momentum``.

    ## Why is this bad?
    In training mode the layer divides the growth away, so the loss hides it for a while. The running statistics lag
    behind (evaluation is wrong until they catch up), half precision overflows, and most of the time the weights that
    caused the growth are still growing. The usual cause is a learning rate that is too high.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> import torch
    >>> course = torch.ones(64, 3)
    >>> course[-5:, 1] = 250.0
    >>> [finding] = VarianceExplosion().check(make_window(batch_var=course))
    >>> str(finding.severity), finding.channels, finding.first_step
    ('warning', (1,), 59)

    The same growth spread over the whole window is fast, but the running average can follow it:

    >>> course[:, 1] = torch.logspace(0, 2.4, 64)
    >>> VarianceExplosion().check(make_window(batch_var=course))
    []

    ## Code
    Wrong::

        loss.backward()
        optimizer.step()

    Right::

        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    ## What to do
    Look at the learning rate at the step where it began: lower its peak, lengthen the warm-up, or clip gradients
    (``Trainer(gradient_clip_val=1.0)``). If only the first layer is affected, look at the data of that step instead: a
    missing normalization or a broken batch.

    ## Thresholds
    ``warn_factor = 100`` and ``error_factor = 1e4`` in variance: 10 and 100 times the standard deviation. A channel's
    baseline counts as at least a tenth of its layer's median baseline and at least ten times eps, so that a channel
    which comes to life does not count as exploding: one that was below a tenth of that median counts as at the median
    itself, as next to nothing has no usual size. While the learning rate rises to its first peak and the loss is at its
    best, less than half of a layer's channels are not judged: they find their place. The growth must hold for three
    consecutive steps, so that a single odd batch does not count. In the log it must also be at least ``wild = 6``
    robust standard deviations of the channel's own past, for channels that jump tenfold from batch to batch.

    The second level is ``1 / momentum`` steps old (at least 10, at most half the window). Growth by a factor ``1 + r``
    per step leaves the running statistics with half a log lag of ``log(1 + r (1 - m) / m) / 2``. A hundredfold growth
    in ``1 / m`` steps leaves .82 at momentum .1, which is above the error level of BN304. Slower growth leaves less,
    and healthy runs have it: a one-cycle schedule took single layers up 100- to 900-fold in 60 steps, but at most
    46-fold in 10.

    ## Look-alikes
    The first steps, before the baseline exists, are not judged. Weights before a normalization grow in healthy
    training, and fast while the learning rate warms up; the second level covers this. If half of the layers jump at
    once, the learning rate is the cause, and BN704 reports it for all of them.

    ## References
    Bjorck et al., Understanding Batch Normalization, 2018; matterport/Mask_RCNN#573.
    """

    code: ClassVar[str] = "BN106"
    name: ClassVar[str] = "variance-explosion"
    severity: ClassVar[Severity] = Severity.WARNING
    holds: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset({"BN704"})

    warn_factor: float = 100.0
    error_factor: float = 1e4
    steps_in_a_row: int = 3
    wild: float = 6.0

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with an exploded channel."""
        growth = self._growth(window)
        if growth is None:
            return []
        worst = window.layers.segments.max(growth.amax(0))
        if _warms_up(window):
            over = window.layers.segments.count(growth.amax(0) > math.log(self.warn_factor))
            worst = worst.where(2 * over >= window.layers.segments.sizes, -torch.inf)
        return [
            self._finding(window, growth, layer)
            for layer in (worst > math.log(self.warn_factor)).nonzero().flatten().tolist()
        ]

    def _growth(self, window: Window) -> torch.Tensor | None:
        """Log factor by which each channel has grown, at each new step: ``[T', C]``; None while it is unknown."""
        new, rate = max(1, window.fresh), window.momentum[-1]
        top = self._largest(window, slice(-(new + self.steps_in_a_row - 1), None)).log() - window.baseline.log_var
        if bool(top.amax() <= math.log(self.warn_factor)) or bool(window.baseline.log_var.isnan().all()):
            return None
        reference = self._reference(window)
        reach = (1 / rate.clamp(min=1e-3)).nan_to_num(10.0).round().clamp(10, max(10, len(window) // 2)).long()
        # Each step is compared with one that the window still has.
        new = min(new, max(NEWEST, len(window) - int(reach.max())))
        growth = None
        for back in sorted(set(reach.tolist())):
            past = variances(window, slice(-(new + back), max(0, len(window) - back)))
            lasting = self._lasting(window, new)
            if len(past) < new or len(lasting) < new:
                continue
            level = torch.maximum(past.log(), reference)
            grown = (lasting.log() - level).nan_to_num(-torch.inf, torch.inf, -torch.inf)
            mine = grown.where((reach == back)[window.layers.owner], -torch.inf)
            growth = mine if growth is None else torch.maximum(growth, mine)
        return growth

    def _largest(self, window: Window, recent: slice) -> torch.Tensor:
        """No variance that has lasted is above it: ``[C]``; over the baseline, it bounds every growth."""
        # One of these rows is among any so many in a row, of which the least counts.
        some = window.batch_var[recent][:: self.steps_in_a_row].detach().numpy().max(0)
        if np.isnan(some.sum()):
            return variances(window, recent).amax(0)
        return torch.from_numpy(some)

    def _lasting(self, window: Window, new: int) -> torch.Tensor:
        """The variances that have lasted up to each new step: ``[T', C]``.

        A variance that is followed by running statistics that are not finite has lasted.
        """
        rows = slice(-(new + self.steps_in_a_row - 1), None)
        recent, lost = variances(window, rows, least=True), ~window.running_var[rows].isfinite()
        if not bool(lost.any()):
            return _floor(recent, self.steps_in_a_row)
        low = _floor(recent.where(~lost, torch.inf), self.steps_in_a_row)
        # What was lost before is not this rule's.
        return low.where(recent[: len(low)].isfinite(), torch.nan)

    def _reference(self, window: Window) -> torch.Tensor:
        """Log of the level that growth is measured from: ``[C]``; higher for a channel that always varies much."""
        layers = window.layers
        wild = (self.wild * MAD * window.baseline.spread - math.log(self.warn_factor)).clamp(min=0).nan_to_num(0.0)
        own = window.baseline.log_var + wild
        typical = layers.segments.median(own)[layers.owner]
        # Next to nothing has no usual size of its own: such a channel must exceed the others.
        own = torch.where(own < typical + math.log(0.1), typical, own)
        return torch.maximum(own, (FLAT * layers.eps_by_channel).log())

    def _finding(self, window: Window, growth: torch.Tensor, layer: int) -> Finding:
        mine = growth[:, window.layers.span(layer)]
        over = mine > math.log(self.warn_factor)
        step = window.steps[self._began(window, mine, layer)]
        channels = tuple(over.any(0).nonzero().flatten().tolist())
        factor = math.exp(min(80.0, float(mine.max())))
        error = factor > self.error_factor
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            channels=channels,
            first_step=step,
            value=factor,
            threshold=self.error_factor if error else self.warn_factor,
            message=f"the batch variance of {count(len(channels), 'channel')} is up to {number(factor)}× its "
            f"earlier value (limit {number(self.error_factor if error else self.warn_factor)})"
            f"{run_note(window, layer, step)}",
            advice=f"{retreat(window, step, 'lower the peak learning rate')} or clip gradients: "
            "Trainer(gradient_clip_val=1.0); "
            "if only the first layer is affected, check the data of that step",
        )

    def _began(self, window: Window, growth: torch.Tensor, layer: int) -> int:
        """Position of the step since which a layer's variances are so large; ``growth`` is ``[T', C]`` of its channels.

        It lies before the new steps where it could not be judged until now.
        """
        over = growth > math.log(self.warn_factor)
        first = int(over.any(1).long().argmax())
        at = max(0, len(window) - len(growth) + first - self.steps_in_a_row + 1)
        if first == 0:
            grown = over[0] & growth[0].isfinite()
            before = slice(len(window) - len(growth) + 1)
            logs = variances(window, before, window.layers.span(layer), least=True)[:, grown].log()
            # Growth is how far the least of the last steps is from the level before.
            level = logs[-self.steps_in_a_row :].amin(0) - growth[0, grown]
            while at and 2 * int((logs[at - 1] - level > math.log(self.warn_factor)).sum()) > int(grown.sum()):
                at -= 1
        return at


def _floor(rows: torch.Tensor, length: int) -> torch.Tensor:
    """Smallest value of every ``length`` consecutive rows."""
    low = rows[length - 1 :]
    for shift in range(1, length):
        low = torch.minimum(low, rows[length - 1 - shift : len(rows) - shift])
    return low


def _warms_up(window: Window) -> bool:
    """Whether the learning rate has risen through the window to its highest so far, and the loss is at its best."""
    rates, level, best = window.facts.learning_rates, loss_level(window), window.facts.loss_best
    if len(rates) != len(window) or not rates[-1] > rates[len(rates) // 2] > rates[0] or rates[-1] < max(rates):
        return False
    before = window.baseline.rate
    highest = not bool((before > rates[-1]).any())
    return highest and level == level and level <= 1.1 * min(best if best == best else level, window.facts.loss_start)
