"""BN708: channels that are copies of each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.limits import FLAT
from bnmonitor.measures import is_young
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class IdenticalChannels(Rule):
    """Channels of a layer are copies of each other, step after step: the layer has fewer channels than it seems.

    ## What it does
    Compares the channels of each layer with each other: their batch variance, and how their batch mean moves from step
    to step. Some copies among others are looked for in the first 64 steps only. Channels that agree in all of that get
    the same input and compute the same. Gamma and beta say nothing, as they begin equal in every sound network.

    ## Why is this bad?
    Weights that begin equal get equal gradients and stay equal: nothing in the training can tell such channels apart,
    so that a layer of 64 learns one feature. The loss falls all the same, and stays too high.

    ## Example
    >>> import torch
    >>> from bnmonitor.testing import make_window
    >>> noise = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    >>> copies = {"batch_mean": noise.expand(64, 8), "batch_var": (1 + noise.square()).expand(64, 8), "seen": 64}
    >>> [finding] = IdenticalChannels().check(make_window(**copies))
    >>> str(finding.severity), len(finding.channels), finding.value
    ('error', 8, 1.0)

    Channels of one distribution that are drawn one by one stay quiet:

    >>> drawn = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> IdenticalChannels().check(make_window(batch_mean=drawn, batch_var=1 + drawn.square(), seen=64))
    []

    ## Code
    Wrong::

        nn.init.constant_(conv.weight, 0.01)

    Right::

        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    ## What to do
    Initialize the weights before the layer at random. If the channels were copied on purpose, to widen a network, add
    some noise to the copies.

    ## Thresholds
    ``tolerance = 1e-4``: copies agree to the rounding of the running statistics, which is a tenth of that at momentum
    .1; two channels that only have one distribution agree so well in one step of thousands. They must in
    ``least_steps = 20`` steps and in each of them. ``warn_share = .5`` of a layer's channels have a copy: a warning; if
    no two differ, an error; fewer are an info.

    ## Look-alikes
    Channels without a variance are all alike, and so are those that do not change from step to step: BN105 reports the
    former. Where a layer normalizes the input itself, or what no weights come before, copies are a fact of the data,
    such as gray images with three channels: an info. Where symmetry breaks after the first steps, by other weights
    behind or by dropout, the channels part, and are not copies.

    ## References
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010; Chen, Goodfellow
    and Shlens, Net2Net, 2016.
    """

    code: ClassVar[str] = "BN708"
    name: ClassVar[str] = "identical-channels"
    severity: ClassVar[Severity] = Severity.ERROR
    needs: ClassVar[frozenset[str]] = frozenset({"buffers"})

    tolerance: float = 1e-4
    warn_share: float = 0.5
    least_steps: int = 20

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with copies among their channels."""
        # Weights that have parted do not meet again: later there is nothing new, and to sort all channels takes time.
        if len(window) <= self.least_steps or not (is_young(window) or self._one_channel(window).any()):
            return []
        owner = window.layers.owner
        # By the move of the mean, in which channels with mirrored weights differ, while they have one variance.
        order = _by_layer_and_value(window.batch_mean[-1] - window.batch_mean[-2], owner)
        beside = (owner[order][1:] == owner[order][:-1]) & self._alike(window, order, slice(-1, None))
        if not beside.any():
            return []
        beside &= self._alike(window, order, slice(1 - self.least_steps, None)) & self._moves(window)[order][1:]
        if not beside.any():
            return []
        copies = torch.zeros_like(owner, dtype=torch.bool)
        copies[order[1:][beside]] = True
        copies[order[:-1][beside]] = True
        segments, sizes = window.layers.segments, window.layers.segments.sizes
        # Sorted by value, copies lie side by side, so that each pair that agrees makes one channel less.
        less = torch.zeros_like(owner, dtype=torch.bool)
        less[order[1:][beside]] = True
        distinct = sizes - segments.count(less)
        part = segments.count(copies).double() / sizes
        free = self._unweighted(window)
        return [
            self._finding(window, layer, copies, int(distinct[layer]), float(part[layer]), free[layer])
            for layer in (part > 0).nonzero().flatten().tolist()
        ]

    def _one_channel(self, window: Window) -> Tensor:
        """Layers in which all channels have one variance now: ``[L]`` bool."""
        now, segments = window.batch_var[-1], window.layers.segments
        top, low = segments.max(now), -segments.max(-now)
        alike = (segments.sizes > 1) & (top - low <= self.tolerance * top)
        if alike.any():
            alike &= low > FLAT * torch.tensor(window.layers.eps, device="cpu")
        return alike

    def _alike(self, window: Window, order: Tensor, rows: slice) -> Tensor:
        """Whether each channel agrees with the one before it in the order, in every one of some steps: ``[C - 1]``."""
        var = window.batch_var[rows][:, order]
        eps = window.layers.eps_by_channel[order]
        start = len(window) + (rows.start or 0) - 1
        moves = window.batch_mean[start:][:, order].diff(dim=0)
        scale = (var + eps).sqrt()
        # Of a channel without a variance nothing is known, and NaN is unlike everything.
        alike = (var.diff(dim=1).abs() <= self.tolerance * var[:, 1:]) & (var > FLAT * eps)[:, 1:]
        alike &= moves.diff(dim=1).abs() <= self.tolerance * scale[:, 1:]
        return alike.all(0)

    def _moves(self, window: Window) -> Tensor:
        """Channels whose statistics differ from step to step: of others, equality says nothing. ``[C]`` bool."""
        rows = slice(-self.least_steps, None)
        mean, var = window.batch_mean[rows], window.batch_var[rows]
        scale = var[-1].clamp(min=0).sqrt()
        moved = mean.amax(0) - mean.amin(0) > 10 * self.tolerance * scale
        return moved | (var.amax(0) - var.amin(0) > 10 * self.tolerance * var[-1])

    def _unweighted(self, window: Window) -> list[bool]:
        """Layers that no weights of their own come before, as far as is known."""
        structure = window.facts.structure
        places = structure.places if structure is not None else ()
        if len(places) != len(window.layers):
            return [False] * len(window.layers)
        return [not p.blind and not any(producer.role == "weights" for producer in p.producers) for p in places]

    def _finding(
        self, window: Window, layer: int, copies: Tensor, distinct: int, part: float, unweighted: bool
    ) -> Finding:
        size = window.layers.channels[layer]
        channels = window.layers.locate(copies, layer)
        severity = Severity.ERROR if distinct == 1 else Severity.WARNING if part >= self.warn_share else Severity.INFO
        what = "the layer has one channel" if distinct == 1 else f"it has {count(distinct, 'different channel')}"
        fix = "initialize the weights before the layer at random: torch.nn.init.kaiming_normal_(weight)"
        if unweighted:
            severity = Severity.INFO
            fix = "look at what feeds the layer, unless that is so on purpose, as in gray images with three channels"
        return Finding(
            severity=severity,
            layer=layer,
            channels=channels,
            first_step=window.steps[0],
            value=part,
            threshold=self.warn_share,
            message=f"{len(channels)} of {size} channels ({number(100 * part)} %) equal another one in every step, in "
            f"variance and in every move of the mean: {what}",
            advice=fix,
        )


def _by_layer_and_value(values: Tensor, owner: Tensor) -> Tensor:
    """Positions of the channels, layer by layer, and by value within each."""
    order = values.argsort()
    return order[owner[order].argsort(stable=True)]
