"""BN706: gradients that grow from layer to layer toward the input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from bnmonitor._text import number
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, rate_note
from bnmonitor.window import Window

Array = npt.NDArray[np.float64]

_CACHED = 1 << 16
"""Count of double precision numbers that fit into the cache of a core."""


@dataclass(frozen=True, kw_only=True)
class GradientGrowthWithDepth(Rule):
    """Along a chain of layers without a skip connection, the gradient of gamma grows exponentially toward the input.

    ## What it does
    Takes the chains in the autograd graph in which each layer follows another without a skip connection. Measures the
    gradient of gamma of each layer: the root mean square over the channels, then the median over the window. Fits a
    line through the log of this gradient against the position in the chain.

    ## Why is this bad?
    In a deep plain network with batch normalization the gradient at the start of training grows by about 1.2 per layer,
    whatever the initialization: batch normalization keeps the forward pass in bounds, at the price of the backward
    pass. The first layers then take steps hundreds of times as large as those of the last layers, and no learning rate
    suits both.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> import torch
    >>> gradient = 1.3 ** -torch.arange(12.0)
    >>> [finding] = GradientGrowthWithDepth().check(make_window(channels=(1,) * 12, gamma_grad=gradient, chain=True))
    >>> round(finding.value, 2), finding.layer, len(finding.layers)
    (1.3, 0, 12)

    With a skip connection around every layer, nothing accumulates:

    >>> GradientGrowthWithDepth().check(make_window(channels=(1,) * 12, gamma_grad=gradient))
    []

    ## What to do
    Add skip connections every few layers. If that is not possible, warm the learning rate up, clip gradients, or make
    the network nearly linear at the start (a leaky activation, an orthogonal initialization).

    ## Thresholds
    ``growth = 1.15`` per layer over ``least_layers = 10`` layers or more, and ``total = 10`` along the chain: theory
    gives 1.21 per layer for ReLU at the start, which is tenfold after 12 layers and 117-fold after 25. The line must
    explain ``fit = .5`` of the variance of the logs; otherwise one layer differs and the gradient does not grow with
    depth. The growth must last for 20 steps, because most networks train their way out of it. Measured on digits,
    chains of 10 to 24 convolutions grew by 1.14 at most. A chain of 12 linear layers that trained well grew by up to
    1.21, eightfold in all. A chain of 25 grew by 1.21 over 50 steps, hundredfold in all, and learned little.

    ## Look-alikes
    A bottleneck or a change of width in the middle of a chain: the fit excludes these. Residual networks: their chains
    end at each addition.

    ## References
    Yang et al., A Mean Field Theory of Batch Normalization, 2019.
    """

    code: ClassVar[str] = "BN706"
    name: ClassVar[str] = "gradient-growth-with-depth"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"affine", "gradients", "dataflow"})
    confirm: ClassVar[int] = 20

    growth: float = 1.15
    total: float = 10.0
    least_layers: int = 10
    fit: float = 0.5
    least_steps: int = 5

    def check(self, window: Window) -> list[Finding]:
        """Find the chains along which the gradient grows."""
        structure = window.facts.structure
        chains = [c for c in structure.chains if len(c) >= self.least_layers] if structure is not None else []
        if not chains or len(window) < self.least_steps:
            return []
        size = self._size(window)
        findings = (self._finding(window, list(chain), size[list(chain)]) for chain in chains)
        return [finding for finding in findings if finding is not None]

    def _size(self, window: Window) -> Array:
        """Log of the gradient of gamma: root mean square over the channels, median of some new steps: ``[L]``."""
        gradient = window.gamma_grad[-max(self.least_steps, window.fresh) :]
        gradient = gradient[:: max(1, len(gradient) // self.least_steps)]
        some = torch.split(gradient, max(1, _CACHED // window.layers.total))
        sums = np.concatenate([window.layers.segments.sum(rows.double().square_()).numpy() for rows in some])
        with np.errstate(all="ignore"):
            logs = 0.5 * np.log(sums / np.array(window.layers.channels))
        if np.isfinite(logs).all():
            middle: Array = np.partition(logs, (len(logs) - 1) // 2, 0)[(len(logs) - 1) // 2]
            return middle
        known = torch.from_numpy(np.where(np.isfinite(logs), logs, np.nan))
        return known.nanmedian(0).values.numpy()

    def _finding(self, window: Window, chain: list[int], logs: Array) -> Finding | None:
        position = np.isfinite(logs).nonzero()[0]
        if len(position) < self.least_layers:
            return None
        x, y = position - position.mean(), logs[position] - logs[position].mean()
        along = float(x @ x)
        slope = float(x @ y) / along
        explained = slope**2 * along / max(float(y @ y), 1e-30)
        growth = math.exp(min(-slope, 80.0))
        total = growth ** (len(chain) - 1)
        if growth <= self.growth or total <= self.total or explained < self.fit:
            return None
        return Finding(
            severity=Severity.WARNING,
            layer=chain[0],
            layers=tuple(chain),
            first_step=window.steps[0],
            value=growth,
            threshold=self.growth,
            message=f"the gradient of gamma grows {number(growth)}-fold per layer toward the input along {len(chain)} "
            f"layers without a skip connection, {number(total)}-fold in all"
            f"{rate_note(window, window.steps[-1])}",
            advice="add a skip connection every few layers; otherwise warm the learning rate up and clip gradients: "
            "Trainer(gradient_clip_val=1.0)",
        )
