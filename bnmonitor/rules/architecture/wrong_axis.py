"""BN804: positions normalized instead of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class WrongAxis(Rule):
    """BatchNorm1d received ``[N, L, C]`` and treats the positions of the sequence as channels.

    ## What it does
    Looks at layers with an input of three axes that comes from a linear map, an embedding, a LayerNorm or a recurrent
    network with its features on the last axis, without a transposition on the way.

    ## Why is this bad?
    ``BatchNorm1d`` normalizes the second axis. If the length of the sequence happens to equal ``num_features``, it
    raises no error: each position is normalized over all features, the differences between features stay, and a
    sequence of another length fails.

    ## Example
    >>> from bnmonitor.window import Producer
    >>> from bnmonitor.testing import make_structure, make_window
    >>> linear = Producer(kind="linear", role="weights", name="fc", features=32, features_last=True)
    >>> wrong = {"structure": make_structure(shape=(8, 3, 32), producers=(linear,))}
    >>> [finding] = WrongAxis().check(make_window(facts=wrong))
    >>> str(finding.severity), finding.layer
    ('warning', 0)

    Features on the second axis are right:

    >>> right = Producer(kind="linear", role="weights", name="fc", features=3)
    >>> WrongAxis().check(make_window(facts={"structure": make_structure(shape=(8, 3, 32), producers=(right,))}))
    []

    ## Code
    Wrong::

        nn.BatchNorm1d(length)(x)  # x is [N, length, features]: each position is normalized

    Right::

        nn.BatchNorm1d(features)(x.transpose(1, 2)).transpose(1, 2)

    ## What to do
    Call ``bn(x.transpose(1, 2)).transpose(1, 2)`` with ``num_features`` set to the number of features, or use
    LayerNorm, which normalizes the last axis.

    ## Thresholds
    None: the order of the axes is a fact.

    ## Look-alikes
    Convolutions put their channels on the second axis. A linear map over time on a transposed input, as in an
    MLP-Mixer, is meant to have the positions last.

    ## References
    xieyulai/LSTM-for-Human-Activity-Recognition-using-2D-Pose_Pytorch#2; pytorch/pytorch#76613.
    """

    code: ClassVar[str] = "BN804"
    name: ClassVar[str] = "wrong-axis"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"dataflow"})

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that normalize positions."""
        structure = window.facts.structure
        found = []
        for layer, place in enumerate(structure.places if structure is not None else ()):
            producer = next((p for p in place.producers if p.features_last), None)
            if producer is not None:
                positions, features = window.layers.channels[layer], producer.features
                found.append(
                    Finding(
                        severity=Severity.WARNING,
                        layer=layer,
                        first_step=window.steps[0],
                        value=float(positions),
                        threshold=float(features),
                        message=f"the layer treats the {positions} positions of a sequence as channels: its input is "
                        f"[N, {positions}, {features}], and {producer} puts its {features} features last",
                        advice=f"apply transpose(1, 2) before and after the layer, with num_features={features}; or "
                        "use LayerNorm",
                    )
                )
        return found
