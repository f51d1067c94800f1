"""BN806: a convolution without a normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import count, listing
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class MissingNorm(Rule):
    """A convolution feeds its nonlinearity directly, in a network that normalizes most other convolutions first.

    ## What it does
    Counts the convolutions that a normalization follows, and those that a nonlinearity follows without a normalization
    between. If the first kind is the majority, the rule names the convolutions of the second kind in one alert, by
    their paths.

    ## Why is this bad?
    It may be intended. Otherwise a layer was forgotten, or a conversion lost it: nothing controls the scale of the
    convolution's output, and the learning rate that suits the rest of the network may be too high for it.

    ## Example
    >>> from bnmonitor.window import Bare
    >>> from bnmonitor.testing import make_structure, make_window
    >>> bare = Bare(name="body.4.conv", nonlinearity="relu", first=False, near=0)
    >>> most = {"structure": make_structure(bare=(bare,), normalized=8)}
    >>> [finding] = MissingNorm().check(make_window(facts=most))
    >>> str(finding.severity), finding.modules
    ('info', ('body.4.conv',))

    Where few convolutions are normalized, the rule stays quiet:

    >>> MissingNorm().check(make_window(facts={"structure": make_structure(bare=(bare,) * 8, normalized=2)}))
    []

    ## What to do
    Put a BatchNorm between the convolution and its nonlinearity, or leave the network as it is if that is intended.

    ## Thresholds
    ``most = .5``: the share of normalized convolutions must be larger than this; ``least = 2``: there must be at least
    this many of them.

    ## Look-alikes
    Squeeze-and-excite gates and heads after a global pooling, and convolutions that end in a sigmoid, tanh or softmax,
    need no normalization. The first convolution of a discriminator has none by design, so a convolution on the
    network's input that a LeakyReLU follows is not flagged (Radford et al. 2015).

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
                message=f"{count(len(bare), 'convolution')} without a normalization before the nonlinearity, while "
                f"{structure.normalized} have one: {listing(names)}",
                advice="put a BatchNorm between the convolution and its nonlinearity, unless this is intended",
            )
        ]
