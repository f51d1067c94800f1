"""BN508: forwards in training mode that train nothing, and update the running statistics."""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1, log1p
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.measures import call_gaps, side_updates
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, apart, sampled
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class SideForwards(Rule):
    """Forwards in training mode that train nothing feed the running statistics with other batches than training.

    ## What it does
    In sampled steps, counts the calls of a layer in training mode under ``torch.no_grad()`` beside those that train it,
    and compares their inputs: the distance between the means in standard deviations, the log of the ratio of the
    variances, and the sizes of the batches. Of the steps between, those in which the running statistics were updated
    more often than usual are compared with the others. Evaluations are left to BN406.

    ## Why is this bad?
    A forward in training mode updates the running statistics, whatever it is for: to collect experience, to label data,
    to fill a memory bank, to count operations, to warm up a captured graph. Evaluation then normalizes with an average
    of batches that the network was not trained on.

    ## Example
    >>> import dataclasses
    >>> from bnmonitor.testing import make_sample, make_window
    >>> window = make_window(channels=[4], updates=5)
    >>> def beside(calls, size):
    ...     sample = make_sample(window.layers, size=64, side_calls=calls, side_size=size)
    ...     return dataclasses.replace(window, earlier=(sample,), sample=sample)
    >>> [finding] = SideForwards().check(beside(4, 4))
    >>> str(finding.severity), round(finding.value, 2)
    ('warning', 0.8)

    One more forward of a whole batch that looks like those of the training stays quiet:

    >>> SideForwards().check(beside(1, 64))
    []

    ## Code
    Wrong::

        with torch.no_grad():
            action = policy(observation).argmax(1)  # the policy is in training mode: this updates its statistics

    Right::

        policy.eval()
        with torch.no_grad():
            action = policy(observation).argmax(1)
        policy.train()

    ## What to do
    Call ``model.eval()`` before such forwards, and ``model.train()`` after them.

    ## Thresholds
    The distances are those of BN502: ``warn_shift = .25`` standard deviations, or ``warn_log_ratio = .5`` in the log of
    the variances; ``error_shift = 1`` and ``error_log_ratio = 1.4``; each beyond ``least_noise = 3`` times what chance
    gives. Without such a distance, most of the updates (``most = .5``) must come from side forwards. This is a warning
    if their batches have less than ``few = 16`` samples and a quarter (``small = 4``) of those of the training: their
    samples are seldom independent, and the statistics of an agent that collected with four environments in training
    mode were .6 deviations off. Otherwise it is an info.

    Two samples in a row must show it.

    ## Look-alikes
    Activation checkpointing calls layers without a gradient first (BN501). A teacher or a target network is not trained
    at all (BN407). A generator that draws images for its discriminator under ``no_grad`` normalizes batches like its
    own. :func:`bnmonitor.remedies.recalibrate` and ``torch.optim.swa_utils.update_bn`` change the momentum meanwhile,
    which does not count.

    ## References
    thu-ml/tianshou#773; DLR-RM/stable-baselines3#535; ultralytics/ultralytics#14829.
    """

    code: ClassVar[str] = "BN508"
    name: ClassVar[str] = "side-forwards"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger", "samples"})
    exact: ClassVar[bool] = True

    warn_shift: float = 0.25
    error_shift: float = 1.0
    warn_log_ratio: float = 0.5
    error_log_ratio: float = 1.4
    least_noise: float = 3.0
    most: float = 0.5
    few: int = 16
    small: int = 4

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that forwards beside the training update."""
        sample = window.sample
        if sample is None:
            return []
        return self._sampled(window) or self._between(window)

    def _sampled(self, window: Window) -> list[Finding]:
        """Judge the calls under ``no_grad`` in the last two sampled steps."""
        layers, samples = len(window.layers), [*window.earlier[-1:], *([window.sample] if window.sample else [])]
        sides = torch.stack([sample.side_calls.expand(layers) for sample in samples])
        if not sides.any():
            return []
        shift, ratio = call_gaps(samples, layers, self.least_noise, side=True)
        calls = torch.stack([(s.calls - s.eval_calls).expand(layers) for s in samples])
        share = (sides / (sides + calls).clamp(min=1)).amin(0)
        size, own = samples[-1].side_size.expand(layers), samples[-1].size
        tiny = (size < self.few) & (size * self.small <= own) & (share > self.most)
        far = self._far(shift, ratio)
        judged = (far | (share > self.most)) & (sides > 0).all(0) & window.layers.tracked & window.training[-1]
        found = []
        for i in judged.nonzero().flatten().tolist():
            severity, value, limit = self._judged(float(shift[i]), float(ratio[i]), float(share[i]), bool(tiny[i]))
            words = f"{count(int(sides[-1, i]), 'forward')} in training mode without gradients, of "
            words += f"{count(int(size[i]), 'sample')} each where training has {int(own[i])}, "
            words += f"{'make' if sides[-1, i] > 1 else 'makes'} {number(100 * float(share[i]))} % of the updates of "
            words += "the running statistics in a step"
            if far[i]:
                words += f"; compared with the batches of the training {apart(float(shift[i]), float(ratio[i]))}"
            found.append(self._finding(window, i, severity, value, limit, words, sampled(window), len(samples) > 1))
        return found

    def _between(self, window: Window) -> list[Finding]:
        """Judge the steps with more updates than usual, where a usual step is one forward."""
        found, beyond, sample = [], side_updates(window), window.sample
        if beyond is None or sample is None:
            return []
        once = (sample.calls == 1) & (window.updates.median(0).values == 1 + sample.side_calls)
        judged = self._far(beyond.shift, beyond.ratio) & once & (sample.recomputed == 0) & window.layers.tracked
        for i in judged.nonzero().flatten().tolist():
            shift, ratio = float(beyond.shift[i]), float(beyond.ratio[i])
            weight = min(1.0, 2 * float(beyond.weight[i]))  # the limits are those of two kinds with the same share
            moved = abs(log1p(weight * expm1(ratio)))
            severity, value, limit = self._judged(weight * shift, moved, float(beyond.weight[i]), tiny=False)
            updates = int(beyond.extra[i])
            words = f"{count(updates, 'forward')} in training mode outside the training steps updated the running "
            words += f"statistics; compared with the batches of the training {apart(shift, ratio)}"
            since = window.steps[int(beyond.since[i])]
            found.append(self._finding(window, i, severity, value, limit, words, since, certain=True))
        return found

    def _far(self, shift: Tensor, ratio: Tensor) -> Tensor:
        return (shift > self.warn_shift) | (ratio.abs() > self.warn_log_ratio)

    def _judged(self, shift: float, ratio: float, share: float, tiny: bool) -> tuple[Severity, float, float]:
        """The severity, and the number that it follows from, with its threshold."""
        if shift > self.error_shift or ratio > self.error_log_ratio:
            by_mean = shift / self.error_shift >= ratio / self.error_log_ratio
            return Severity.ERROR, *((shift, self.error_shift) if by_mean else (ratio, self.error_log_ratio))
        if shift > self.warn_shift or ratio > self.warn_log_ratio:
            by_mean = shift / self.warn_shift >= ratio / self.warn_log_ratio
            return Severity.WARNING, *((shift, self.warn_shift) if by_mean else (ratio, self.warn_log_ratio))
        return (Severity.WARNING if tiny else Severity.INFO), share, self.most

    def _finding(
        self,
        window: Window,
        layer: int,
        severity: Severity,
        value: float,
        threshold: float,
        message: str,
        since: int,
        certain: bool,
    ) -> Finding:
        return Finding(
            severity=severity,
            layer=layer,
            first_step=max(since, window.steps[0]),
            value=value,
            threshold=threshold,
            message=message,
            advice="call model.eval() before forwards that train nothing, and model.train() after them",
            certain=certain,
        )
