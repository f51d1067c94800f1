"""BN601: batches with samples that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import number
from bnmonitor.measures import LEAST_WARM_UP, independence
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class CorrelatedBatches(Rule):
    """The batches differ more from one another than batches of independent samples would.

    ## What it does
    Judges the layers that see the data, with no other layer before them. It compares how much the batch mean, and the
    log of the batch variance, change from batch to batch with the change that the spread of single samples would give
    if they were drawn independently. A drift of the weights cancels in these differences. Batches with a distance of 2
    to 24 steps are compared as well, which reveals blocks of similar batches: on sampled steps the rule measures how
    far an update of the weights moves the statistics of the same samples, and grants the weights that much in every
    step; half of it in second differences, where most of a motion cancels. Where neighbors differ by less than
    independent samples would, distant batches are compared with neighbors. The alert begins at the batch from which, to
    the end of the window, the differences are closer to three times the expected size than to the expected size.

    ## Why is this bad?
    Samples in order of their class, overlapping windows, patches of one volume or several copies of one image give each
    batch statistics of its own, which show the network what the batch is made of. The network learns to rely on them,
    and in evaluation it gets an average that no batch ever had. Ioffe (2017) names this as the failure of batch
    normalization.

    ## Example
    >>> from bnmonitor.testing import drawn_window
    >>> [finding] = CorrelatedBatches().check(drawn_window(spread=3.0))
    >>> str(finding.severity)
    'warning'

    Independent samples stay quiet:

    >>> CorrelatedBatches().check(drawn_window())
    []

    ## Code
    Wrong::

        loader = DataLoader(sorted_by_class, batch_size=32)

    Right::

        loader = DataLoader(sorted_by_class, batch_size=32, shuffle=True)

    ## What to do
    Set ``shuffle=True`` in the training loader, mix windows and volumes within a batch, or use a larger batch. If the
    batches must stay as they are, use GroupNorm or LayerNorm, or estimate the running statistics over shuffled data
    before evaluating (:func:`bnmonitor.remedies.recalibrate`).

    ## Thresholds
    ``warn_above = 3`` and ``error_above = 10`` times the variance that independent samples give; the means warn above
    ``warn_above_later = 2`` once the window has no steps of the layer's warm-up, in which the weights move most. The
    excess must also be more than chance can explain with the pairs and samples seen: 3.5 standard errors of the log of
    a ratio of variances, which take the kurtosis of the input into account, and how many channels vary independently.
    Two classes in each batch give 2 to 10, eight copies of each sample 9 to 15. Healthy trainings give up to 1.8 after
    the warm-up in the means, and up to 2.5 in the variances, where samples are mixed. Batches of fewer than 16 images
    say too little and are not judged. Two of ten classes in each batch, drawn anew every 1 to 16 batches, cost 10 to 90
    points of accuracy in evaluation and are found; five of ten classes cost up to 10 points and are seldom found.
    ``least_share = .01``: the batch must explain at least this share of the variance between samples, because in large
    batches the variance of independent samples is so small that harmless differences exceed it.

    ## Look-alikes
    What changes a batch as a whole and equally in all channels is left out of the variances: the share by which samples
    are mixed, the strength of an augmentation. So are images whose size changes: the variances count alone only once
    three samples have shown the same size.

    Two views of each sample in one batch, the second views behind the first, as contrastive learning has them, give up
    to twice the variance, which counts as expected.

    Samplers for metric learning draw a few classes with several samples each on purpose: the alert is correct, and the
    effect is wanted. Batches in which all samples were processed in the same way, as in training at several image
    sizes, are correlated as well. Unshuffled data without an order stays quiet. So does sorted data with classes that
    hardly differ at the layer, such as handwritten digits in batches of 32 to 128. An incomplete last batch is left out
    or accounted for, if the training loader is known.

    Weights that jump from step to step move the batch means too, and more so the farther these means are from zero: on
    an input that is not centered, this effect is far larger than that of the order of the data. What weights can do in
    this way counts as expected. Such data is therefore flagged only if it differs by even more, or comes in blocks of
    batches, in which most neighbors are alike. After a layer with weights, no layer is judged while the window contains
    a rise of the learning rate, fourfold or more from one step to the next. Nor is a layer whose variances are all ten
    times as large or small from some step on, or whose means are all three deviations away: other weights or other data
    do that, and BN106, BN105 and BN603 tell of it. Where one smaller change explains all, as that of an augmentation,
    it must go on for a whole window: blocks of up to half a window bring the next change until then.

    ## References
    Ioffe, Batch Renormalization, 2017; pytorch/pytorch#4741; facebookarchive/C3D#277.
    """

    code: ClassVar[str] = "BN601"
    name: ClassVar[str] = "correlated-batches"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "samples", "dataflow"})
    confirm: ClassVar[int] = 20
    yields_to: ClassVar[frozenset[str]] = frozenset({"BN602"})

    warn_above: float = 3.0
    warn_above_later: float = 2.0
    error_above: float = 10.0
    least_share: float = 0.01

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with batches that differ too much from one another."""
        known = independence(window)
        excess, found = known.excess, []
        young = window.baseline.updates - len(window) < LEAST_WARM_UP
        limits = torch.where(young | (known.by_variance == 1), self.warn_above, self.warn_above_later)
        for layer in known.beyond(limits, self.least_share).nonzero().flatten().tolist():
            value = float(excess[layer])
            error = value > self.error_above
            found.append(
                Finding(
                    severity=Severity.ERROR if error else Severity.WARNING,
                    layer=layer,
                    first_step=window.steps[int(known.since[layer])],
                    value=value,
                    threshold=self.error_above if error else float(limits[layer]),
                    message=f"the batch {'variances' if known.by_variance[layer] == 1 else 'means'} have "
                    f"{number(value)} times the variance that independent samples give: "
                    "the samples of a batch belong together, for example by class, source or time",
                    advice="shuffle the training data, or spread related samples over the batches; otherwise use "
                    "GroupNorm or LayerNorm",
                    # A change of the data leaves the window, blocks of batches bring the next one.
                    lasting=len(window) if known.once[layer] == 1 else 0,
                )
            )
        return found
