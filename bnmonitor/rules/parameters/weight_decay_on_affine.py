"""BN703: weight decay on gamma and beta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import count, number
from bnmonitor.limits import MANY_DEAD
from bnmonitor.measures import dead
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class WeightDecayOnAffine(Rule):
    """An optimizer applies weight decay to gamma or beta.

    ## What it does
    Looks at the weight decay of the parameter groups that contain a gamma or beta. It is an info, once for the whole
    model: many recipes decay them, and many do not. It is a warning if the decay is strong and channels of such a layer
    are dead.

    ## Why is this bad?
    On the weights before a normalization, decay only changes the effective learning rate, because their scale does not
    matter. On gamma it is a pull toward zero: without a gradient, gamma falls as ``exp(-lr * decay * t)``, and a
    channel with a vanished gamma gets no gradient to recover.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = WeightDecayOnAffine().check(make_window(decay=5e-4))
    >>> str(finding.severity), finding.message
    ('info', 'weight decay 0.0005 acts on gamma or beta of 1 layer')

    >>> WeightDecayOnAffine().check(make_window(decay=0.0))
    []

    ## Code
    Wrong::

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

    Right::

        groups = bnmonitor.remedies.parameter_groups(model, weight_decay=0.05)
        optimizer = torch.optim.AdamW(groups, lr=1e-3)

    ## What to do
    Put gamma and beta into a parameter group of their own:
    ``bnmonitor.remedies.parameter_groups(model, weight_decay=...)`` makes the groups for the optimizer.

    ## Thresholds
    It is a warning from ``warn_decay = 1e-3`` for decay through the gradient, as in SGD, and from
    ``warn_decoupled = .05`` for decoupled decay, as in AdamW, if more than ``dead_share = .1`` of a layer's channels
    are switched off: gamma below a hundredth of its start, or beta so negative that a ReLU never opens. At a learning
    rate of .1 and a decay of 1e-3, gamma without a gradient falls to a third in 10,000 steps.

    ## Look-alikes
    Decay on gamma to prune channels (network slimming): ignore the rule there.

    ## References
    Zhou et al., How does BN increase collapsed neural network filters, 2020; Summers and Dinneen, Four Things Everyone
    Should Know to Improve Batch Normalization, 2020; ultralytics/yolov5#4104.
    """

    code: ClassVar[str] = "BN703"
    name: ClassVar[str] = "weight-decay-on-affine"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[frozenset[str]] = frozenset({"affine", "optimizer"})

    warn_decay: float = 1e-3
    warn_decoupled: float = 0.05
    dead_share: float = MANY_DEAD

    def check(self, window: Window) -> list[Finding]:
        """Judge all layers with a decayed gamma or beta."""
        decay, decoupled = window.facts.decay, window.facts.decoupled
        if decay is None or decoupled is None or not (decay > 0).any():
            return []
        decayed = decay > 0
        strong = decayed & (decay * (1 + 1e-6) >= torch.where(decoupled, self.warn_decoupled, self.warn_decay))
        dying = strong & (dead(window) > self.dead_share)
        layers = decayed.nonzero().flatten().tolist()
        worst = int((dying if dying.any() else decayed).long().argmax())
        value = float(decay[worst])
        limit = self.warn_decoupled if bool(decoupled[worst]) else self.warn_decay
        message = f"weight decay {number(value)} acts on gamma or beta of {count(len(layers), 'layer')}"
        if dying.any():
            message += f", and in {count(int(dying.sum()), 'layer')} channels have died"
        return [
            Finding(
                severity=Severity.WARNING if dying.any() else Severity.INFO,
                layer=worst,
                layers=tuple(layers),
                first_step=window.steps[-1] if dying.any() else window.steps[0],
                value=value,
                threshold=limit if dying.any() else 0.0,
                message=message,
                advice='put gamma and beta into a parameter group of their own with "weight_decay": 0: '
                "bnmonitor.remedies.parameter_groups(model, weight_decay=...)",
            )
        ]
