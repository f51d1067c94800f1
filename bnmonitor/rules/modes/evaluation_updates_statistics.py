"""BN406: running statistics that an evaluation updates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import count, number
from bnmonitor.limits import SEVERE_LAG_LOG_DEVIATION, SEVERE_LAG_MEAN
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import EVALUATIONS, PHASES, Window


@dataclass(frozen=True, kw_only=True)
class EvaluationUpdatesStatistics(Rule):
    """Validation, test, prediction or the sanity check updates the running statistics.

    ## What it does
    Compares the running statistics of each layer, and the number of their updates, before and after an evaluation.
    Flags the layers with running statistics that their own forwards updated. It is an error if the updates of the
    latest such evaluation have moved the statistics so far that evaluation is wrong.

    ## Why is this bad?
    The layer ran in training mode: its output depended on the batch, and the held-out data is now in the running
    statistics. ``torch.no_grad()`` does not stop the updates.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> leak = {"seen": {"validation": 6}, "latest": {"validation": 6}}
    >>> [finding] = EvaluationUpdatesStatistics().check(make_window(ledger=leak))
    >>> str(finding.severity), finding.value
    ('warning', 6.0)

    An evaluation without updates stays quiet, whatever happened in training:

    >>> EvaluationUpdatesStatistics().check(make_window(ledger={"seen": {"training": 6}}))
    []

    ## Code
    Wrong::

        with torch.no_grad():
            model(val_batch)  # in training mode

    Right::

        model.eval()
        with torch.no_grad():
            model(val_batch)
        model.train()

    ## What to do
    Call ``model.eval()`` before the evaluation. For Monte Carlo dropout, put only the dropout layers back into training
    mode. Look for a ``self.train()`` in the validation step, in a helper that probes shapes, or in a rollout.

    ## Thresholds
    It is a fact that the statistics change. It is an error from BN304's ``error_mean = .25`` standard deviations and
    ``error_log_deviation = .7`` in the middle channel: one update with garbage took an accuracy of .99 to .10, while
    many with data like those of training move the statistics by no more than their noise. ``forget_after = 3``: the
    alert stays until so many evaluations in a row were clean, or more of their kind than lay between the last
    two that were not; a habit is one alert.

    ## Look-alikes
    Estimating the running statistics again for new data (AdaBN, ``update_bn``) counts as intended if the counters are
    reset first, or if only the normalization layers are in training mode and the modules around them are not. Swapping
    weights for the evaluation, or loading a checkpoint in it, writes to the statistics without an update.

    ## References
    jurgisp/pydreamer#7; lightning-uq-box/lightning-uq-box#173; milesial/Pytorch-UNet#31; sbi-dev/sbi#785.
    """

    code: ClassVar[str] = "BN406"
    name: ClassVar[str] = "evaluation-updates-statistics"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger"})
    exact: ClassVar[bool] = True
    untrained: ClassVar[bool] = True

    error_mean: float = SEVERE_LAG_MEAN
    error_log_deviation: float = SEVERE_LAG_LOG_DEVIATION
    forget_after: int = 3

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that the latest evaluations updated."""
        ledger = window.ledger
        latest, total = ledger.latest[EVALUATIONS], ledger.seen[EVALUATIONS].sum(0)
        habit = (ledger.leaks > 0) & (ledger.clean < (ledger.gap + 1).clamp(min=self.forget_after))
        leaking = (latest > 0).any(0) | habit.any(0)
        if not leaking.any():
            return []
        share = total / (total + window.baseline.updates).clamp(min=1)
        mean, deviation = ledger.drift
        harm = (mean > self.error_mean) | (deviation > self.error_log_deviation)
        found = []
        for layer in leaking.nonzero().flatten().tolist():
            seen = ledger.seen[EVALUATIONS, layer].tolist()
            phases = [p for p, k in zip(PHASES[EVALUATIONS], seen, strict=True) if k > 0]
            moved = self._moved(float(mean[layer]), float(deviation[layer])) if harm[layer] else ""
            found.append(
                Finding(
                    severity=Severity.ERROR if harm[layer] else Severity.WARNING,
                    layer=layer,
                    first_step=window.steps[-1],
                    value=float(total[layer]),
                    threshold=0.0,
                    message=f"the running statistics are updated during {_named(phases)}: "
                    f"{count(int(total[layer]), 'update')} so far, {number(100 * float(share[layer]))} % of all{moved}",
                    advice="call model.eval() before the evaluation, and put only dropout back into training mode "
                    "where that is wanted; torch.no_grad() does not stop the updates",
                )
            )
        return found

    def _moved(self, mean: float, deviation: float) -> str:
        """How far an evaluation moved the statistics, by what is over its limit."""
        if deviation > self.error_log_deviation:
            return f"; the last moved the deviation of the middle channel by a factor of {number(math.exp(deviation))}"
        return f"; the last moved the mean of the middle channel by {number(mean)} standard deviations"


def _named(phases: list[str]) -> str:
    words = {"predict": "prediction", "sanity": "the sanity check"}
    return " and ".join(words.get(phase, phase) for phase in phases)
