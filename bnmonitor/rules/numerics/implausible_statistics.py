"""BN109: running statistics that no trained network has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, onset
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class ImplausibleStatistics(Rule):
    """A running mean or variance is finite, but larger than any that a trained network has.

    ## What it does
    Looks at the larger of ``running_var`` and ``abs(running_mean)`` in each channel. A value above ``limit``, or above
    ``floor`` and ``ratio`` times that of the model's median channel, is implausible behind another normalization. A
    layer that reads the input of the network may have up to ``input_limit``, unless the layers behind it are
    implausible too. Judged at each check, so when a checkpoint is loaded and at the end of a fit as well, and in
    ``bnmonitor audit``.

    ## Why is this bad?
    A normalized input and weights of any usual size give variances between a thousandth and a thousand. A variance of
    1e22 is left from a training that has diverged: gamma divided by its deviation is 0 in evaluation, so the layer
    outputs a constant. Training mode does not read the statistics, so the loss does not show it.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> window = make_window(channels=(2, 2), running_var=[1.0, 2.0, 1e22, 1.0], batch_var=1.0)
    >>> [finding] = ImplausibleStatistics().check(window)
    >>> str(finding.severity), finding.layer, finding.channels
    ('error', 1, (0,))

    A layer on input in raw units, such as prices, stays quiet:

    >>> raw = [4e13, 3e8, 1.0, 2.0]
    >>> ImplausibleStatistics().check(make_window(channels=(2, 2), running_var=raw, batch_var=raw))
    []

    ## Code
    Wrong::

        torch.save(model.state_dict(), "last.pt")  # after the loss has gone to 1e12

    Right::

        Trainer(callbacks=[ModelCheckpoint(monitor="val_loss")])  # keeps the checkpoint from before

    ## What to do
    Go back to a checkpoint from before the training diverged. If only the running statistics are ruined and the weights
    are sound, estimate them again: ``bnmonitor.remedies.recalibrate(model, loader)``.

    ## Thresholds
    ``limit = 1e12`` needs weights a million times their usual size. ``floor = 1e6`` and ``ratio = 1e6`` times the
    median channel are a warning. ``input_limit = 1e34``: sizes in bytes have variances of 1e24, times in nanoseconds of
    1e32, and float32 ends at 3e38.

    ## Look-alikes
    Unnormalized pixels give the first layer 1e4. Features in raw units give it the square of their scale; the layers
    behind it see normalized numbers. A second branch that reads raw input is known by the connections of the layers,
    which a checkpoint alone does not show.

    ## References
    Ioffe and Szegedy, Batch normalization, 2015: evaluation divides by the running deviation.
    """

    code: ClassVar[str] = "BN109"
    name: ClassVar[str] = "implausible-statistics"
    severity: ClassVar[Severity] = Severity.ERROR
    untrained: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset({"BN101", "BN106", "BN107", "BN704"})

    limit: float = 1e12
    floor: float = 1e6
    ratio: float = 1e6
    input_limit: float = 1e34

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with a channel whose running statistics are too large: one finding for the whole model."""
        size = _size(window.running_mean[-1], window.running_var[-1])
        if not size.numel() or float(size.amax()) <= self.floor:
            return []
        tracked = window.layers.tracked[window.layers.owner]
        limits = self._limits(window, size[tracked])
        hit = window.layers.segments.any((size > limits) & tracked)
        layers = tuple(hit.nonzero().flatten().tolist())
        return [self._finding(window, size, limits, layers)] if layers else []

    def _limits(self, window: Window, tracked: Tensor) -> Tensor:
        """The largest plausible size of each channel: ``[C]``."""
        usual = tracked.median() if tracked.numel() else torch.tensor(1.0, device="cpu")
        inner = float((usual * self.ratio).clamp(self.floor, self.limit))
        limits = torch.full_like(window.running_var[-1], inner)
        reads_input = _reads_input(window)[window.layers.owner]
        size = _size(window.running_mean[-1], window.running_var[-1])
        if not ((size > self.limit) & ~reads_input).any():
            limits[reads_input] = self.input_limit
        return limits

    def _finding(self, window: Window, size: Tensor, limits: Tensor, layers: tuple[int, ...]) -> Finding:
        layer, span = layers[0], window.layers.span(layers[0])
        over = (size > limits)[span]
        channels = tuple(over.nonzero().flatten().tolist())
        worst = int(size[span].argmax())
        limit, value = float(limits[span][worst]), float(size[span][worst])
        rows = _size(window.running_mean[:, span], window.running_var[:, span])
        what = "variance" if float(window.running_var[-1, span][worst]) == value else "mean"
        error = any(bool((size[window.layers.span(each)] > self.limit).any()) for each in layers)
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            layers=layers,
            channels=() if len(channels) == window.layers.channels[layer] else channels,
            first_step=onset((rows > limits[span]).any(1), window),
            value=value,
            threshold=limit,
            message=f"running {what} {number(value)} in {count(len(channels), 'channel')} (limit {number(limit)}): "
            f"no trained network has that, {'the checkpoint is ruined' if error else 'something has diverged'}",
            advice="go back to a checkpoint from before the training diverged; if the weights are sound, call "
            "bnmonitor.remedies.recalibrate(model, loader)",
        )


def _size(mean: Tensor, var: Tensor) -> Tensor:
    """The larger of variance and absolute mean; 0 where one is not finite, which BN101 reports."""
    size = torch.maximum(mean.abs(), var)
    return size.where(size.isfinite(), 0.0)


def _reads_input(window: Window) -> Tensor:
    """Layers that no other layer is in front of: ``[L]``; where the connections are unknown, the first."""
    structure = window.facts.structure
    first = torch.arange(len(window.layers), device="cpu") == 0
    if structure is None:
        return first
    known = [place.root for place in structure.places]
    return torch.tensor(known, dtype=torch.bool, device="cpu") if any(known) else first
