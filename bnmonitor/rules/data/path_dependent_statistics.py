"""BN605: batch statistics that depend on the path that a step takes through the network."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import ClassVar

import torch

from bnmonitor._text import number
from bnmonitor.measures import path_levels
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class PathDependentStatistics(Rule):
    """The batch statistics of a layer jump between a few levels, while the layers before it are calm.

    ## What it does
    Looks for layers whose batch means and variances are at one of a few levels in each step and change it again and
    again, while those of the layers before do not change with them: something between the two is another network from
    step to step. Supernets that draw an operation, a width or a depth in each step are made so.

    ## Why is this bad?
    In training each path is normalized with its own statistics. The running statistics are an average over all paths
    and right for none of them, so every path seems worse in evaluation than it is, and paths cannot be compared.

    ## Example
    >>> from bnmonitor.testing import path_window
    >>> [finding] = PathDependentStatistics().check(path_window(0.6))
    >>> finding.layer, str(finding.severity)
    (1, 'info')

    Paths that hardly differ stay quiet:

    >>> PathDependentStatistics().check(path_window(0.1))
    []

    ## Code
    Wrong::

        def forward(self, x):
            return F.relu(self.norm(random.choice(self.convolutions)(x)))  # one average for all convolutions

    Right::

        def forward(self, x):
            at = random.randrange(len(self.convolutions))
            return F.relu(self.norms[at](self.convolutions[at](x)))

    ## What to do
    Give each path its own normalization, or estimate the statistics anew for the path that is to be evaluated
    (:func:`bnmonitor.remedies.recalibrate`).

    ## Thresholds
    Those of BN502, for the distance of two levels: ``warn_shift = .25`` standard deviations or ``warn_log_ratio = .5``
    in the log of the variances; ``error_shift = 1`` and ``error_log_ratio = 1.4``. Two and three convolutions that took
    turns before one norm measured .5 to 1.2 and .7 to 1.1: the network had 98 % with the statistics of the batch, and
    28 to 66 % in evaluation.

    ## Look-alikes
    Stochastic depth leaves out blocks that evaluation never leaves out, and trains the network to bear that. Its levels
    do not count: all steps in which no layer is skipped are at one of them (a layer is skipped if it does not run or
    gets no gradient), or a layer gets in the steps of one just the batch that a layer before the block got. Where two
    layers are seen to stand in for each other as the levels change, the alert is a warning or an error. It is an info
    otherwise, as blocks without a normalization of their own can be skipped, or drawn, without a trace in what is
    recorded. Data of two kinds in turn show in the first layers (BN602). A jump that comes once is no path.

    ## References
    Yu and Huang, Universally slimmable networks, 2019; Guo et al., Single path one-shot neural architecture search,
    2020; liuzechun/MetaPruning#15; JiahuiYu/slimmable_networks#35.
    """

    code: ClassVar[str] = "BN605"
    name: ClassVar[str] = "path-dependent-statistics"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "dataflow"})
    confirm: ClassVar[int] = 10
    every: ClassVar[int] = 32

    warn_shift: float = 0.25
    error_shift: float = 1.0
    warn_log_ratio: float = 0.5
    error_log_ratio: float = 1.4

    def check(self, window: Window) -> list[Finding]:
        """Find the layers whose batch statistics jump between levels."""
        found = path_levels(window)
        if not found.count.any():
            return []
        apart = (found.shift > self.warn_shift) | (found.ratio > self.warn_log_ratio)
        rows = torch.stack([found.shift, found.ratio]).T.tolist()
        return [
            self._finding(window, i, int(found.count[i]), *rows[i], drawn=bool(found.exclusive[i]))
            for i in apart.nonzero().flatten().tolist()
        ]

    def _finding(self, window: Window, layer: int, count: int, shift: float, ratio: float, *, drawn: bool) -> Finding:
        error = shift > self.error_shift or ratio > self.error_log_ratio
        by_mean = shift / self.warn_shift >= ratio / self.warn_log_ratio
        limits = (self.error_shift, self.error_log_ratio) if error else (self.warn_shift, self.warn_log_ratio)
        severity = Severity.ERROR if error else Severity.WARNING
        return Finding(
            severity=severity if drawn else Severity.INFO,
            layer=layer,
            first_step=window.steps[0],
            value=shift if by_mean else ratio,
            threshold=limits[0] if by_mean else limits[1],
            message=f"the batch statistics jump between {count} levels from step to step, and those of the layers "
            f"before do not: means {number(shift)} standard deviations apart, variances by a factor "
            f"{number(exp(ratio))}; "
            + (
                "the running statistics fit none of the paths"
                if drawn
                else "whether operations take turns, and the running statistics fit none of them, or a block is only "
                "skipped at random, is not known"
            ),
            advice="give each path its own BatchNorm, or re-estimate the statistics for the path that is evaluated "
            "(bnmonitor.remedies.recalibrate)"
            + ("" if drawn else "; if a block is skipped at random (stochastic depth), nothing is to be done"),
        )
