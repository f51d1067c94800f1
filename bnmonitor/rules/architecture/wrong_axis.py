"""BN804: positions normalized where features were meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class WrongAxis(Rule):
    """BatchNorm1d got ``[N, L, C]``: it takes the positions of the sequence for channels.

    ## What it does
    Looks at layers with an input of three axes that is fed by a linear map, an embedding, a LayerNorm or a recurrent
    network whose features are the last axis, and that were not transposed on the way.

    ## Why is this bad?
    ``BatchNorm1d`` normalizes the second axis. If the length of the sequence happens to be ``num_features``, it runs
    without a complaint: each position is normalized over all features, the features keep their differences, and another
    length fails.

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

    ## What to do
    ``bn(x.transpose(1, 2)).transpose(1, 2)`` with ``num_features`` the number of features; or LayerNorm, which
    normalizes the last axis.

    ## Thresholds
    None: the axes are a fact.

    ## Look-alikes
    Convolutions put their channels on the second axis. A linear map over time, as in an MLP-Mixer, whose input was
    transposed for it, is meant to have the positions last.

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
                        message=f"it takes the {positions} positions of a sequence for channels: its input is "
                        f"[N, {positions}, {features}], and {producer} puts its {features} features last",
                        advice=f"transpose(1, 2) before and after it, with num_features={features}; or use LayerNorm",
                    )
                )
        return found
