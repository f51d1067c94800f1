"""BN302: a momentum that gives no moving average."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import number
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, first
from bnmonitor.window import Recovery, Window


@dataclass(frozen=True, kw_only=True)
class DegenerateMomentum(Rule):
    """Momentum is 0, 1 or None, so the running statistics are not a moving average of the training.

    ## What it does
    Looks at the momentum of every layer that trains on its batches. With 0 the running statistics never change; with 1
    they are those of the last batch; with None they are the plain average over all batches since the first. One alert
    for all affected layers.

    ## Why is this bad?
    Evaluation normalizes with statistics that do not fit the network: the initial ones, those of a single batch, or
    those of all states of the network since the start.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = DegenerateMomentum().check(make_window(momentum=0.0))
    >>> str(finding.severity), finding.message
    ('error', 'momentum 0: training never moves the running statistics')

    A small momentum is slow, but gives a moving average, and stays quiet:

    >>> DegenerateMomentum().check(make_window(momentum=0.001))
    []

    ## Code
    Wrong::

        nn.BatchNorm2d(64, momentum=1.0)  # keeps nothing but the last batch

    Right::

        nn.BatchNorm2d(64, momentum=0.1)

    ## What to do
    Write ``momentum=0.1``, PyTorch's default. To freeze a layer, put it into evaluation mode: ``layer.eval()``. To
    estimate the statistics again, let ``torch.optim.swa_utils.update_bn(loader, model)`` set the momentum for a while.

    ## Thresholds
    The values themselves. None is right for estimating statistics again. It is an info once it has lasted longer: for
    more than one epoch of training or, if the length of an epoch is not known, for more than ``least_updates = 100``.
    The average is then 50 batches old on average; with momentum .1 it stays 9 batches old.

    ## Look-alikes
    Statistics that are estimated again in the middle of training, with momentum None for one pass or 1 for a batch: do
    this inside ``with monitor.evaluation()``, where it does not count as training. A second forward in the same or in
    every other step with momentum 0, as sharpness-aware minimization (SAM) makes: the momentum must have been the same
    in the latest ``least_in_a_row = 5`` updates, and must not have moved the statistics.

    ## References
    Lightning-AI/pytorch-lightning#14866; pytorch/pytorch#194504.
    """

    code: ClassVar[str] = "BN302"
    name: ClassVar[str] = "degenerate-momentum"
    severity: ClassVar[Severity] = Severity.ERROR
    needs: ClassVar[frozenset[str]] = frozenset({"buffers"})

    least_updates: int = 100
    least_in_a_row: int = 5

    def check(self, window: Window) -> list[Finding]:
        """Judge the momentum of all layers that train on their batches, and report the worst value."""
        if bool(((window.momentum[-1] > 0) & (window.momentum[-1] < 1)).all()):
            return []
        trained = ((window.updates > 0) & window.training).any(0).tolist()
        # SAM sets momentum to 0 for its second pass; another momentum moved the statistics before.
        moved = (window.recovery == Recovery.MOMENTUM_CHANGED).any(0).tolist()
        momenta = {i: m for i, m in enumerate(window.momentum[-1].tolist()) if trained[i] and not moved[i]}
        for value in (0.0, 1.0):
            lasts = self._lasts(window, value)
            layers = [i for i, m in momenta.items() if m == value and lasts[i]]
            if layers:
                return [self._fixed(window, value, layers)]
        loader = window.facts.train_loader
        pass_length = (loader.batches if loader else None) or window.facts.epoch_steps or self.least_updates
        long = (window.baseline.updates > pass_length).tolist()
        layers = [i for i, m in momenta.items() if math.isnan(m) and long[i]]
        return [self._cumulative(window, pass_length, layers)] if layers else []

    def _lasts(self, window: Window, value: float) -> list[bool]:
        """Which layers had a momentum in each of their latest updates, and not in every other one."""
        updated = window.updates > 0
        other = (updated & (window.momentum != value)).flip(0).cumsum(0) > 0
        since = (updated.flip(0) & ~other).sum(0)
        found: list[bool] = (since >= updated.sum(0).clamp(max=self.least_in_a_row)).tolist()
        return found

    def _fixed(self, window: Window, value: float, layers: list[int]) -> Finding:
        last = "the running statistics are those of the last batch"
        what = "training never moves the running statistics" if value == 0 else last
        return Finding(
            severity=Severity.ERROR if value == 0 else Severity.WARNING,
            layer=layers[0],
            layers=tuple(layers),
            first_step=first(window.momentum[:, layers[0]] == value, window),
            value=value,
            threshold=value,
            message=f"momentum {value:g}: {what}",
            advice="write momentum=0.1; to freeze a layer, call its eval() instead"
            if value == 0
            else "write momentum=0.1; to estimate the statistics, use torch.optim.swa_utils.update_bn(loader, model)",
        )

    def _cumulative(self, window: Window, pass_length: int, layers: list[int]) -> Finding:
        updates = int(window.baseline.updates[layers[0]])
        return Finding(
            severity=Severity.INFO,
            layer=layers[0],
            layers=tuple(layers),
            first_step=window.steps[-1],
            value=float(updates),
            threshold=float(pass_length),
            message=f"momentum None averages all {number(updates)} batches since the first with equal weight: "
            "the initial network counts as much as the present one",
            advice="write momentum=0.1, and estimate the statistics again before evaluations that matter: "
            "torch.optim.swa_utils.update_bn(loader, model)",
        )
