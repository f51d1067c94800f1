"""What a cause is: which alert speaks for it, what follows from it, and how it is described."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Alert, Incident, Severity
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a cause is judged by.

    Attributes:
        evidence: The alerts of one incident in causal order, the one that leads it first.
        window: The steps that were judged last; None if there are none, as before the first step.
        was: The incident as it was before; None when it opens.
        lost: Whether the training was lost when the incident was last looked at: see :func:`is_lost`.
    """

    evidence: tuple[Alert, ...]
    window: Window | None = None
    was: Incident | None = None
    lost: bool = False

    @property
    def lead(self) -> Alert:
        """The alert that the incident is about."""
        return self.evidence[0]

    @property
    def severity(self) -> Severity:
        """The worst severity of the alerts."""
        return max(alert.severity for alert in self.evidence)


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A root cause. A cause has no state: it reads a :class:`Case`, and describes it.

    The base class is the cause of an alert that no other cause claims: the rule's own finding.

    Class attributes:
        name: ``learning-rate-too-high``; public, never changes its meaning. Empty: the name of the leading rule.
        leads: Codes of the rules whose alerts speak for this cause, the one that says most first.
        explains: Codes, or beginnings of codes, of the rules whose alerts follow from it.
        everywhere: Whether it acts on every layer; if not, on the layers that its alerts name and on those after them.
        belated: Whether its evidence comes later than its consequences, because it needs an evaluation or many steps.
    """

    name: ClassVar[str] = ""
    leads: ClassVar[tuple[str, ...]] = ()
    explains: ClassVar[frozenset[str]] = frozenset()
    everywhere: ClassVar[bool] = False
    belated: ClassVar[bool] = False

    def fits(self, case: Case) -> bool:
        """Return whether the evidence beside the leading alert speaks for the cause."""
        return True

    def name_of(self, case: Case) -> str:
        """Return the name of the cause."""
        return self.name or case.lead.rule

    def title(self, case: Case) -> str:
        """Name the cause in one plain sentence."""
        return TITLES.get(case.lead.code, f"{case.lead.code} {case.lead.rule}")

    def detail(self, case: Case) -> str:
        """Give the numbers that show it."""
        return case.lead.message

    def advice(self, case: Case) -> str:
        """Give one concrete fix."""
        return case.lead.advice

    def severity(self, case: Case) -> Severity:
        """Return how bad it is now."""
        return case.severity

    def lasts(self, case: Case) -> bool:
        """Return whether the consequences last although no alert is open any more."""
        return False


def matches(code: str, codes: Sequence[str] | frozenset[str]) -> bool:
    """Return whether a code is among codes and beginnings of codes.

    >>> matches("BN304", ("BN1", "BN30")), matches("BN304", ("BN305",))
    (True, False)
    """
    return any(code.startswith(each) for each in codes)


def reads_the_input(window: Window, layer: str | None) -> bool:
    """Return whether no other normalization lies between the network's input and a layer, as far as is known."""
    names, structure = window.layers.names, window.facts.structure
    if layer not in names or structure is None or len(structure.places) != len(names):
        return False
    return structure.places[names.index(layer)].root


def is_lost(window: Window | None) -> bool:
    """Return whether nothing that happens now says anything new: the loss or most running variances are not finite."""
    if window is None:
        return False
    newest = window.facts.known_losses[-3:]
    if newest and not any(map(math.isfinite, newest)):
        return True
    tracked = window.running_var[-1][~window.running_var[0].isnan()] if len(window) > 1 else window.running_var[-1]
    return bool(tracked.numel()) and float((~tracked.isfinite()).double().mean()) > 0.5


TITLES = {
    "BN001": "a rule of bnmonitor failed",
    "BN002": "a sink of bnmonitor failed",
    "BN003": "the training went back to an earlier state",
    "BN101": "running statistics are NaN or infinite",
    "BN102": "a skipped optimizer step left its batch in the running statistics",
    "BN103": "activations are near the limit of half precision",
    "BN104": "running statistics in half precision lose their updates",
    "BN105": "channels no longer vary",
    "BN106": "the batch variance exploded",
    "BN107": "the batch mean ran away",
    "BN108": "the input is not normalized",
    "BN109": "running statistics are larger than any trained network has",
    "BN201": "the batch is too small",
    "BN202": "a layer normalizes too few values",
    "BN203": "the last batch of an epoch is too small",
    "BN204": "accumulating gradients does not enlarge the batch that is normalized",
    "BN205": "each process normalizes a batch that is too small",
    "BN206": "evaluation shrinks the output of a chain of layers",
    "BN301": "momentum is too large",
    "BN302": "momentum does not average",
    "BN303": "evaluated before the running statistics are warm",
    "BN304": "running statistics lag behind the batches",
    "BN305": "evaluation mode computes something else than training mode",
    "BN306": "running statistics are written by other code",
    "BN401": "a layer that is trained runs in evaluation mode",
    "BN402": "frozen layers still update their running statistics",
    "BN403": "training uses batch statistics, evaluation uses old running statistics",
    "BN404": "the running statistics are still the initial 0 and 1",
    "BN405": "unfreezing moved a layer away from its running statistics",
    "BN406": "evaluation updates the running statistics",
    "BN407": "a network that is not trained updates its running statistics",
    "BN408": "evaluation depends on the other samples of the batch",
    "BN501": "activation checkpointing updates the running statistics twice",
    "BN502": "one layer gets inputs of different distributions",
    "BN503": "the processes have different running statistics",
    "BN504": "the conversion to SyncBatchNorm drops a layer's own forward",
    "BN505": "averaged weights are evaluated with statistics of other weights",
    "BN506": "a layer is never called",
    "BN507": "a BatchNorm is not registered in the model",
    "BN508": "forwards that train nothing update the running statistics",
    "BN509": "one layer normalizes at several places of the network",
    "BN510": "a normalization of the model is not watched",
    "BN511": "a compiled evaluation uses the weights of its first call",
    "BN512": "an evaluation ran nothing that is watched",
    "BN601": "the samples of a batch are not independent",
    "BN602": "two kinds of batches take turns",
    "BN603": "validation data differ from training data",
    "BN604": "padding enters the statistics",
    "BN605": "the batch statistics depend on the path through the network",
    "BN606": "one batch of data is far from all others",
    "BN701": "channels are dead",
    "BN702": "gamma of some channels ran away",
    "BN703": "weight decay acts on gamma and beta",
    "BN704": "the learning rate is too high",
    "BN705": "the learning rate is too low",
    "BN706": "gradients grow from layer to layer",
    "BN707": "some channels are scaled far more than the others",
    "BN708": "channels of a layer are copies of each other",
    "BN801": "a layer normalizes after the nonlinearity",
    "BN802": "dropout stands before a normalization",
    "BN803": "a bias before the normalization has no effect",
    "BN804": "BatchNorm1d normalizes the wrong axis",
    "BN805": "a gradient penalty goes through BatchNorm",
    "BN806": "a convolution has no normalization",
}
"""What each rule finds, in a few words: the title of an incident that no other cause claims."""
