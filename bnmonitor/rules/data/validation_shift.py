"""BN603: validation data that differs from the training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import number
from bnmonitor.limits import FLAT, LAG_LOG_DEVIATION, LAG_MEAN
from bnmonitor.measures import LEAST_WARM_UP, averages, lag, mean, mean_over_steps, median, warm
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import HeldOut, Window

AVERAGED = 10
"""Updates that the running statistics are an average of, at the usual momentum."""


@dataclass(frozen=True, kw_only=True)
class ValidationShift(Rule):
    """The validation data at the first layers has another mean or variance than the training data.

    ## What it does
    At the layers with no other layer before them, the rule measures the mean and variance of the input over a
    validation. It compares them with the running statistics and with the training batches themselves: the data is to
    blame only if it differs from both. The first finding is an info; it is a warning in the next validation, or at once
    if the shift is large. A small shift of the mean stays an info, and so does one that only all channels together
    show.

    ## Why is this bad?
    In evaluation the layer subtracts and divides by the statistics of the training data. Validation images that were
    scaled, cropped or normalized in another way, or come from another source, arrive shifted in every later layer. The
    usual cause is one transformation that is missing, or done twice.

    ## Example
    >>> from bnmonitor.testing import held_out_window
    >>> [finding] = ValidationShift().check(held_out_window(mean=2.0))
    >>> str(finding.severity), round(finding.value, 2)
    ('warning', 2.0)

    Validation data with the mean and variance of the training data stays quiet:

    >>> ValidationShift().check(held_out_window(mean=0.05))
    []

    ## Code
    Wrong::

        train = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
        val = transforms.ToTensor()

    Right::

        prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
        train = transforms.Compose([transforms.RandomCrop(32, 4), prepare])
        val = prepare

    ## What to do
    Compare the transformations of both loaders: scaling to 0..1, mean and standard deviation, channel order, resizing.
    If the data is meant to differ, estimate the running statistics on data of its own kind (AdaBN;
    :func:`bnmonitor.remedies.recalibrate`).

    ## Thresholds
    ``shift = .25`` standard deviations in the median channel, or ``log_ratio = .5`` in the log of the ratio of the
    variances. For a warning, the mean has to be off by ``augmented_shift = .4``. Beyond ``warn_shift = 1`` and
    ``warn_log_ratio = 1.4`` a single validation is enough for one. The distance must exceed ``errors = 4`` standard
    errors as well, over at least ``least_samples = 64`` samples. The error follows from how much the validation batches
    differ from one another, and from the noise of the training batches: samples that belong together, as the frames of
    a video or the nodes of a graph, count for less than their number. Both the average of the validation and its median
    batch must be so far off.

    Other data moves some channels much and others little, each by its weights. Together they show less than the median
    channel does: for an info, the root mean square of the shift over the channels must exceed ``pooled_shift = .08`` by
    ``pooled_errors = 2.5`` of its standard errors, and be ``least_pooled_errors = 3.5`` of them. It counts as three
    times the median channel at most, so that a few odd channels are not enough. Beyond the errors, it was .09 and more
    where small networks lost 2 points of accuracy or more, and .06 at most in 272 sound trainings. Data that lie far
    from zero differ more, as weights that move take their means along: the shift must be ``least_of_offset = .25`` of
    the distance of the means from zero. It was .16 to .19 of it in such trainings, and .54 and more under a shift.

    ## Look-alikes
    Augmentation changes the training data and not the validation data: mixing images takes up to a third off the
    variance, a log ratio of .4; cropping images of 32 pixels at random after padding them with 4 black ones moves the
    mean by .3. Running statistics that are not those of the training data are the subject of other rules: BN303 if they
    are cold, BN304 if they lag behind, BN406 if an evaluation has changed them, BN601 if the batches come in blocks.
    While the sampled training batches differ from one another by half of the distance, and where the training loader
    does not shuffle, there is an info at most.

    ## References
    Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021; Li et al., Revisiting batch normalization for practical
    domain adaptation, 2017; JDAI-CV/fast-reid#278.
    """

    code: ClassVar[str] = "BN603"
    name: ClassVar[str] = "validation-shift"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "samples", "dataflow", "validation"})
    yields_to: ClassVar[frozenset[str]] = frozenset(
        {"BN101", "BN109", "BN303", "BN304", "BN404", "BN406", "BN601", "BN602", "BN606"}
    )

    shift: float = 0.25
    log_ratio: float = 0.5
    augmented_shift: float = 0.4
    warn_shift: float = 1.0
    warn_log_ratio: float = 1.4
    pooled_shift: float = 0.08
    pooled_errors: float = 2.5
    least_pooled_errors: float = 3.5
    least_of_offset: float = 0.25
    errors: float = 4.0
    least_samples: int = 64
    lag_shift: float = LAG_MEAN
    lag_log_ratio: float = LAG_LOG_DEVIATION

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that received other data in the latest validation."""
        structure, held_out = window.facts.structure, window.facts.held_out
        if not held_out or structure is None or not structure.places:
            return []
        mean_lag, log_lag = lag(window)
        judged = structure.roots() & warm(window)[-1]
        # If the training batches do not agree with the running statistics, or may not, the data is not to blame.
        judged &= (mean_lag < self.lag_shift) & ((log_lag < self.lag_log_ratio) | log_lag.isnan())
        # Of a layer that was frozen meanwhile the last training batches are unknown.
        judged &= (window.updates[-_RECENT:] > 0).any(0)
        if not judged.any():
            return []
        newest = self._off(held_out[-1], window)
        told = judged & (newest.off | newest.by_pool)
        return [self._finding(window, i, newest) for i in told.nonzero().flatten().tolist()]

    def _off(self, held_out: HeldOut, window: Window) -> _Distance:
        """Measure how far a validation is off, and judge it."""
        shift, shift_error, log_ratio, log_error, pooled, pooled_error = _distance(held_out, window)
        enough = held_out.size >= self.least_samples
        by_mean = (shift > self.shift) & (shift > self.errors * shift_error)
        by_variance = (log_ratio > self.log_ratio) & (log_ratio > self.errors * log_error)
        by_pool = pooled > self.pooled_shift + self.pooled_errors * pooled_error
        by_pool &= pooled > self.least_pooled_errors * pooled_error
        running, var = window.running_mean[-1], window.running_var[-1] + window.layers.eps_by_channel
        by_pool &= pooled > self.least_of_offset * _together(running / var.sqrt(), window)
        return _Distance(shift, log_ratio, pooled, by_mean & enough, by_variance & enough, by_pool & enough)

    def _finding(self, window: Window, layer: int, newest: _Distance) -> Finding:
        held_out = window.facts.held_out
        shift, log_ratio = float(newest.shift[layer]), float(newest.log_ratio[layer])
        if not newest.off[layer]:
            return self._slight(window, layer, float(newest.pooled[layer]))
        by_mean = bool(newest.by_mean[layer]) and not (
            bool(newest.by_variance[layer]) and log_ratio / self.log_ratio > shift / self.shift
        )
        again = any(bool(self._off(older, window).off[layer]) for older in held_out[:-1])
        large = (shift > self.warn_shift and bool(newest.by_mean[layer])) or (
            log_ratio > self.warn_log_ratio and bool(newest.by_variance[layer])
        )
        loader = window.facts.train_loader
        ordered = loader is not None and loader.shuffled is False
        slight = by_mean and shift < max(self.augmented_shift, 2 * float(_wandering(window)[layer]))
        sure = (large or again) and not ordered and not slight
        return Finding(
            severity=Severity.WARNING if sure else Severity.INFO,
            layer=layer,
            first_step=window.steps[0] if held_out[0].step < window.steps[0] else held_out[0 if again else -1].step,
            value=shift if by_mean else log_ratio,
            threshold=self.shift if by_mean else self.log_ratio,
            message=f"the validation data differs from the training data: over {int(held_out[-1].size[layer])} samples "
            f"the mean is off by {number(shift)} standard deviations in the median channel, the log variance by "
            f"{number(log_ratio)}; the training batches agree with the running statistics",
            advice="compare the transformations of both loaders (scaling, mean and standard deviation, channel order); "
            "if the data is meant to differ, estimate the running statistics on it",
        )

    def _slight(self, window: Window, layer: int, pooled: float) -> Finding:
        """Return what is told of a shift that no single channel shows."""
        held_out = window.facts.held_out[-1]
        return Finding(
            severity=Severity.INFO,
            layer=layer,
            first_step=held_out.step,
            value=pooled,
            threshold=self.pooled_shift,
            message=f"the validation data differs slightly from the training data: over {int(held_out.size[layer])} "
            f"samples the means are off by {number(pooled)} standard deviations, as root mean square over the "
            "channels; the training batches agree with the running statistics",
            advice=_ADVICE,
        )


_ADVICE = (
    "compare the transformations of both loaders (scaling, mean and standard deviation, channel order); "
    "if the data is meant to differ, estimate the running statistics on it"
)

_RECENT = 10
"""Steps within which a layer must have been updated for its training batches to be those of now."""


@dataclass(frozen=True)
class _Distance:
    """How far a validation is off, ``[L]`` each, and whether that is too far and beyond chance."""

    shift: Tensor
    log_ratio: Tensor
    pooled: Tensor
    by_mean: Tensor
    by_variance: Tensor
    by_pool: Tensor

    @property
    def off(self) -> Tensor:
        return self.by_mean | self.by_variance


def _distance(held_out: HeldOut, window: Window) -> tuple[Tensor, ...]:
    """Distances of mean and log variance in the median channel, and of the mean in all channels, each with its error.

    Six tensors ``[L]``. The smallest of the distances of the average and of the median batch, from the running
    statistics and from the training batches.
    """
    eps = window.layers.eps_by_channel
    _, train_var, _ = averages(window)
    train_mean = mean_over_steps(window.batch_mean)
    running = held_out.running_var + eps
    alive = held_out.running_var > FLAT * eps
    shift = log_ratio = torch.full_like(running, torch.inf)
    for middle, var in ((held_out.mean, held_out.var), (held_out.middle_mean, held_out.middle_var)):
        if middle is None or var is None:
            continue
        for ours, its in ((held_out.running_mean, running), (train_mean, train_var + eps)):
            # A layer that is frozen, and another's weights, have no training batches to compare with.
            shift = torch.fmin(shift, (middle - ours).abs() / its.sqrt())
            log_ratio = torch.fmin(log_ratio, ((var + eps) / its).log().abs())
    shift_error, log_error = _errors(held_out, window)
    shift, log_ratio, shift_error, log_error = (
        values.where(alive, torch.nan) for values in (shift, log_ratio, shift_error / running.sqrt(), log_error)
    )
    by_middle = median(shift, window)
    return (
        by_middle,
        median(shift_error, window),
        median(log_ratio, window),
        median(log_error, window),
        torch.minimum(_together(shift, window), _MOST_SPREAD * by_middle),
        _together(shift_error, window),
    )


_MOST_SPREAD = 3.0
"""How many times the median channel the root mean square of all may count; of normal numbers it is 1.5 times."""


def _together(values: Tensor, window: Window) -> Tensor:
    """Root mean square over the channels of each layer, NaN left out: ``[C]`` to ``[L]``."""
    return mean(values.square(), window).sqrt()


def _errors(held_out: HeldOut, window: Window) -> tuple[Tensor, Tensor]:
    """Standard errors of the mean and of the log variance of a validation: two ``[C]``.

    The larger of what the spread of its batches says and what the noise of the training batches says, which shrinks
    with the number of samples; without either, those of independent samples. And what the weights moved since the
    batches that the running statistics are an average of.
    """
    size = held_out.size[window.layers.owner].clamp(min=1)
    running = held_out.running_var + window.layers.eps_by_channel
    usual = window.baseline.sizes[window.layers.owner]
    known = (window.batch_var + window.layers.eps_by_channel).log()
    stirred = None if window.sample is None else window.sample.stirred
    updates = torch.zeros(2, 1, device="cpu") if stirred is None else AVERAGED**0.5 * stirred.abs().nan_to_num(0.0)
    found = []
    for rows, given, independent, moved in (
        (window.batch_mean, held_out.noise_mean, (running / size).sqrt(), updates[0] * running.sqrt()),
        (known, held_out.noise_log_var, (2.0 / size).sqrt(), updates[1]),
    ):
        steps = (rows.diff(dim=0).square().nanmean(0) / 2 * usual / size).sqrt()
        both = steps if given is None else torch.fmax(steps, given)
        found.append(torch.hypot(both.where(both.isfinite(), independent), moved))
    return found[0], found[1]


def _wandering(window: Window) -> Tensor:
    """How far the means of the sampled training batches are from the running mean, beyond their noise: ``[L]``."""
    eps, layers = window.layers.eps_by_channel, window.layers
    later = window.baseline.updates.amin() - window.steps[-1]
    seen = [s for s in (*window.earlier, window.sample) if s is not None and s.step + later >= LEAST_WARM_UP]
    away = [
        ((s.input.mean if s.level is None else s.level) - window.running_mean[-1]).square()
        - (s.between / s.size[layers.owner]).nan_to_num(0.0)
        for s in seen
    ]
    if len(away) < 2:
        return torch.zeros(len(layers), device="cpu")
    spread = torch.stack(away).nanmean(0).clamp(min=0) / (window.running_var[-1] + eps)
    return median(spread.sqrt(), window).nan_to_num(0.0)
