"""BN803: a bias that the normalization takes away again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import count, listing
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Place, Producer, Window


@dataclass(frozen=True, kw_only=True)
class RedundantBias(Rule):
    """The convolution or linear map before a layer trains a bias that subtracting the mean removes.

    ## What it does
    Flags layers that normalize by their batch and are fed by an operation whose bias is trained, with nothing between
    that tells one position from another, as many channels as the layer has, and nothing else that reads it. One alert
    for the model.

    ## Why is this bad?
    It is not bad, it is useless: the bias has no effect on the output in training, gets no gradient but rounding noise,
    and is weight-decayed or moved about by it. Beta does what it was for. It costs memory, time and optimizer state.

    ## Example
    >>> from bnmonitor.window import Producer
    >>> from bnmonitor.testing import make_structure, make_window
    >>> conv = Producer(kind="convolution", role="weights", name="conv", features=3, bias=True)
    >>> [finding] = RedundantBias().check(make_window(facts={"structure": make_structure(producers=(conv,))}))
    >>> str(finding.severity), finding.message
    ('info', 'the bias of 1 operation before a normalization has no effect: conv')

    In front of a frozen layer the bias does something:

    >>> RedundantBias().check(make_window(training=False, facts={"structure": make_structure(producers=(conv,))}))
    []

    ## What to do
    ``bias=False`` in the convolutions and linear maps that are named.

    ## Thresholds
    None: it follows from the structure.

    ## Look-alikes
    A layer in evaluation mode, a frozen bias, a bias that another branch reads too, and one with a value for each
    position (a linear map that is reshaped into an image) are left alone.

    ## References
    Ioffe and Szegedy, Batch Normalization, 2015, section 3.2; milesial/Pytorch-UNet#325.
    """

    code: ClassVar[str] = "BN803"
    name: ClassVar[str] = "redundant-bias"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[frozenset[str]] = frozenset({"dataflow"})

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that are fed by an operation with a bias."""
        structure = window.facts.structure
        places = structure.places if structure is not None else ()
        sizes, training = window.layers.channels, window.training[-1].tolist()
        found = {i: fed for i, p in enumerate(places) if training[i] and (fed := _redundant(p, sizes[i]))}
        if not found:
            return []
        names = [producer.name or "?" for fed in found.values() for producer in fed]
        return [
            Finding(
                severity=Severity.INFO,
                layer=min(found),
                layers=tuple(found),
                first_step=window.steps[0],
                value=float(len(names)),
                threshold=0.0,
                message=f"the bias of {count(len(names), 'operation')} before a normalization has no effect: "
                + listing(names),
                advice="create them with bias=False; beta does what the bias was for",
            )
        ]


def _redundant(place: Place, channels: int) -> list[Producer]:
    """What feeds a layer with a bias to no effect."""
    # What lies between is known of the first place where the layer is called.
    if len(place.producers) > 1 or any(operation.role not in ("shape", "pooling") for operation in place.between):
        return []
    return [p for p in place.producers if p.bias and not p.shared and not p.features_last and p.features == channels]
