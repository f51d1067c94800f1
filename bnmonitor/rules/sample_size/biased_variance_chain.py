"""BN206: a small difference between training and evaluation that multiplies along a chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import count, number
from bnmonitor.measures import normalizing, processes
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class BiasedVarianceChain(Rule):
    """Each layer of a chain shrinks its output a little in evaluation, and together that is a lot.

    ## What it does
    Multiplies ``sqrt((n - 1) / n)`` over the layers of each chain without a skip connection; n is the number of values
    per channel that a layer normalizes together. Judges the chain with the smallest product.

    ## Why is this bad?
    PyTorch normalizes a batch with its biased variance and keeps the unbiased one for evaluation, which is
    ``n / (n - 1)`` times as large. In evaluation the output of a layer is smaller by the root of that factor; the next
    layer expects the size it saw in training and shrinks it again. Measured on 20 layers: .86 of the output is left at
    n = 64, .53 at 16, .06 at 4.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = BiasedVarianceChain().check(make_window(channels=(2,) * 20, sizes=64, chain=True))
    >>> str(finding.severity), round(finding.value, 3)
    ('warning', 0.854)

    The same chain with convolutions on images, where n is in the thousands, stays quiet:

    >>> BiasedVarianceChain().check(make_window(channels=(2,) * 20, sizes=64, values=64 * 49, chain=True))
    []

    ## What to do
    Use a larger batch, ``LayerNorm`` in a deep perceptron, or skip connections, which end a chain. In a trained model,
    ``running_var.mul_((n - 1) / n)`` in each layer of the chain makes evaluation equal to training.

    ## Thresholds
    ``warn_below = .95`` and ``error_below = .8`` of the output: this is exact algebra, not an estimate.
    ``least_layers = 5`` in the chain: a shorter chain gets there, or nearly, only with a batch so small that BN201
    reports it. A warning needs ``least_layers_mild = 8``: torchvision's MobileNetV2, MobileNetV3 and MNASNet have six
    layers in a row that see one position of each 32x32 image, which leaves .92 of the output in batches of 32, and
    classify in evaluation as they do in training.

    ## Look-alikes
    A frozen layer is the same in both modes and does not count. In residual networks each addition ends a chain.

    ## References
    pytorch/pytorch#100048, #3122, #19902, #19916.
    """

    code: ClassVar[str] = "BN206"
    name: ClassVar[str] = "biased-variance-chain"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "dataflow"})
    exact: ClassVar[bool] = True

    warn_below: float = 0.95
    error_below: float = 0.8
    least_layers: int = 5
    least_layers_mild: int = 8

    def check(self, window: Window) -> list[Finding]:
        """Judge the chain that shrinks most."""
        structure = window.facts.structure
        if structure is None or len(structure.places) != len(window.layers):
            return []
        values = window.baseline.values * processes(window)
        counts = normalizing(window) & (values > 1)
        logs = torch.where(counts, 0.5 * torch.log1p(-1 / values.clamp(min=1.5)), 0.0)
        # No chain shrinks more than all layers together.
        if float(logs.double().sum().exp()) > (1 + 1e-6) * self.warn_below:
            return []
        log, counted = logs.tolist(), counts.tolist()
        members = [tuple(i for i in chain if counted[i]) for chain in structure.chains]
        shrunk = {layers: sum(log[i] for i in layers) for layers in members if len(layers) >= self.least_layers}
        if not shrunk:
            return []
        layers = min(shrunk, key=lambda chain: shrunk[chain])
        left = float(torch.tensor(shrunk[layers], device="cpu").exp())
        error = left < self.error_below
        if not left < self.warn_below or not (error or len(layers) >= self.least_layers_mild):
            return []
        limit = self.error_below if error else self.warn_below
        least = float(values[list(layers)].min())
        return [
            Finding(
                severity=Severity.ERROR if error else Severity.WARNING,
                layer=min(layers),
                layers=tuple(sorted(layers)),
                first_step=window.steps[0],
                value=left,
                threshold=limit,
                message=f"after {count(len(layers), 'layer')} in a row without a skip connection, the output in "
                f"evaluation is {number(left)} of that in training (limit {number(limit)}): each layer keeps the "
                f"unbiased variance of as few as {number(least)} values per channel",
                advice="use a larger batch, LayerNorm or skip connections; in a trained model call "
                "layer.running_var.mul_((n - 1) / n) in each of these layers",
            )
        ]
