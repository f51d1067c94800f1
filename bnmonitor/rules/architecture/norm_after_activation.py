"""BN801: normalization after the nonlinearity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import listing
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class NormAfterActivation(Rule):
    """A layer normalizes the output of a nonlinearity, instead of the input of one.

    ## What it does
    Flags the layers with an input that is the output of a nonlinearity; operations that only change the shape are
    skipped. One alert for the model, with severity info.

    ## Why is this bad?
    It may be bad, and it may not. Batch normalization was designed for the place before the nonlinearity. The sum that
    a convolution or a linear map computes is nearly symmetric and not sparse, so mean and variance describe most of it,
    and normalizing it keeps a sigmoid out of saturation and about half of the ReLUs open (Ioffe and Szegedy 2015). It
    also makes the bias before it redundant and folds into the weights. On the other hand, later measurements found
    normalization after a ReLU as good or slightly better for some networks (Mishkin et al. 2017; on CIFAR-10
    gcr/torch-residual-networks#5), because the next weights then get input with mean 0 and variance 1. Neither place is
    a mistake; both in one network often is.

    ## Example
    >>> from bnmonitor.window import Operation
    >>> from bnmonitor.testing import make_structure, make_window
    >>> relu = Operation(kind="relu", role="nonlinearity", name="net.1")
    >>> [finding] = NormAfterActivation().check(make_window(facts={"structure": make_structure(between=(relu,))}))
    >>> str(finding.severity), finding.layers
    ('info', (0,))

    A layer after a convolution or a pooling stays quiet:

    >>> pool = Operation(kind="maxpool2d", role="pooling")
    >>> NormAfterActivation().check(make_window(facts={"structure": make_structure(between=(relu, pool))}))
    []

    ## What to do
    Nothing, if it is intended. Otherwise put the layer between the convolution and its nonlinearity, and remove the
    bias of the convolution; train both variants, because the difference is small and depends on the network.

    ## Thresholds
    None: the place of a layer is a fact.

    ## Look-alikes
    Networks with normalization first in each block (ResNet v2, DenseNet) normalize sums and poolings, and the
    nonlinearity follows: they stay quiet. A layer that standardizes the input of the network stays quiet as well.

    ## References
    Ioffe and Szegedy, Batch Normalization, 2015; Mishkin et al., Systematic evaluation of CNN advances on the ImageNet,
    2017; He et al., Identity mappings in deep residual networks, 2016; srebuffi/iCaRL#5.
    """

    code: ClassVar[str] = "BN801"
    name: ClassVar[str] = "norm-after-activation"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[frozenset[str]] = frozenset({"dataflow"})

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with a nonlinearity as their input."""
        structure = window.facts.structure
        places = structure.places if structure is not None else ()
        at = {i: place.activation for i, place in enumerate(places) if place.activation is not None}
        if not at:
            return []
        kinds = listing(dict.fromkeys(operation.kind for operation in at.values()))
        return [
            Finding(
                severity=Severity.INFO,
                layer=min(at),
                layers=tuple(at),
                first_step=window.steps[0],
                value=float(len(at)),
                threshold=0.0,
                message=f"{len(at)} of {len(window.layers)} layers normalize the output of a nonlinearity "
                f"({kinds}): the method was designed for the place before it (Ioffe and Szegedy 2015), and later "
                "measurements found either place good",
                advice="put the normalization between the convolution and its nonlinearity, unless this is intended",
            )
        ]
