"""BN802: dropout before a normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import number
from bnmonitor.measures import held_out_ratio, mean_over_steps, median, warm
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Place, Window

RECENT = 8
"""Number of latest steps that give the present variance in training."""


@dataclass(frozen=True, kw_only=True)
class DropoutBeforeNorm(Rule):
    """Dropout before a layer makes the variance in training larger than the variance in evaluation.

    ## What it does
    Flags layers with dropout upstream and only linear operations between. Once a validation has run, the ratio of the
    variance measured there to the running variance decides the severity. If layers upstream that no dropout reaches are
    off as well, the rule attributes as much to the data, and only what goes beyond it counts.

    ## Why is this bad?
    Dropout with probability ``p`` keeps the mean and adds variance: a value with mean ``c`` and variance ``v`` gets the
    variance ``(c^2 + v) / (1 - p) - c^2``. The running variance learns this larger value. In evaluation dropout is off,
    so the layer divides by a standard deviation that is too large. Its output shrinks, and the error adds up layer by
    layer.

    ## Example
    >>> from bnmonitor.window import Operation
    >>> from bnmonitor.testing import make_structure, make_window
    >>> drop = Operation(kind="dropout", role="dropout", name="net.2")
    >>> behind = {"structure": make_structure(dropouts=(drop,), dropout=0.5)}
    >>> [finding] = DropoutBeforeNorm().check(make_window(facts=behind))
    >>> str(finding.severity)
    'info'

    Dropout after the last layer feeds no normalization and stays quiet:

    >>> DropoutBeforeNorm().check(make_window(facts={"structure": make_structure()}))
    []

    ## What to do
    Put dropout after the last normalization, or lower its probability. To keep the network as it is, estimate the
    running statistics again with dropout off (:func:`bnmonitor.remedies.recalibrate` on a model that has its dropout
    layers in evaluation mode).

    ## Thresholds
    ``warn_below = .8`` of the running variance: the output is a tenth too small. ``error_below = .5``: the ratio that
    dropout of one half before a value with mean 0 gives by the formula above. The ratio is judged only after the
    statistics are warm. If the last batches of training are below the running variance too, only the difference beyond
    that counts.

    ## Look-alikes
    Wide layers between the dropout and the normalization average much of it out: then the measured variance hardly
    differs, and the alert stays an info. Dropping whole residual branches (stochastic depth) has a smaller effect and
    is not flagged.

    ## References
    Li et al., Understanding the disharmony between dropout and batch normalization by variance shift, 2019;
    luigibonati/mlcolvar#205; keras-team/keras#11927.
    """

    code: ClassVar[str] = "BN802"
    name: ClassVar[str] = "dropout-before-norm"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"dataflow"})

    warn_below: float = 0.8
    error_below: float = 0.5

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with dropout before them, each with the ratio of variances that a validation measured."""
        structure = window.facts.structure
        places = structure.places if structure is not None else ()
        at = [i for i, place in enumerate(places) if _drops(place) and window.training[-1, i]]
        if not at:
            return []
        ratio = _variance_ratio(window).tolist()
        return [self._finding(window, i, ratio[i], self._of_data(places, i, ratio)) for i in at]

    def _of_data(self, places: tuple[Place, ...], layer: int, ratio: list[float]) -> float:
        """The ratio of an upstream layer that no dropout reaches, if it is off as well; else 1."""
        stack, seen = list(places[layer].predecessors), set()
        while stack:
            at = stack.pop()
            if at not in seen:
                seen.add(at)
                stack += places[at].predecessors
        roots = (ratio[i] for i in seen if places[i].root and not places[i].dropouts)
        return min([1.0, *(r for r in roots if 0 < r < self.warn_below)])

    def _finding(self, window: Window, layer: int, found: float, of_data: float) -> Finding:
        assert window.facts.structure is not None
        place = window.facts.structure.places[layer]
        severity, limit, ratio = Severity.INFO, self.warn_below, found / of_data
        if ratio < self.warn_below:
            severity = Severity.WARNING
        if ratio < self.error_below:
            severity, limit = Severity.ERROR, self.error_below
        measured = ratio == ratio
        seen = f"; in validation the input has {number(found)} times the running variance" if measured else ""
        if measured and of_data < 1:
            seen += f", of which the data explains {number(of_data)}"
        amount = f" of {number(place.dropout)}" if place.dropout else ""
        return Finding(
            severity=severity,
            layer=layer,
            first_step=window.steps[0],
            value=ratio if measured else place.dropout,
            threshold=limit if measured else 0.0,
            message=f"dropout{amount} ({place.dropouts[0]}) comes before the layer with only linear operations "
            f"between, and adds variance in training that evaluation does not have{seen}",
            advice="put dropout after the last normalization, or lower its probability",
        )


def _drops(place: Place) -> bool:
    """Whether dropout that can drop values is upstream; the probability of a functional dropout is unknown."""
    return bool(place.dropouts) and (place.dropout > 0 or any(not operation.name for operation in place.dropouts))


def _variance_ratio(window: Window) -> Tensor:
    """Input variance of each layer in validation over that in training: ``[L]``; NaN before its statistics are warm.

    While the running variance still follows a decrease, the batches of training are below it as well.
    """
    trained = median(mean_over_steps(window.batch_var[-RECENT:]) / window.running_var[-1], window)
    ratio = held_out_ratio(window) / trained.nan_to_num(1.0).clamp(0.0, 1.0)
    return ratio.where(warm(window)[-1], torch.nan)
