"""BN701: channels that gamma or beta has switched off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import number
from bnmonitor.limits import ALWAYS_ZERO, DEAD_BETA, DEAD_GAMMA, MANY_DEAD
from bnmonitor.measures import median, share, with_affine
from bnmonitor.results import Severity
from bnmonitor.rules.advice import restart, retreat
from bnmonitor.rules.base import Finding, Rule, first, rate_note
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class DeadChannels(Rule):
    """Gamma has vanished, or beta is so negative that the ReLU after the layer never opens.

    ## What it does
    Counts a channel as dead if gamma has fallen below a hundredth of its start and no longer gets a gradient, or if
    ``beta / abs(gamma)`` is below -3.1 before a ReLU or ReLU6. If activations were sampled since then, they must agree.
    The share of dead channels in a layer decides the severity.

    ``bnmonitor audit`` knows no start and no gradient: it counts gammas below a hundredth of the model's usual one, and
    warns if those are three quarters of a layer, beside others that are far larger. An exact 0 is taken for pruned.

    ## Why is this bad?
    The output of the channel is constant, its gradient is zero, and only weight decay still acts on it, so it cannot
    recover. The remaining channels have to do the work of all.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = DeadChannels().check(make_window(beta=[0.0, -5.0, -6.0, 0.1], relu=True))
    >>> str(finding.severity), finding.channels
    ('warning', (1, 2))

    A negative beta without a ReLU after it stays quiet, and so does a zero-initialized gamma that gets a gradient:

    >>> DeadChannels().check(make_window(beta=[0.0, -5.0, -6.0, 0.1]))
    []
    >>> DeadChannels().check(make_window(gamma=[0.0, 0.0, 0.0, 0.0], start_gamma=0.0))
    []

    ## Code
    Wrong::

        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.05)  # decays gamma as well

    Right::

        groups = bnmonitor.remedies.parameter_groups(model, weight_decay=5e-4)
        optimizer = torch.optim.SGD(groups, lr=0.1)

    ## What to do
    Lower the learning rate (the risk grows with its square) or lengthen the warm-up; remove weight decay from gamma and
    beta (``bnmonitor.remedies.parameter_groups``); use a leaky activation. Channels that stay dead can be pruned.

    ## Thresholds
    ``gamma_share = .01`` of the start (Frankle et al. 2021 count ``abs(gamma) < .01``). ``beta_ratio = -3.1``: after a
    normalization the ReLU then opens once in a thousand values, ``Phi(-3.1) = .001``. ``info_share = .1``,
    ``warn_share = .33`` (about the share that dies in a training of gamma and beta alone), ``error_share = .75``.

    ## Look-alikes
    Residual branches that start at gamma = 0 have not fallen, whether they get a gradient or are held at zero. Layers
    whose gamma and beta are frozen are not judged. If you prune by gamma on purpose, ignore the rule.

    ## References
    Zhou et al., How does BN increase collapsed neural network filters, 2020; Frankle et al., Training BatchNorm
    and only BatchNorm, 2021; deepinsight/insightface#277.
    """

    code: ClassVar[str] = "BN701"
    name: ClassVar[str] = "dead-channels"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"affine"})
    follows: ClassVar[frozenset[str]] = frozenset({"BN704"})

    gamma_share: float = DEAD_GAMMA
    beta_ratio: float = DEAD_BETA
    zero_share: float = ALWAYS_ZERO
    vanished: float = 1e-8
    info_share: float = MANY_DEAD
    warn_share: float = 0.33
    error_share: float = 0.75
    least_steps: int = 10

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with many dead channels."""
        if len(window) < self.least_steps:
            return []
        window = with_affine(window)
        dead = self._closed(window) | self._vanished(window)
        # A layer that is not trained has not died in this training, and has what its weights were loaded with.
        dead &= window.facts.affine_trains[window.layers.owner]
        if not dead.any():
            return []
        part = share(dead, window)
        return [
            self._finding(window, dead, layer, float(part[layer]))
            for layer in (part > self.info_share).nonzero().flatten().tolist()
        ]

    def _closed(self, window: Window) -> torch.Tensor:
        """Channels that a ReLU never lets through."""
        if window.facts.structure is None:
            return torch.zeros_like(window.gamma[-1], dtype=torch.bool)
        # A gamma of zero that began there is a branch that is held back on purpose, whatever its beta.
        scale = window.gamma[-1].abs()
        now = (window.beta[-1] < self.beta_ratio * scale) & ((scale > 0) | (window.baseline.gamma != 0))
        if not now.any():
            return now
        now &= window.facts.structure.relu_only()[window.layers.owner]
        sample = window.sample
        if not now.any() or sample is None:
            return now
        since = torch.tensor(window.steps, device="cpu")[self._negative(window).long().argmax(0)]
        return now & ~((sample.output.nonpositive < self.zero_share) & (sample.step >= since))

    def _negative(self, window: Window) -> torch.Tensor:
        return window.beta < self.beta_ratio * window.gamma.abs()

    def _vanished(self, window: Window) -> torch.Tensor:
        """Channels with a vanished gamma that gets no gradient."""
        start = window.baseline.gamma.abs()
        small = window.gamma[-1].abs() < self.gamma_share * start
        if not small.any():
            return small
        gradient = window.gamma_grad.abs()
        usual = gradient.nanmedian(0).values
        most = gradient.nan_to_num(0.0).amax(0)
        known = (~gradient.isnan()).sum(0) >= self.least_steps
        ranks, split = window.facts.ranks, window.layers.split_channels
        if ranks is not None and ranks.affine is not None and split.any():
            told = ranks.affine.gamma_grad.to(most.dtype)  # of ten steps at least
            usual, most = torch.where(split, told, usual), torch.where(split, told, most)
            known = known | (split & ~told.isnan())
        return small & known & (most <= self.vanished * median(usual, window)[window.layers.owner])

    def _finding(self, window: Window, dead: torch.Tensor, layer: int, part: float) -> Finding:
        channels = window.layers.locate(dead, layer)
        span = window.layers.span(layer)
        limits = (
            (self.error_share, Severity.ERROR),
            (self.warn_share, Severity.WARNING),
            (self.info_share, Severity.INFO),
        )
        limit, severity = next((limit, severity) for limit, severity in limits if part > limit)
        mine = list(channels)
        off = self._negative(window)[:, span][:, mine] | (
            window.gamma[:, span][:, mine].abs() < self.gamma_share * window.baseline.gamma[span][mine].abs()
        )
        step = first(off.double().mean(1) * part > self.info_share, window)
        return Finding(
            severity=severity,
            layer=layer,
            channels=channels,
            first_step=step,
            value=part,
            threshold=limit,
            message=f"{len(channels)} of {window.layers.channels[layer]} channels ({number(100 * part)} %) are "
            f"switched off by gamma or beta and get no gradient{rate_note(window, step)}",
            advice=f"{restart(step)}, because dead channels stay dead; "
            f"{retreat(window, step, 'lower the learning rate or lengthen its warm-up')}, and remove weight "
            "decay from gamma and beta: bnmonitor.remedies.parameter_groups(model, weight_decay=...)",
        )
