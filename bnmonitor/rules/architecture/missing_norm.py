"""BN806: a convolution that was left without its normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import count, listing
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class MissingNorm(Rule):
    """A convolution goes straight into its nonlinearity, in a network where most others are normalized first.

    ## What it does
    Counts the convolutions that a normalization follows, and those that a nonlinearity follows with none between. Where
    the first are the most, the second are named: one alert, with the paths of the convolutions.

    ## Why is this bad?
    It may be meant. Else a layer was forgotten, or lost in a conversion: the scale of what comes out of the convolution
    is not held, and the learning rate that suits the rest of the network may be too high for it.

    ## Example
    >>> from bnmonitor.window import Bare
    >>> from bnmonitor.testing import make_structure, make_window
    >>> bare = Bare(name="body.4.conv", nonlinearity="relu", first=False, near=0)
    >>> most = {"structure": make_structure(bare=(bare,), normalized=8)}
    >>> [finding] = MissingNorm().check(make_window(facts=most))
    >>> str(finding.severity), finding.modules
    ('info', ('body.4.conv',))

    Where few convolutions are normalized, nothing is missing:

    >>> MissingNorm().check(make_window(facts={"structure": make_structure(bare=(bare,) * 8, normalized=2)}))
    []

    ## What to do
    Put a BatchNorm between the convolution and its nonlinearity, or leave it if the network is meant so.

    ## Thresholds
    ``most = .5``: the share of normalized convolutions must be larger; ``least = 2`` of them.

    ## Look-alikes
    Squeeze-and-excite gates and heads behind a global pooling, and convolutions that end in a sigmoid, tanh or softmax,
    need none. The first convolution of a discriminator goes without by design: one on the input that a LeakyReLU
    follows is left alone (Radford et al. 2015).

    ## References
    Radford et al., Unsupervised representation learning with deep convolutional GANs, 2015.
    """

    code: ClassVar[str] = "BN806"
    name: ClassVar[str] = "missing-norm"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[frozenset[str]] = frozenset({"dataflow"})

    most: float = 0.5
    least: int = 2

    def check(self, window: Window) -> list[Finding]:
        """Find the convolutions without a normalization, if most have one."""
        structure = window.facts.structure
        if structure is None or structure.normalized < self.least:
            return []
        bare = [b for b in structure.bare if b.name and not (b.first and b.nonlinearity == "leakyrelu")]
        share = structure.normalized / (structure.normalized + len(bare))
        if not bare or share <= self.most:
            return []
        names = tuple(b.name for b in bare)
        return [
            Finding(
                severity=Severity.INFO,
                layer=bare[0].near,
                layers=tuple(dict.fromkeys(b.near for b in bare)),
                modules=names,
                first_step=window.steps[0],
                value=float(len(bare)),
                threshold=0.0,
                message=f"{count(len(bare), 'convolution')} without a normalization before the nonlinearity, where "
                f"{structure.normalized} have one: {listing(names)}",
                advice="put a BatchNorm between the convolution and its nonlinearity, unless it is meant so",
            )
        ]
