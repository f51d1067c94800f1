"""BN801: normalization behind the nonlinearity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import listing
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class NormAfterActivation(Rule):
    """A layer normalizes what comes straight from a nonlinearity, and not what goes into one.

    ## What it does
    Flags the layers whose input is the output of a nonlinearity, changes of shape looked through. One alert for the
    model, of severity info.

    ## Why is this bad?
    It may be, and it may not. Batch normalization was made for the place before the nonlinearity: the sum that a
    convolution or a linear map computes is nearly symmetric and not sparse, so that mean and variance say most of it,
    and what they say keeps a sigmoid out of saturation and about half of the ReLUs open (Ioffe and Szegedy 2015). It
    also makes the bias before it redundant and folds into the weights. On the other side, later measurements found
    normalizing after a ReLU as good or slightly better for some networks (Mishkin et al. 2017; on CIFAR-10
    gcr/torch-residual-networks#5), as the next weights then get input of mean 0 and variance 1. Neither place is a
    mistake; both in one network often is.

    ## Example
    >>> from bnmonitor.window import Operation
    >>> from bnmonitor.testing import make_structure, make_window
    >>> relu = Operation(kind="relu", role="nonlinearity", name="net.1")
    >>> [finding] = NormAfterActivation().check(make_window(facts={"structure": make_structure(between=(relu,))}))
    >>> str(finding.severity), finding.layers
    ('info', (0,))

    Behind a convolution, or a pooling, it is quiet:

    >>> pool = Operation(kind="maxpool2d", role="pooling")
    >>> NormAfterActivation().check(make_window(facts={"structure": make_structure(between=(relu, pool))}))
    []

    ## What to do
    Nothing, if it is meant. Else put the layer between the convolution and its nonlinearity, and leave out the
    convolution's bias; train both, as the difference is small and depends on the network.

    ## Thresholds
    None: the place is a fact.

    ## Look-alikes
    Networks with normalization first in each block (ResNet v2, DenseNet) normalize sums and poolings, and then comes
    the nonlinearity: they are quiet. A layer that standardizes the input of the network is quiet as well.

    ## References
    Ioffe and Szegedy, Batch Normalization, 2015; Mishkin et al., Systematic evaluation of CNN advances on the ImageNet,
    2017; He et al., Identity mappings in deep residual networks, 2016; srebuffi/iCaRL#5.
    """

    code: ClassVar[str] = "BN801"
    name: ClassVar[str] = "norm-after-activation"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[frozenset[str]] = frozenset({"dataflow"})

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that read a nonlinearity."""
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
                message=f"{len(at)} of {len(window.layers)} layers normalize what comes straight from a nonlinearity "
                f"({kinds}): the method was made for the place before it (Ioffe and Szegedy 2015), later measurements "
                "found either place good",
                advice="if it is not meant, put the normalization between the convolution and its nonlinearity",
            )
        ]
