"""BN502: running statistics that mix the inputs of several calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor.measures import call_gaps, call_noise
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, apart, sampled, unused
from bnmonitor.window import Sample, Window


@dataclass(frozen=True, kw_only=True)
class MixedCalls(Rule):
    """A step calls a layer several times with inputs of different distributions.

    ## What it does
    In a sampled step, compares the inputs of a layer's calls in training mode: the distance between the means in
    standard deviations, and the log of the ratio of the variances, in the median channel. Most often the layers with no
    other normalization upstream show it, because further down each call has been normalized by itself. Further down, as
    in a network that runs in several widths, two samples in a row must show it. A layer at several places of the
    network is left to BN509, and calls under ``no_grad`` to BN508.

    ## Why is this bad?
    Each call is normalized with its own statistics, but the running statistics become a mixture of all kinds of calls,
    with the most weight on the last one. Evaluation normalizes with a distribution that no call had.

    ## Example
    >>> from bnmonitor.testing import make_sample, make_window
    >>> import dataclasses, torch
    >>> window = make_window(channels=[4], updates=2)
    >>> sample = make_sample(window.layers, calls=2)
    >>> def two_calls(shift):
    ...     distance = torch.tensor([[shift], [9.0], [0.0], [0.0]])
    ...     return dataclasses.replace(window, sample=dataclasses.replace(sample, distance=distance))
    >>> [finding] = MixedCalls().check(two_calls(0.6))
    >>> str(finding.severity), round(finding.value, 1)
    ('warning', 0.6)

    Two calls with similar inputs stay quiet:

    >>> MixedCalls().check(two_calls(0.02))
    []

    ## Code
    Wrong::

        one, other = encoder(photos), encoder(sketches)  # each normalized by itself, averaged together

    Right::

        one, other = encoder(torch.cat([photos, sketches])).chunk(2)

    ## What to do
    Concatenate the inputs to one batch, give each kind its own normalization (split or auxiliary BatchNorm), or let
    only the kind that evaluation sees update the running statistics.

    ## Thresholds
    ``warn_shift = .25`` standard deviations between the means, or ``warn_log_ratio = .5`` in the log of the variances
    (a factor 1.65); ``error_shift = 1`` and ``error_log_ratio = 1.4`` (a factor 4). Two domains in one training
    measured .43 and 1.2 at the first layer, two calls with the same distribution .02. Behind other normalizations, two
    noisy views measured at most .02 and .07 in a sample, two views with strong random brightness, contrast, noise and
    cutout up to .29 and .46, without an alert; the widths of a slimmable network .2 to .3 and .7 to .8.

    The difference must also be at least ``least_noise = 3`` times the difference that samples of this size have by
    chance, and more the more pairs of calls are compared. The spread between the samples gives that chance, if there
    are 16 or more samples and they are alike; else the tails of all calls together, and for the variances, how much
    they vary from step to step. From twice that multiple on, one sample is enough where no other normalization is
    upstream.

    ## Look-alikes
    Ghost batches and twin views have the same distribution. A discriminator that is never evaluated does not use its
    running statistics: with several optimizers, and before an evaluation has reached the layer, the alert is an info.

    ## References
    davda54/sam#17, #30; PatrickHua/SimSiam#1; soumith/ganhacks#52; keras-team/keras#11927.
    """

    code: ClassVar[str] = "BN502"
    name: ClassVar[str] = "mixed-calls"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger", "samples"})
    exact: ClassVar[bool] = True

    warn_shift: float = 0.25
    error_shift: float = 1.0
    warn_log_ratio: float = 0.5
    error_log_ratio: float = 1.4
    least_noise: float = 3.0

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with calls that see different inputs."""
        if window.sample is None:
            return []
        count, both = len(window.layers), [*window.earlier[-1:], window.sample]
        # Usually no layer has calls that differ: what the steps say of their noise is then not asked.
        if not any(self._mixed(*call_gaps(some, count, self.least_noise)).any() for some in ([window.sample], both)):
            return []
        places = window.facts.structure.places if window.facts.structure is not None else ()
        known = len(places) == count
        roots = torch.tensor([not known or places[i].root for i in range(count)], dtype=torch.bool, device="cpu")
        elsewhere = torch.tensor([known and places[i].places > 1 for i in range(count)], dtype=torch.bool, device="cpu")
        noise = self.least_noise * call_noise(window)

        def gaps(samples: list[Sample], least_noise: float) -> tuple[Tensor, Tensor]:
            shift, ratio = call_gaps(samples, count, least_noise)
            return shift, ratio.masked_fill(ratio < noise / len(samples) ** 0.5, 0.0)

        shift, ratio = gaps([window.sample], self.least_noise)
        lasting = gaps(both, self.least_noise)
        clear = self._mixed(*gaps([window.sample], 2 * self.least_noise))
        twice = self._mixed(*lasting) & bool(window.earlier)
        certain = (roots & clear) | twice
        # Two samples show together what is within the noise of one.
        shift = torch.where(twice, torch.maximum(shift, lasting[0]), shift)
        ratio = torch.where(twice, torch.maximum(ratio, lasting[1]), ratio)
        tracking = torch.tensor(window.layers.tracking, dtype=torch.bool, device="cpu")
        judged = self._mixed(shift, ratio) & ~elsewhere & tracking & window.training[-1]
        return [
            self._finding(window, i, float(shift[i]), float(ratio[i]), certain=bool(certain[i]))
            for i in judged.nonzero().flatten().tolist()
        ]

    def _mixed(self, shift: Tensor, ratio: Tensor) -> Tensor:
        return (shift > self.warn_shift) | (ratio > self.warn_log_ratio)

    def _finding(self, window: Window, layer: int, shift: float, ratio: float, *, certain: bool) -> Finding:
        error = shift > self.error_shift or ratio > self.error_log_ratio
        by_mean = shift / self.warn_shift >= ratio / self.warn_log_ratio
        limits = (self.error_shift, self.error_log_ratio) if error else (self.warn_shift, self.warn_log_ratio)
        severity = Severity.INFO if unused(window, layer) else Severity.ERROR if error else Severity.WARNING
        return Finding(
            severity=severity,
            layer=layer,
            first_step=sampled(window),
            value=shift if by_mean else ratio,
            threshold=limits[0] if by_mean else limits[1],
            message=f"calls of the layer in one step have different inputs: {apart(shift, ratio)}; the running "
            "statistics are a mixture that fits none of the calls",
            advice="concatenate the inputs to one batch, give each kind its own normalization, or let only the kind "
            "that evaluation sees update the statistics",
            certain=certain,
        )
