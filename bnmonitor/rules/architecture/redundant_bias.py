"""BN803: a bias that the normalization cancels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import count, listing
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Place, Producer, Window


@dataclass(frozen=True, kw_only=True)
class RedundantBias(Rule):
    """The convolution or linear map before a layer trains a bias that the layer cancels by subtracting the mean.

    ## What it does
    Flags layers that normalize by their batch and take their input from an operation with a trained bias. Nothing
    between the two may treat positions differently, the operation must have as many channels as the layer, and nothing
    else may read its output. One alert for the model.

    ## Why is this bad?
    It is not harmful, it is useless: the bias has no effect on the output in training and gets no gradient except
    rounding noise, and weight decay or that noise moves it without effect. Beta does its job. The bias costs memory,
    time and optimizer state.

    ## Example
    >>> from bnmonitor.window import Producer
    >>> from bnmonitor.testing import make_structure, make_window
    >>> conv = Producer(kind="convolution", role="weights", name="conv", features=3, bias=True)
    >>> [finding] = RedundantBias().check(make_window(facts={"structure": make_structure(producers=(conv,))}))
    >>> str(finding.severity), finding.message
    ('info', 'the bias of 1 operation before a normalization has no effect: conv')

    Before a frozen layer the bias has an effect:

    >>> RedundantBias().check(make_window(training=False, facts={"structure": make_structure(producers=(conv,))}))
    []

    ## Code
    Wrong::

        nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64))

    Right::

        nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64))

    ## What to do
    Set ``bias=False`` in the named convolutions and linear maps.

    ## Thresholds
    None: this follows from the structure.

    ## Look-alikes
    The rule does not flag a layer in evaluation mode, a frozen bias, a bias that another branch reads too, or a bias
    with one value per position (a linear map that is reshaped into an image).

    ## References
    Ioffe and Szegedy, Batch Normalization, 2015, section 3.2; milesial/Pytorch-UNet#325.
    """

    code: ClassVar[str] = "BN803"
    name: ClassVar[str] = "redundant-bias"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[frozenset[str]] = frozenset({"dataflow"})

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that take their input from an operation with a useless bias."""
        structure = window.facts.structure
        if structure is None or not structure.behind_bias:
            return []
        places, sizes, training = structure.places, window.layers.channels, window.training[-1].tolist()
        found = {i: fed for i in structure.behind_bias if training[i] and (fed := _redundant(places[i], sizes[i]))}
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
                advice="create these operations with bias=False; beta replaces the bias",
            )
        ]


def _redundant(place: Place, channels: int) -> list[Producer]:
    """Operations that feed a layer and have a bias without effect."""
    # The operations between are those of the layer's first call.
    if len(place.producers) > 1 or any(operation.role not in ("shape", "pooling") for operation in place.between):
        return []
    return [p for p in place.producers if p.bias and not p.shared and not p.features_last and p.features == channels]
