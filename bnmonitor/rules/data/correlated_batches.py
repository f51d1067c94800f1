"""BN601: batches whose samples belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import number
from bnmonitor.measures import independence
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class CorrelatedBatches(Rule):
    """The batches differ more from one another than batches of independent samples would.

    ## What it does
    At the layers that see the data, with no other layer before them, it compares how much the batch mean changes from
    batch to batch with what the spread of single samples would give if they were drawn independently. A drift of the
    weights cancels in the differences, and batches four steps apart are compared as well, which shows blocks of batches
    that are alike. It began with the batch from which on, to the end of the window, the differences are rather three
    times as large as expected than as large.

    ## Why is this bad?
    Samples in order of their class, windows that overlap, patches of one volume, several copies of one image: each
    batch has statistics of its own, which tell the network what the batch is made of. It learns to rely on that, and
    in evaluation it gets an average that no batch ever had. Ioffe (2017) names it as the failure of batch
    normalization.

    ## Example
    >>> from bnmonitor.testing import drawn_window
    >>> [finding] = CorrelatedBatches().check(drawn_window(spread=3.0))
    >>> str(finding.severity)
    'warning'

    Independent samples stay quiet:

    >>> CorrelatedBatches().check(drawn_window())
    []

    ## What to do
    ``shuffle=True`` in the training loader; mix windows and volumes within a batch; a larger batch. If the batches have
    to be so, GroupNorm or LayerNorm; or estimate the running statistics over shuffled data before evaluating
    (:func:`bnmonitor.remedies.recalibrate`).

    ## Thresholds
    ``warn_above = 3`` and ``error_above = 10`` times the variance that independent samples give, and more than chance
    may make of the pairs and samples that were seen: 3.5 standard errors of the log of a ratio of variances, with the
    kurtosis of the input. Two classes in each batch give 2 to 10, eight copies of each sample 9 to 15, sound trainings
    up to 3; fewer than 16 images in a batch tell too little of that, and are not judged. ``least_share = .01``
    of what tells samples apart must be their batch: in large batches the variance of independent samples is so small
    that differences which harm nobody exceed it.

    ## Look-alikes
    Samplers for metric learning draw some classes with several samples each, on purpose: what is said is true, and
    wanted. Batches that differ in what was done to all their samples alike, as in training at several image sizes, are
    correlated, too. Data that are unshuffled but in no order are silent, and so are sorted data whose classes hardly
    differ in what the layer sees, such as handwritten digits in batches of 32 to 128. An incomplete last batch is left
    out or counted in, for which the training loader has to be known.

    Weights that jump from step to step take the batch means along, the more so the farther these are from zero: on an
    input that is not centered this exceeds by far what the order of the data does. What weights may do in this way is
    counted as expected, so that such data have to differ as much to be found, or to come in blocks of batches, in
    which most neighbors are alike. Behind weights no layer is judged while a rise of the learning rate, fourfold or
    more from one step to the next, is in the window.

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
    error_above: float = 10.0
    least_share: float = 0.01

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that see batches unlike one another."""
        known = independence(window)
        excess, found = known.excess, []
        for layer in known.beyond(self.warn_above, self.least_share).nonzero().flatten().tolist():
            value = float(excess[layer])
            error = value > self.error_above
            found.append(
                Finding(
                    severity=Severity.ERROR if error else Severity.WARNING,
                    layer=layer,
                    first_step=window.steps[int(known.since[layer])],
                    value=value,
                    threshold=self.error_above if error else self.warn_above,
                    message=f"the means of its batches vary {number(value)} times as much as those of independent "
                    "samples would: samples of a batch belong together, as by class, source or time",
                    advice="shuffle the training data, or mix what belongs together over the batches; else GroupNorm "
                    "or LayerNorm",
                )
            )
        return found
