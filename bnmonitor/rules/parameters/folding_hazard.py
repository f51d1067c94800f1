"""BN707: a layer that quantizes badly once it is folded into the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.measures import median, with_affine
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Moment, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class FoldingHazard(Rule):
    """The scales that a layer applies to its channels in evaluation differ too much for 8 bits.

    ## What it does
    At the end of training, compares each channel's ``abs(gamma) / sqrt(running_var + eps)`` with the median of its
    layer. Folding multiplies the weights of the operation before the layer by this factor. Most networks are never
    quantized: the rule warns in ``bnmonitor audit`` and of a model that is prepared for quantization, and else leaves a
    note.

    ## Why is this bad?
    Quantization with one scale for the whole tensor gives 127 steps to the largest weight. A channel with almost no
    variance is multiplied by up to ``gamma / sqrt(eps)``, 316 times gamma, and takes the steps of all other channels:
    this made MobileNet fall from 70 % to 2 %. Training and evaluation in floating point do not show the problem.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> flat = {"running_var": [1.0, 1.2, 0.9, 0.0]}
    >>> [finding] = FoldingHazard().check(make_window(**flat, facts={"quantized": True}))
    >>> str(finding.severity), finding.channels, round(finding.value)
    ('warning', (3,), 316)

    In another training it is a note:

    >>> [finding] = FoldingHazard().check(make_window(**flat))
    >>> str(finding.severity)
    'info'

    >>> FoldingHazard().check(make_window(running_var=[1.0, 4.0, 0.1]))
    []

    ## What to do
    Quantize per channel. Or, before folding, set gamma of the named channels to 0 and move their constant output into
    beta: a channel that does not vary is a constant. Cross-layer equalization helps for channels that do vary.

    ## Thresholds
    ``info_ratio = 20``: the median channel keeps 6 steps of 127. ``warn_ratio = 127``: it keeps one or none.

    ## Look-alikes
    A layer directly on the input cannot be folded into anything and is not judged. If you quantize per channel, or not
    at all, ignore the rule.

    ## References
    Sheng et al., A Quantization-Friendly Separable Convolution for MobileNets, 2018; Nagel et al., Data-Free
    Quantization, 2019; tensorflow/tensorflow#43882.
    """

    code: ClassVar[str] = "BN707"
    name: ClassVar[str] = "folding-hazard"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "affine"})
    moment: ClassVar[Moment] = "end"

    info_ratio: float = 20.0
    warn_ratio: float = 127.0

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with scales that differ too much."""
        scale = with_affine(window).gamma[-1].abs() / (window.running_var[-1] + window.layers.eps_by_channel).sqrt()
        ratio = scale / median(scale, window)[window.layers.owner]
        ratio = ratio.where(ratio.isfinite() & self._foldable(window)[window.layers.owner], 0.0)
        over = window.layers.segments.any(ratio > self.info_ratio)
        return [self._finding(window, layer, ratio) for layer in over.nonzero().flatten().tolist()]

    def _foldable(self, window: Window) -> Tensor:
        """Layers after an operation with weights, or with an unknown input: ``[L]`` bool."""
        structure = window.facts.structure
        places = structure.places if structure is not None else ()
        on_input = [not place.blind and place.distance == 0 and place.root for place in places]
        return ~torch.tensor(on_input or [False] * len(window.layers), dtype=torch.bool, device="cpu")

    def _finding(self, window: Window, layer: int, ratio: Tensor) -> Finding:
        value = ratio[window.layers.span(layer)].max().item()
        warn = value > self.warn_ratio
        limit = self.warn_ratio if warn else self.info_ratio
        channels = window.layers.locate(ratio > limit, layer)
        return Finding(
            severity=Severity.WARNING if warn and window.facts.quantized else Severity.INFO,
            layer=layer,
            channels=channels,
            first_step=window.steps[-1],
            value=value,
            threshold=limit,
            message=f"folding into the layer before would scale {count(len(channels), 'channel')} by up to "
            f"{number(value)} times the factor of the median channel, which keeps {int(127 / value)} of 127 steps in "
            "8 bits",
            advice="quantize per channel, or set gamma of these channels to 0 before folding",
        )
