"""BN602: two kinds of batches that take turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import number
from bnmonitor.measures import independence
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class AlternatingDomains(Rule):
    """Two kinds of batches take turns, and share one set of running statistics.

    ## What it does
    At the layers that see the data, with no other layer before them, it looks for batch means that go up and down from
    step to step, by far more than independent samples would.

    ## Why is this bad?
    In training each batch is normalized by the statistics of its own kind. The running statistics average over both,
    and fit neither: in evaluation each kind is shifted by half of what lies between them. Sources and targets of
    domain adaptation, labeled and unlabeled batches, real and generated images are such kinds.

    ## Example
    >>> from bnmonitor.testing import drawn_window
    >>> [finding] = AlternatingDomains().check(drawn_window(turns=2.0))
    >>> str(finding.severity)
    'warning'

    Batches that differ without taking turns are for BN601:

    >>> AlternatingDomains().check(drawn_window(spread=30.0))
    []

    ## What to do
    A layer of statistics for each kind (domain-specific batch normalization), or both kinds in every batch if they
    are to be treated alike. For one kind in evaluation, estimate the running statistics on that kind alone
    (:func:`bnmonitor.remedies.recalibrate`).

    ## Thresholds
    ``correlation = -.5`` between successive batch means (independent ones: 0, turns of two: -1) and ``excess = 3``
    times the variance of independent batch means, the limit of BN601: in batches of 32, two domains measured around 10.
    ``least_share = .01`` as for BN601.

    ## Look-alikes
    Augmentation that is strong in every other batch is two kinds as well. Two kinds in one step, by two calls, are for
    BN502.

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
        """Find the layers whose batches take turns."""
        known = independence(window)
        turns = (known.alternation < self.correlation) & known.beyond(self.excess, self.least_share)
        return [
            Finding(
                severity=Severity.WARNING,
                layer=layer,
                first_step=window.steps[int(known.since[layer])],
                value=float(known.alternation[layer]),
                threshold=self.correlation,
                message="two kinds of batches take turns: the means of successive batches have a correlation of "
                f"{number(float(known.alternation[layer]))}, and vary {number(float(known.excess[layer]))} times as "
                "much as independent samples would; the running statistics fit neither kind",
                advice="give each kind its own statistics (domain-specific batch normalization), or mix both in each "
                "batch",
            )
            for layer in turns.nonzero().flatten().tolist()
        ]
