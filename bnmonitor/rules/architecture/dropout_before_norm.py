"""BN802: dropout in front of a normalization."""

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
"""Steps whose batches say what variance training has now."""


@dataclass(frozen=True, kw_only=True)
class DropoutBeforeNorm(Rule):
    """Dropout makes the variance that a layer learns in training larger than the one it meets in evaluation.

    ## What it does
    Flags layers with dropout upstream and nothing but linear operations between. Once a validation was seen, the
    variance measured there against the running variance decides how bad it is; where layers before it that
    no dropout reaches are off as well, that is put down to the data.

    ## Why is this bad?
    Dropout with probability ``p`` keeps the mean and adds variance: of a value with mean ``c`` and variance ``v`` it
    makes one with variance ``(c^2 + v) / (1 - p) - c^2``. The running variance learns that. In evaluation dropout is
    off, and the layer divides by too large a deviation: its output shrinks, and layer by layer the error adds up.

    ## Example
    >>> from bnmonitor.window import Operation
    >>> from bnmonitor.testing import make_structure, make_window
    >>> drop = Operation(kind="dropout", role="dropout", name="net.2")
    >>> behind = {"structure": make_structure(dropouts=(drop,), dropout=0.5)}
    >>> [finding] = DropoutBeforeNorm().check(make_window(facts=behind))
    >>> str(finding.severity)
    'info'

    Dropout behind the last layer is nobody's input and stays quiet:

    >>> DropoutBeforeNorm().check(make_window(facts={"structure": make_structure()}))
    []

    ## What to do
    Put dropout behind the last normalization, or lower its probability. Without a change of the network: estimate the
    running statistics again with dropout off (:func:`bnmonitor.remedies.recalibrate` on a model whose dropout layers
    are in evaluation mode).

    ## Thresholds
    ``warn_below = .8`` of the running variance: the output is a tenth too small. ``error_below = .5``: the ratio that
    dropout of one half in front of a value with mean 0 gives by the formula above. Not before the statistics are warm;
    and where the last batches of training are below the running variance too, only what is beyond that counts.

    ## Look-alikes
    Wide layers in front average much of it out: then the measured variance hardly differs, and it remains an info.
    Dropping whole residual branches (stochastic depth) is milder and is not flagged.

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
        """Find the layers with dropout in front, each with the ratio of variances that a validation measured."""
        structure = window.facts.structure
        places = structure.places if structure is not None else ()
        at = [i for i, place in enumerate(places) if _drops(place) and window.training[-1, i]]
        if not at:
            return []
        ratio = _left_of(window).tolist()
        return [self._finding(window, i, torch.nan if self._of_data(places, i, ratio) else ratio[i]) for i in at]

    def _of_data(self, places: tuple[Place, ...], layer: int, ratio: list[float]) -> bool:
        """Whether a layer upstream that dropout does not reach is off as well."""
        stack, seen = list(places[layer].predecessors), set()
        while stack:
            at = stack.pop()
            if at not in seen:
                seen.add(at)
                stack += places[at].predecessors
        return any(places[i].root and not places[i].dropouts and ratio[i] < self.warn_below for i in seen)

    def _finding(self, window: Window, layer: int, ratio: float) -> Finding:
        assert window.facts.structure is not None
        place = window.facts.structure.places[layer]
        severity, limit = Severity.INFO, self.warn_below
        if ratio < self.warn_below:
            severity = Severity.WARNING
        if ratio < self.error_below:
            severity, limit = Severity.ERROR, self.error_below
        measured = ratio == ratio
        seen = f": in validation its input has {number(ratio)} of the running variance" if measured else ""
        amount = f" of {number(place.dropout)}" if place.dropout else ""
        return Finding(
            severity=severity,
            layer=layer,
            first_step=window.steps[0],
            value=ratio if measured else place.dropout,
            threshold=limit if measured else 0.0,
            message=f"dropout{amount} ({place.dropouts[0]}) lies in front of it with only linear "
            f"operations between, and adds variance in training that evaluation does not have{seen}",
            advice="put dropout behind the last normalization, or lower its probability",
        )


def _drops(place: Place) -> bool:
    """Whether dropout that drops anything is upstream; of what has no module the probability is not known."""
    return bool(place.dropouts) and (place.dropout > 0 or any(not operation.name for operation in place.dropouts))


def _left_of(window: Window) -> Tensor:
    """Variance of each layer's input in validation over that in training, as far as its statistics are warm: ``[L]``.

    While the running variance still follows a fall, the batches of training are below it as well.
    """
    trained = median(mean_over_steps(window.batch_var[-RECENT:]) / window.running_var[-1], window)
    ratio = held_out_ratio(window) / trained.nan_to_num(1.0).clamp(0.0, 1.0)
    return ratio.where(warm(window)[-1], torch.nan)
