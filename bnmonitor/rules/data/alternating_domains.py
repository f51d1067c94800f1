"""BN602: two kinds of batches that alternate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import number
from bnmonitor.measures import Independence, independence
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class AlternatingDomains(Rule):
    """Two kinds of batches alternate and share one set of running statistics.

    ## What it does
    At the layers that see the data, with no other layer before them, the rule looks for batches of which those two,
    three or four steps apart are much more alike than successive ones: in their means, or in the logs of their
    variances. Both are compared with what independent samples would give.

    ## Why is this bad?
    In training each batch is normalized by the statistics of its own kind. The running statistics average over both
    kinds and fit neither: in evaluation each kind is shifted by half of the distance between them. Examples of such
    kinds are source and target of a domain adaptation, labeled and unlabeled batches, and real and generated images.

    ## Example
    >>> from bnmonitor.testing import drawn_window
    >>> [finding] = AlternatingDomains().check(drawn_window(turns=2.0))
    >>> str(finding.severity)
    'warning'

    Batches that differ but do not alternate are left to BN601:

    >>> AlternatingDomains().check(drawn_window(spread=30.0))
    []

    ## Code
    Wrong::

        for real, fake in zip(real_loader, fake_loader):
            critic(real)
            critic(fake)

    Right::

        for real, fake in zip(real_loader, fake_loader):
            critic(torch.cat([real, fake]))

    ## What to do
    Give each kind statistics of its own (domain-specific batch normalization), or mix both kinds in every batch if the
    model should treat them alike. To evaluate one kind only, estimate the running statistics on that kind
    (:func:`bnmonitor.remedies.recalibrate`).

    ## Thresholds
    ``correlation = -.5``: batches of the same turn differ by at most half as much as successive ones; independent
    batches give 0, two alternating kinds -1.
    ``excess = 3`` times the variance of independent batches, the limit of BN601: in batches of 32, two domains
    measured about 10. ``least_share = .01`` as for BN601.

    ## Look-alikes
    Strong augmentation in every other batch makes two kinds as well. BN502 judges two kinds within one step, in two
    calls.

    ## References
    Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 5; Chang et al., Domain-specific batch normalization,
    2019; woozch/DSBN#10.
    """

    code: ClassVar[str] = "BN602"
    name: ClassVar[str] = "alternating-domains"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "samples", "dataflow"})
    confirm: ClassVar[int] = 10

    correlation: float = -0.5
    excess: float = 3.0
    least_share: float = 0.01

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with two alternating kinds of batches."""
        known = independence(window)
        beyond = (known.turns > known.chance.clamp(min=self.excess)) & (known.share > self.least_share)
        return [
            self._finding(window, layer, known)
            for layer in ((known.alternation < self.correlation) & beyond).nonzero().flatten().tolist()
        ]

    def _finding(self, window: Window, layer: int, known: Independence) -> Finding:
        what = "variances" if known.turns_by_variance[layer] == 1 else "means"
        return Finding(
            severity=Severity.WARNING,
            layer=layer,
            first_step=window.steps[int(known.since[layer])],
            value=float(known.alternation[layer]),
            threshold=self.correlation,
            message=f"batches of different kinds take turns: the {what} of successive batches differ by "
            f"{number(float(known.turns[layer]))} times what independent samples give, those of the same turn by "
            f"{number(-100 * float(known.alternation[layer]))} % less; the running statistics fit no kind",
            advice="give each kind its own statistics (domain-specific batch normalization), or mix both in each batch",
        )
