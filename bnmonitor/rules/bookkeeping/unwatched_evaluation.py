"""BN512: an evaluation in which no watched layer ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import listing
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class UnwatchedEvaluation(Rule):
    """An evaluation ran none of the layers that are watched.

    ## What it does
    Looks at the layers that each validation, test and prediction has called. If it was none, something else was
    evaluated: an averaged copy of the weights, an exported model, another network.

    ## Why is this bad?
    It need not be. But all that bnmonitor says of evaluations (cold or stale statistics, a forgotten ``eval()``) is
    about layers that this evaluation did not use.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = UnwatchedEvaluation().check(make_window(ledger={"missed": {"validation": True}}))
    >>> str(finding.severity)
    'info'

    An evaluation of the watched layers stays quiet:

    >>> UnwatchedEvaluation().check(make_window(ledger={"evaluated": {"validation": True}}))
    []

    ## Code
    Wrong::

        monitor = Monitor(model)
        ...
        with monitor.evaluation():
            validate(average)  # nobody looks

    Right::

        monitor = Monitor({"model": model, "average": average})
        ...
        with monitor.evaluation():
            validate(average)

    ## What to do
    Pass what is evaluated as well, under a name of its own. In Lightning, assign it to an attribute of the module.

    ## Thresholds
    None: a layer was called or it was not.

    ## Look-alikes
    Under ``torch.compile``, or with ``sample_every_n_steps=0``, no call is seen, and the rule says nothing.

    ## References
    huggingface/pytorch-image-models#102; mosaicml/composer#624.
    """

    code: ClassVar[str] = "BN512"
    name: ClassVar[str] = "unwatched-evaluation"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[frozenset[str]] = frozenset({"ledger"})
    exact: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Report the kinds of evaluation of which the latest ran nothing that is watched."""
        phases = window.ledger.unwatched
        if not phases:
            return []
        return [
            Finding(
                severity=Severity.INFO,
                layer=None,
                first_step=window.steps[-1],
                value=float(len(phases)),
                threshold=0.0,
                message=f"no watched layer ran in the latest {listing(phases)}: what was evaluated is not watched, as "
                "a copy with averaged weights, or an exported model",
                advice="pass it as well, under a name of its own: Monitor({'model': model, 'average': average}); in "
                "Lightning, make it an attribute of the module",
            )
        ]
