"""BN704: a learning rate that is too high for the whole model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.measures import (
    GAMMA_STEPS,
    NEWEST,
    Array,
    batch_distance,
    changed_at_once,
    fastest_group,
    gamma_run,
    input_jump,
    jump,
    loss_level,
    rise,
    rises,
    run_began,
)
from bnmonitor.results import Severity
from bnmonitor.rules.advice import slower
from bnmonitor.rules.base import Finding, Rule, first, onset, rate_note
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class LearningRateTooHigh(Rule):
    """Gamma runs away in many layers, or their batch statistics change strongly from step to step.

    ## What it does
    Finds a rate that is too high in two ways. One alert reports all layers.

    From the first step on, it measures how far gamma has moved within 30 steps, relative to its scale: the channel that
    moved most stands for its layer. Reports if gamma moved far in at least half of the layers, and the loss is no
    better than at its start. The weights before a normalization tune their own rate, as their scale does not matter;
    gamma does not. If the gammas of one parameter group moved three times as far as the others, and its rate is the
    highest, only the layers of that group are judged.

    In layers that were calm before, it measures the batch distance of each layer: how far its batches are from its
    running statistics. Also measures the jump: how far the batch mean moves from one step to the next. Both are those
    of the median channel. Reports if at least half of the layers, and not just one of two, have left the level of their
    own calm times: the weights then take steps after which every layer computes something else.

    ## Why is this bad?
    Batch normalization lets a network train at learning rates that would otherwise make it diverge, because the scale
    of the weights before the layer does not matter. It does not make every rate a good one: the network loses within a
    few steps what it had learned, channels die (BN701), and the running statistics describe no network that ever
    existed.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> import torch
    >>> wild = torch.zeros(64, 6)
    >>> wild[-12:] = torch.tensor([0.6, -0.5] * 6)[:, None]
    >>> [finding] = LearningRateTooHigh().check(make_window(channels=(3, 3), batch_mean=wild))
    >>> len(finding.layers), round(finding.value, 2)
    (2, 0.6)

    One layer of several may have a fault of its own, which the learning rate did not cause:

    >>> wild[:, 2:] = 0.0
    >>> LearningRateTooHigh().check(make_window(channels=(2, 2, 2), batch_mean=wild))
    []

    ## Code
    Wrong::

        optimizer = torch.optim.SGD(model.parameters(), lr=3.0)

    Right::

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=500)

    ## What to do
    Go back to the previous learning rate, or lower the peak of the schedule to a third; lengthen the warm-up, or clip
    gradients (``Trainer(gradient_clip_val=1.0)``). Look at the learning rate at the step where the message says it
    began.

    ## Thresholds
    ``gamma_run = 1.5`` times its scale, with a loss above ``better_loss = .9`` of the lowest of the first three losses.
    ``lost_gamma_run = .5`` once the median of five losses is more than ``lost_loss = 1.25`` times that: then, or if the
    loss is no better after 20 steps, the alert is an error. Where no loss is known, ``blind_gamma_run = 4``, and an
    error at twice that. A single step in which gamma changed at once is a load, and no run.

    Measured by ``benchmarks/learning_rates.py`` over five networks, four rates and three seeds, 200 steps each: of 60
    trainings at rates too high from the first step, 41 ended with a loss no better than at their start. This alert led
    the first incident in each of them, which was the only one, an error within two checks of the loss leaving its
    start, and open at the end. None of 60 trainings at rates that train well had an incident. At ten times such rates
    gamma moved by up to 2.5 times its scale, while the loss fell.

    ``least_distance = .3`` standard deviations and ``growth = 4`` times the calm level. The running statistics with
    momentum ``m`` are ``(1 - m) / m`` steps behind, nine at .1: BN304 would call a batch distance of .3 a stale average
    if it were always to one side. ``jump_growth = 1.5``: the mean must also move more from batch to batch, which does
    not happen after a single change of the data.

    ``sudden_distance = .06`` and ``sudden_growth = 2``, without a condition on the mean, if the learning rate rose
    fourfold to thirtyfold (``sudden_from``, ``sudden_to``) within 20 steps, above all rates so far: such a rise needs
    less evidence. A rise from a rate near zero, as in a warm-up by epochs, does not count as one.

    If a NaN or an infinity has destroyed the running statistics, the rule judges the steps before it instead: the steps
    since a rise of the learning rate, fourfold or more from one step to the next, if it was within 20 steps; otherwise
    the last ten. The calm level is that of the time before.

    Measured in the median layer: 125 healthy trainings of 60,000 steps and 20 more schedules (warm-up over 20 to 500
    steps and by epochs, one-cycle to .4, restarts, triangles, Adam to .01) reached .32 where the rate rose to its peak,
    and never more than 3 times the calm level together with .1. A tenfold rate in the middle of training took the same
    networks to .06 to .49 and 2 to 18 times within 20 steps.

    ## Look-alikes
    Data that changes at once, thirtyfold or more in the variance that the first layer sees or ten standard deviations
    in its mean, while no gamma has moved, may make any rate too high: the data is the cause, and this rule is silent,
    unless the rate was raised at that step or after it. The first steps are not judged. Where layers are unfrozen, by
    ``requires_grad``, by a new parameter group or by a rate that was 0, they begin to move: their batches are not
    judged for a window, and their calm times begin anew. Restarts and one-cycle peaks stay below the thresholds. New
    data in the middle of training moves every layer once. BN106 or BN702 reports a fault of one layer; where all layers
    jump, their findings count as effects of this alert.

    ## References
    Ioffe and Szegedy, Batch Normalization, 2015, section 3.3; Bjorck et al., Understanding Batch Normalization, 2018;
    Arora, Li and Lyu, Theoretical Analysis of Auto Rate-Tuning by Batch Normalization, 2019.
    """

    code: ClassVar[str] = "BN704"
    name: ClassVar[str] = "learning-rate-too-high"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers"})

    least_distance: float = 0.3
    growth: float = 4.0
    sudden_distance: float = 0.06
    sudden_growth: float = 2.0
    sudden_from: float = 4.0
    sudden_to: float = 30.0
    jump_growth: float = 1.5
    least_share: float = 0.5
    gamma_run: float = 1.5
    lost_gamma_run: float = 0.5
    blind_gamma_run: float = 4.0
    lost_loss: float = 1.25
    better_loss: float = 0.9

    def check(self, window: Window) -> list[Finding]:
        """Judge all layers together: by gamma and the loss, which need no calm times, then by the batches."""
        found = self._runaway(window) or self._leaps(window)
        if not found:
            return []
        jumped = input_jump(window, found[0].first_step)
        if jumped is None:
            return found
        # A rate that was raised together with the data, or after it, is a cause of its own.
        return found if any(step >= jumped.step for step in rises(window)) else []

    def _runaway(self, window: Window) -> list[Finding]:
        """Judge how far gamma has moved, and whether the loss has left its start."""
        level, start = loss_level(window), window.facts.loss_start
        known = start > 0 and level == level
        lost = known and level > self.lost_loss * start
        if known and not lost and level < self.better_loss * start:
            return []
        moved = gamma_run(window)
        judged = ~moved.isnan() & window.training[-1]
        if not judged.any():
            return []
        limit = self.lost_gamma_run if lost else self.gamma_run if known else self.blind_gamma_run
        group = fastest_group(window, moved)
        judged = judged if group is None else judged & group
        wild = judged & (moved > limit)
        if self._are_few(wild.numpy(), judged.numpy()):
            return []
        if not lost and changed_at_once(window, wild):
            return []
        value = float(moved[judged].median())
        stuck = known and len(window) >= 2 * NEWEST
        runaway = not known and value > 2 * self.blind_gamma_run
        lead, share = int(wild.long().argmax()), f"{int(wild.sum())} of {count(int(judged.sum()), 'layer')}"
        step = run_began(window, lead)
        raised = rise(window, step + 1)
        before = 0.0 if raised is None else window.learning_rate(window.steps.index(raised) - 1)
        return [
            Finding(
                severity=Severity.ERROR if lost or stuck or runaway else Severity.WARNING,
                layer=lead,
                layers=tuple(judged.nonzero().flatten().tolist()),
                first_step=step,
                value=value,
                threshold=limit,
                message=f"in {share} gamma moved by {number(value)} times its scale within "
                f"{min(len(window), GAMMA_STEPS)} steps{_loss(level, start)}{rate_note(window, step)}",
                advice=slower(window.learning_rate(window.steps.index(step)), value, before),
            )
        ]

    def _leaps(self, window: Window) -> list[Finding]:
        """Judge the batches against calm times."""
        if window.facts.thawed is not None and window.facts.thawed >= window.steps[0]:
            return []
        known = window.training[-1].numpy() & np.isfinite(window.baseline.batch_distance.numpy())
        now, moved = batch_distance(window), jump(window)
        lost = known & ~(np.isfinite(now.numpy()) & np.isfinite(moved.numpy()))
        return self._before(window, torch.from_numpy(lost)) if lost.any() else self._judge(window, now, moved)

    def _before(self, window: Window, lost: Tensor) -> list[Finding]:
        """Judge the steps before the running statistics of some layers stopped being finite."""
        channels = lost[window.layers.owner]
        finite = window.shift[:, channels].isfinite() & window.running_var[:, channels].isfinite()
        gone = finite.double().mean(1) < 0.5
        # If they were not finite when the window began, there are no steps to judge.
        end = int(gone.long().argmax())
        if not end:
            return []
        step = rise(window, window.steps[end])
        # The new weights first see the batch after the rise.
        steps = NEWEST if step is None else end - window.steps.index(step) - 1
        if not steps:
            return []
        past = window.until(end)
        found = self._judge(past, batch_distance(past.last(steps)), jump(past.last(steps + 1)))
        lost_at = f"; running statistics not finite from step {window.steps[end]} on"
        return [replace(finding, message=f"{finding.message}{lost_at}") for finding in found]

    def _judge(self, window: Window, now: Tensor, moved: Tensor) -> list[Finding]:
        """Compare batch distances and jumps, ``[L]`` each, with those of calm times."""
        distance, calm, moves = now.numpy(), window.baseline.batch_distance.numpy(), moved.numpy()
        with np.errstate(all="ignore"):
            # A cumulative average (momentum None) does not follow the batches, so their distance says nothing.
            averages = ~np.isnan(window.momentum[-1].numpy())
            judged = window.training[-1].numpy() & np.isfinite(distance) & np.isfinite(calm) & averages
            raised = self._raised(window)
            least, growth = (
                np.where(raised, np.float32(sudden), np.float32(usual))
                for sudden, usual in ((self.sudden_distance, self.least_distance), (self.sudden_growth, self.growth))
            )
            wild = judged & (distance > least) & (distance > growth * calm)
            wild &= raised | (moves > self.jump_growth * window.baseline.jump.numpy())
        if not wild.any() or self._are_few(wild, judged):
            return []
        sudden = bool((raised & wild).any())
        return [self._finding(window, now, torch.from_numpy(wild), torch.from_numpy(judged), sudden)]

    def _are_few(self, wild: Array, judged: Array) -> bool:
        """Whether so few layers of the judged are wild that the fault may be their own, such as one of two."""
        of = int(judged.sum())
        return int(wild.sum()) < max(self.least_share * of, min(2, of))

    def _raised(self, window: Window) -> Array:
        """Layers with a sudden rise of the learning rate above all earlier rates: ``[L]`` bool."""
        before, now = window.baseline.rate.numpy(), window.learning_rate()
        found: Array = (before > 0) & (now >= self.sudden_from * before) & (now <= self.sudden_to * before)
        return found

    def _finding(self, window: Window, now: Tensor, wild: Tensor, judged: Tensor, raised: bool) -> Finding:
        layers = judged.nonzero().flatten().tolist()
        lead = int(wild.long().argmax())
        value, calm = (float(values[wild].median()) for values in (now, window.baseline.batch_distance))
        before = float(window.baseline.rate[lead])
        if raised:
            rates = torch.tensor(window.facts.learning_rates, device="cpu")
            step = first(rates >= self.sudden_from * before, window)
            advice = f"go back to a learning rate of {number(before)}, or raise it step by step"
        elif (risen := rise(window, window.steps[-1])) is not None:
            step, before = risen, window.learning_rate(window.steps.index(risen) - 1)
            advice = f"go back to a learning rate of {number(before)}, or raise it step by step"
        else:
            step = self._since(window, lead, calm)
            advice = "lower the learning rate to a third, or lengthen its warm-up"
        return Finding(
            severity=Severity.WARNING,
            layer=lead,
            layers=tuple(layers),
            first_step=step,
            value=value,
            threshold=self.sudden_distance if raised else self.least_distance,
            message=f"in {int(wild.sum())} of {count(len(layers), 'layer')} the batches are {number(value)} standard "
            f"deviations from the running statistics, {number(value / calm)}× the usual distance"
            f"{rate_note(window, step)}",
            advice=f"{advice}; clip gradients: Trainer(gradient_clip_val=1.0)",
        )

    def _since(self, window: Window, layer: int, calm: float) -> int:
        """The step at which the batch distance of a layer left its calm level."""
        span = window.layers.span(layer)
        shift, ratio = window.shift[:, span].abs(), window.ratio[:, span]
        course = torch.maximum(shift, (ratio - 1 / ratio).abs() / 2).nanmedian(1).values
        return onset(course > 2 * calm, window)


def _loss(level: float, start: float) -> str:
    return f"; loss {number(start)} → {number(level)}" if level == level and start == start else ""
