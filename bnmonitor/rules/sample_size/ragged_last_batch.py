"""BN203: a last batch of an epoch that is much smaller than the others."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.limits import SMALL_BATCH
from bnmonitor.measures import (
    AROUND,
    StepNoise,
    calm_around,
    median,
    normalizing,
    processes,
    step_noise,
    times_smaller,
    warm,
)
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Loader, Sample, Window

BOTH = 1.5
"""How many times as far as usual both the means and the variances of a small batch are at least."""

EACH = 5.0
"""How many times smaller each of two batches looks at least."""

SCREEN = 1.8
"""How many times as far as usual a step of the window must be in single channels for a closer look.

Of two small batches, one is 2.4 times as far in directions. In channels, that was 2.6 times or more.
"""

EPOCH = 8
"""Least steps from one last batch to the next."""

RISE = 0.25
"""Most that the variances of a small batch rise together: from -.6 to .2 in two of them, .1 to .65 with outliers."""

MOST = 1.5
"""Most that a batch looks smaller, over the usual number of samples: it has one sample at least, the rest is chance.

Weights that are averaged among clients every few steps move all layers for a step, by far more than one sample does."""

BEFORE = 3
"""Steps that must be known before a single small batch, where the window cuts off those that were before.

Where the batch size had grown for good, only the first step of a window looked like one.
"""

LIKENESS = 0.9
"""Most that two small batches are alike: up to .84 of different samples, 1.1 to 2 where all values were scaled."""


@dataclass(frozen=True, kw_only=True)
class RaggedLastBatch(Rule):
    """The last batch of an epoch has only a few samples, but counts as much as a full one.

    ## What it does
    Divides the samples of an epoch by the batch size of the training loader. A remainder of one sample is an error, one
    of less than an eighth of a batch a warning, and one of up to a quarter an info if it is small in itself too: fewer
    than 16 samples. None of it holds if ``drop_last`` is set or the epoch ends before. Where processes are
    synchronized, their last batches are one. If the loader is not known, or does not know its length, the rule judges
    the statistics of every step: a small batch shows as noise in every layer at once. A sampled step with less than a
    quarter of the usual samples is a warning as well if its statistics are far from the running statistics. One alert
    for the whole model.

    ## Why is this bad?
    The last batch counts as much as a full one, twice, right before the evaluation. Its few samples are normalized with
    one another, and the weights make a step as long as usual by their gradient; an update of the running statistics has
    the weight of its momentum, however few samples it comes from. The step is what costs accuracy: in small networks at
    a constant rate, without it a last batch of 4 of 32 samples cost nothing, without the update as much as ever. A
    learning rate that decays makes such steps harmless in the end. With a single sample a layer without positions
    raises "Expected more than 1 value per channel"; a layer with positions normalizes the sample by itself.

    ## Example
    >>> from bnmonitor.window import Loader
    >>> from bnmonitor.testing import make_window
    >>> loader = Loader(batch_size=32, samples=1601, drop_last=False)
    >>> [finding] = RaggedLastBatch().check(make_window(facts={"train_loader": loader}))
    >>> str(finding.severity), finding.value
    ('error', 1.0)

    A last batch of half the size stays quiet, and so does a quarter of a large one:

    >>> loader = Loader(batch_size=32, samples=1616, drop_last=False)
    >>> RaggedLastBatch().check(make_window(facts={"train_loader": loader}))
    []
    >>> loader = Loader(batch_size=256, samples=25664, drop_last=False)
    >>> RaggedLastBatch().check(make_window(facts={"train_loader": loader}))
    []

    ## Code
    Wrong::

        loader = DataLoader(data, batch_size=32, shuffle=True)  # 1601 samples: the last batch has one

    Right::

        loader = DataLoader(data, batch_size=32, shuffle=True, drop_last=True)

    ## What to do
    Use ``DataLoader(..., drop_last=True)`` for training. With shuffling, no sample is left out for good. Otherwise
    choose a batch size that divides the number of samples better.

    ## Thresholds
    ``warn_share = .125`` of a batch: the error of its mean is ``sqrt(8) = 2.8`` times that of the others.
    ``error_up_to = 1`` sample. ``info_share = .25`` and ``info_below = 16`` samples, which BN201 calls small: in three
    small networks, evaluated right behind it, a last batch of 3 of 32 cost 10 points of accuracy, of 4 cost 7, of 8
    cost 3, and of 16 none. In epochs of 40 batches instead of 5, it was 11, 5, 1 and none in two of them.

    For sampled steps: under ``seen_share = .25`` of the usual samples, and ``limit_excess = 3`` times as far from the
    running statistics as the median step of the window, in the mean or in the log of the standard deviation. For other
    steps: in the 8 directions in which the batches of all layers vary most, means and variances are as far from those
    of the steps before and after as in a batch of an eighth of the size. Two such steps in a window are told, on
    average ``errors_again = 3.5`` standard deviations of that distance beyond the usual; or one that looks ``once =
    14`` times smaller, ``errors_once = 4`` of them, and ``least_layer = 1.5`` times as far as usual in the calmest
    layer. In networks of ``least_layers = 3`` or more: with one or two, the classes in a batch of full size looked the
    same. A last batch of 2 of 32, told by noise alone, was found in 32 of 36 trainings of 9 networks with two epochs.

    ## Look-alikes
    Batches that differ in size by design (graphs, packed sequences): their statistics are not far from the running
    statistics. Batches of another kind: their variances rise together, or they are off in the same directions each
    time, or in the means alone. So are small batches of the same samples each time. Weights that jump go on to be
    elsewhere. Two sampled steps in a row with few samples are no last batch: BN201 judges them. A batch size that falls
    for good begins with a small batch, too: a single one is told once seven steps after it are known, and most of them
    are as usual, or as the training ends. Two batches of one class each among mixed ones are as noisy as small ones,
    and are told as such where nothing tells the size.

    ## References
    braindecode/braindecode#411; open-mmlab/mmsegmentation#272; scverse/scvi-tools#2314; fastai/fastai#1352.
    """

    code: ClassVar[str] = "BN203"
    name: ClassVar[str] = "ragged-last-batch"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers"})
    exact: ClassVar[bool] = True
    every: ClassVar[int] = 32
    at_end: ClassVar[bool] = True

    warn_share: float = 0.125
    error_up_to: int = 1
    info_share: float = 0.25
    info_below: int = SMALL_BATCH
    seen_share: float = 0.25
    limit_excess: float = 3.0
    errors_again: float = 3.5
    once: float = 14.0
    errors_once: float = 4.0
    least_layer: float = 1.5
    least_layers: int = 3

    def check(self, window: Window) -> list[Finding]:
        """Judge the last batch that the loader will give, or a small sampled batch."""
        loader = window.facts.train_loader
        layers = tuple(normalizing(window).nonzero().flatten().tolist())
        if not layers:
            return []
        if loader is None or loader.leftover is None:
            found = self._seen(window, layers)
            if any(each.certain for each in found):
                return found
            noisy = self._noisy(window, layers)
            return noisy if not found or any(each.certain for each in noisy) else found
        return self._stated(window, layers, loader)

    def _stated(self, window: Window, layers: tuple[int, ...], loader: Loader) -> list[Finding]:
        """Judge the last batch by what the loader says of it."""
        rest, size = loader.leftover, loader.batch_size
        if not rest or not size:
            return []
        # Processes that are synchronized normalize their last batches as one.
        together = rest * int(
            torch.as_tensor(processes(window), device="cpu").expand(len(window.layers))[list(layers)].min()
        )
        if together <= self.error_up_to:
            severity, limit = Severity.ERROR, float(self.error_up_to)
        elif rest < self.warn_share * size:
            severity, limit = Severity.WARNING, self.warn_share * size
        elif rest <= self.info_share * size and together < self.info_below:
            severity, limit = Severity.INFO, self.info_share * size
        else:
            return []
        counts = "its statistics count as much as those of a full batch"
        slight = "the step after it is as long as any, and costs an evaluation behind it a few points at a high rate"
        return [
            Finding(
                severity=severity,
                layer=layers[0],
                layers=layers,
                first_step=window.steps[0],
                value=float(rest),
                threshold=limit,
                message=f"the last batch of each epoch has {count(rest, 'sample')} instead of {size} "
                f"({loader.samples} in all): {slight if severity is Severity.INFO else counts}",
                advice="drop this batch: DataLoader(..., drop_last=True)",
            )
        ]

    def _seen(self, window: Window, layers: tuple[int, ...]) -> list[Finding]:
        """Judge the sampled steps that had few samples, and were alone with that: the newest that is certain counts."""
        known = [sample for sample in (*window.earlier, window.sample) if sample is not None]
        waiting: list[Finding] = []
        for at in reversed(range(len(known))):
            if len(window) < 8 or known[at].step not in window.steps:
                break
            small = self._few(window, known[at])
            if not small.any():
                continue
            for beside in (*known[max(0, at - 1) : at], *known[at + 1 : at + 2]):
                small &= ~self._few(window, beside)  # two in a row are the size of the batches from now on
            found = self._far(window, layers, known[at], small)
            if any(each.certain for each in found):
                return found
            waiting = waiting or found
        return waiting

    def _few(self, window: Window, sample: Sample) -> Tensor:
        """Where a sampled step had few samples: ``[L]`` bool."""
        return (sample.size > 0) & (sample.size < self.seen_share * window.baseline.sizes)

    def _far(self, window: Window, layers: tuple[int, ...], sample: Sample, small: Tensor) -> list[Finding]:
        """Judge a sampled step with few samples in some layers by how far their statistics are off."""
        t = window.steps.index(sample.step)
        out = torch.zeros(len(window.layers), device="cpu")
        for distance in (window.shift.abs(), window.ratio.log().abs()):
            by_step = median(distance, window)
            excess = by_step / by_step.nanmedian(0).values
            excess = excess.where(excess.isfinite(), 0.0).to(out.dtype)
            for i in small.nonzero().flatten().tolist():
                # Where the steps around it are as far, the batch size has changed for good.
                if excess[t, i] > out[i] and calm_around(excess[:, i].numpy(), t):
                    out[i] = excess[t, i]
        hit = [i for i in layers if out[i] > self.limit_excess]
        if not hit:
            return []
        seen, full = int(sample.size[hit[0]]), float(window.baseline.sizes[hit[0]])
        return [
            Finding(
                severity=Severity.WARNING,
                layer=hit[0],
                layers=tuple(hit),
                first_step=sample.step,
                value=float(seen),
                threshold=self.seen_share * full,
                message=f"a batch of {count(seen, 'sample')} instead of {number(full)}, with statistics "
                f"{number(float(out[hit[0]]))}× the usual distance from the running statistics, counted as much as a "
                "full batch",
                advice="drop incomplete batches: DataLoader(..., drop_last=True)",
                certain=t + AROUND < len(window) or window.facts.ending,
            )
        ]

    def _noisy(self, window: Window, layers: tuple[int, ...]) -> list[Finding]:
        """Judge the noise of every step after warm-up."""
        mask = normalizing(window) & window.layers.tracked
        past = int(warm(window)[:-1, mask].all(1).sum())
        if int(mask.sum()) < self.least_layers or not past:
            return []
        noise = step_noise(window if past == len(window) else window.last(past), mask, SCREEN)
        if noise is None:
            return []
        found = self._again(noise) or self._once(noise, cut=past == len(window))
        if found is None:
            return []
        at, times, certain = found
        usual = float(window.baseline.sizes[list(layers)].nanmedian())
        if times > MOST * usual:  # False where the size is unknown
            return []
        return [
            Finding(
                severity=Severity.WARNING,
                layer=layers[0],
                layers=layers,
                first_step=window.steps[len(window) - past + 1 + at],
                value=times,
                threshold=1 / self.warn_share,
                message=f"a batch whose statistics are as noisy in all layers together as those of {number(times)} "
                "times fewer samples: probably an incomplete batch, counted as much as a full one",
                advice="drop incomplete batches: DataLoader(..., drop_last=True)",
                certain=certain or window.facts.ending,
            )
        ]

    def _again(self, noise: StepNoise) -> tuple[int, float, bool] | None:
        """Return the first of two noisy steps, how many times smaller their batches look, and that this is certain."""
        factor, errors = noise.factor, noise.errors
        steps = np.flatnonzero(noise.alone & (np.minimum(*noise.together) > BOTH))
        steps = steps[np.argsort(-factor[steps])][:3]
        for one, other in combinations(sorted(steps.tolist()), 2):
            times = float(times_smaller(np.sqrt(factor[one] * factor[other])))
            if (
                other - one >= EPOCH
                and times > 1 / self.warn_share
                and min(noise.times_smaller[[one, other]]) > EACH
                and errors[one] + errors[other] > 2 * self.errors_again
                and noise.rise(one) + noise.rise(other) < 2 * RISE
                and noise.likeness(one, other) < LIKENESS
            ):
                return one, times, True
        return None

    def _once(self, noise: StepNoise, *, cut: bool) -> tuple[int, float, bool] | None:
        """Return a step that is so noisy that one is enough, how many times smaller it looks, and if that is certain.

        It is once enough steps after it are known: a change of the batch size for good begins with such a step, too.
        Where the window cuts off the steps before it, they may have been as small.
        """
        times, errors = noise.times_smaller, noise.errors
        steps = np.flatnonzero(
            noise.alone & (np.minimum(*noise.together) > BOTH) & (times > self.once) & (errors > self.errors_once)
        )
        for at in steps[steps >= BEFORE * cut].tolist():
            if noise.rise(at) < RISE and noise.calmest(at) > self.least_layer:
                return at, float(times[at]), at + AROUND < len(times)
        return None
