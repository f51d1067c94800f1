"""BN206: a small difference between training and evaluation, many times over."""

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
    """Each layer of a chain is a little smaller in evaluation than in training, and together that is a lot.

    ## What it does
    Multiplies ``sqrt((n - 1) / n)`` over the layers of each chain that no skip connection interrupts, with n the values
    per channel that a layer normalizes together. Judges the chain with the smallest product.

    ## Why is this bad?
    PyTorch normalizes a batch with its biased variance and keeps the unbiased one for evaluation, which is ``n / (n -
    1)`` times as large. What a layer hands on in evaluation is smaller by the root of that, the next one expects what
    it saw in training and makes it smaller again. Measured on 20 layers: .86 of the output is left at n = 64, .53 at
    16, .06 at 4.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = BiasedVarianceChain().check(make_window(channels=(2,) * 20, sizes=64, chain=True))
    >>> str(finding.severity), round(finding.value, 3)
    ('warning', 0.854)

    The same chain of convolutions on images, where n is thousands, stays quiet:

    >>> BiasedVarianceChain().check(make_window(channels=(2,) * 20, sizes=64, values=64 * 49, chain=True))
    []

    ## What to do
    A larger batch, or ``LayerNorm`` in a deep perceptron; skip connections, which start anew. In a finished model,
    ``running_var.mul_((n - 1) / n)`` in each layer of the chain makes evaluation what training was.

    ## Thresholds
    ``warn_below = .95`` and ``error_below = .8`` of the output: exact algebra, no estimate. ``least_layers = 5`` in the
    chain: in a shorter one only a batch that BN201 speaks of already gets there by itself, or nearly.

    ## Look-alikes
    A frozen layer is the same in both modes, and does not count. Residual networks are reset by each join.

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
        log = logs.tolist()
        members = [tuple(i for i in chain if counts[i]) for chain in structure.chains]
        shrunk = {layers: sum(log[i] for i in layers) for layers in members if len(layers) >= self.least_layers}
        if not shrunk:
            return []
        layers = min(shrunk, key=lambda chain: shrunk[chain])
        left = float(torch.tensor(shrunk[layers]).exp())
        if not left < self.warn_below:
            return []
        error = left < self.error_below
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
                message=f"through {count(len(layers), 'layer')} in a row without a skip connection, evaluation gives "
                f"{number(left)} of what training gives (limit {number(limit)}): each keeps the unbiased variance of "
                "as few as "
                f"{number(least)} values per channel",
                advice="a larger batch, LayerNorm, or skip connections; in a finished model "
                "layer.running_var.mul_((n - 1) / n) in each of these layers",
            )
        ]
