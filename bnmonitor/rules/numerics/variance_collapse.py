"""BN105: channels that no longer vary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from bnmonitor._text import count, number
from bnmonitor.limits import ALIVE, FLAT
from bnmonitor.measures import LEAST_WARM_UP, share, typical_variance, variances, warm
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, run_note
from bnmonitor.window import Window

NO_MOMENTUM = 0.01
"""An eps from which on it is likely to be a momentum in the wrong place."""

USUAL_EPS = 1e-5
"""PyTorch's. Under a larger one a channel may vary so little that eps decides its scale, and yet not be constant."""

TINY = 1e-3
"""A mean square of the data far below that of normalized data, which is 1."""


@dataclass(frozen=True, kw_only=True)
class VarianceCollapse(Rule):
    """The variance of some channels has fallen so low that eps decides the output.

    ## What it does
    Flags channels that were alive and have a batch variance and a running variance both below ``eps_factor`` times the
    layer's eps. Many such channels in one layer are a warning or an error; a single one is a warning once it is below
    eps itself. Behind a ReLU, which may close for good, it takes more of them. Channels that were small from the start
    are an info, unless a quarter of the layer is constant. A layer whose channels are nearly all below eps is an error,
    however it came about: also frozen, or from the start.

    ## Why is this bad?
    The layer divides by ``sqrt(var + eps)``. At ``var = 10 eps`` this already shrinks the output by 5 %, at
    ``var = eps`` by 29 %. Far below that the channel outputs the constant beta: it carries no information and passes no
    gradient on. When the layer is folded into the convolution, such a channel gets an enormous weight.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> dead = [1.0] * 8 + [1e-7] * 2
    >>> [finding] = VarianceCollapse().check(make_window(batch_var=dead, running_var=dead))
    >>> str(finding.severity), finding.channels
    ('warning', (8, 9))

    A small variance well above eps stays quiet:

    >>> small = [1.0] * 8 + [1e-3] * 2
    >>> VarianceCollapse().check(make_window(batch_var=small, running_var=small))
    []

    ## Code
    Wrong::

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)  # drives weights to zero

    Right::

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)

    ## What to do
    Look at what feeds the layer: a ReLU that is never positive, weights that weight decay or pruning has driven to
    zero, or an input that became constant. A lower learning rate or less weight decay on the layer before keeps
    channels alive. ``nn.BatchNorm2d(64, 0.8)`` sets eps, not momentum: write ``momentum=``.

    ## Thresholds
    ``eps_factor = 10``: there the standard deviation of the output is ``sqrt(10 / 11) = .953`` of what it should be.
    ``warn_share = .05`` and ``error_share = .25`` of a layer's channels, but ``few = 2`` channels at least: one of
    eight is no share. A channel counts as alive once its batch variance has been at least 100 eps, or, where eps is
    large, if its usual variance was above 10 eps and it is constant now: below ``constant = .01`` eps, where the
    standard deviation of the output is a tenth of what it should be.

    Behind a ReLU, also with a depthwise convolution between, ``relu_warn_share = .33`` and ``relu_error_share = .75``,
    as for dead channels (BN701): in sound trainings on images in [0, 1], 3 to 10 % of such channels closed within the
    first hundred steps, and up to a third of the first layer had never been open.

    ``flat_share = .25`` for channels that were constant from the start, below ``constant`` times 1e-5 or a smaller eps:
    several percent are common in healthy depthwise layers. ``whole_share = .9`` of a layer below eps, in training mode
    by the batches alone, after 30 updates; small from the start, below a tenth of eps.

    ## Look-alikes
    A channel that ``torch.nn.utils.prune`` has masked is left out. A zero-initialized branch in its first steps was
    never alive, so it is an info. A small scale of the input under a large eps (1e-3) is no collapse: the channels
    vary, and gamma makes up for it. Pixels that are always black, where the layer normalizes the input itself, are no
    fault of the network.

    ## References
    Cadene/pretrained-models.pytorch#99; deepinsight/insightface#277.
    """

    code: ClassVar[str] = "BN105"
    name: ClassVar[str] = "variance-collapse"
    severity: ClassVar[Severity] = Severity.WARNING
    holds: ClassVar[bool] = True

    eps_factor: float = FLAT
    alive_factor: float = ALIVE
    warn_share: float = 0.05
    error_share: float = 0.25
    flat_share: float = 0.25
    whole_share: float = 0.9
    relu_warn_share: float = 0.33
    relu_error_share: float = 0.75
    few: int = 2
    constant: float = 0.01

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with collapsed channels."""
        layers, eps = window.layers, window.layers.eps_by_channel
        running = window.running_var[-1]
        batch = typical_variance(window)
        frozen = ~window.training[-1]
        if frozen.any():
            # A frozen layer normalizes with its running variance, whatever its batches are.
            batch = running.where(frozen[layers.owner], batch)
        if bool((batch - self.eps_factor * eps).amin() >= 0):
            return []
        low = batch < self.eps_factor * eps
        if not low.any():
            return []
        # What a frozen layer has lost, it lost in another training, unless that is the whole of it.
        some = low & ~frozen[layers.owner]
        level = window.baseline.log_var - eps.log()
        # Above the upper bound it would be known to have been alive.
        usual = (level > math.log(self.eps_factor)) & (level <= math.log(self.alive_factor))
        alive = window.baseline.alive | (usual & (batch < self.constant * eps))
        settled = some & (running < self.eps_factor * eps)
        ready = warm(window)[-1][layers.owner]
        masks = {
            "fell": settled & alive,
            "gone": settled & (batch < eps) & (running < eps) & alive,
            "flat": settled & ~alive & (batch < self.constant * eps.clamp(max=USUAL_EPS)) & ready,
            "small": settled & ~alive & ready,
            "low": some & alive,
        }
        whole = self._whole(window, batch, alive, frozen)
        masks["whole"] = (batch < eps) & whole[layers.owner]
        found = whole | layers.segments.any(masks["low"] | masks["small"])
        # With thousands of findings, one call of PyTorch for each would take most of the time.
        channels = {name: mask.numpy() for name, mask in masks.items()}
        known = {name: (mask & (settled | whole[layers.owner])).numpy() for name, mask in masks.items()}
        below, variance = (variances(window) < self.eps_factor * eps).numpy(), batch.numpy()
        shares = {name: share(mask, window).tolist() for name, mask in masks.items()}
        closing, on_input = _places(window)

        findings = []
        for layer in found.nonzero().flatten().tolist():
            span, size = layers.span(layer), layers.channels[layer]
            mine = {name: shares[name][layer] for name in masks}
            judged, severity, limit = self._judge(mine, size, closing[layer], on_input[layer])
            pruned = _pruned(window, layer) if severity is not Severity.INFO else None
            if pruned is not None:
                for name, mask in channels.items():
                    mask[span] &= ~pruned
                    mine[name] = int(mask[span].sum()) / int((~pruned).sum())
                mine["whole"] *= mine["whole"] >= self.whole_share
                judged, severity, limit = self._judge(mine, int((~pruned).sum()), closing[layer], on_input[layer])
                if not channels[judged][span].any():
                    continue
            where = channels[judged][span].nonzero()[0]
            step = window.steps[int(below[:, span][:, where].any(1).argmax())]
            lowest = float(variance[span][where].min())
            certain = bool(known[judged][span][where].any())
            named = tuple(where.tolist())
            findings.append(self._finding(window, layer, judged, named, lowest, step, severity, limit, certain))
        return findings

    def _whole(self, window: Window, batch: Tensor, alive: Tensor, frozen: Tensor) -> Tensor:
        """Layers that are below eps as a whole, and were not always near it: ``[L]`` bool."""
        eps = window.layers.eps_by_channel
        ready = frozen | (window.baseline.updates >= LEAST_WARM_UP)
        below = (batch < eps) & (alive | (batch < 0.1 * eps))
        whole: Tensor = ready & (share(below, window) >= self.whole_share)
        return whole

    def _judge(
        self, shares: dict[str, float], channels: int, closing: bool, on_input: bool
    ) -> tuple[str, Severity, float]:
        """Which channels of a layer are told of, how bad that is, and the share that it was compared with."""
        if shares["whole"] > 0 and not on_input:
            return "whole", Severity.ERROR, self.whole_share
        warn, error = (self.relu_warn_share, self.relu_error_share) if closing else (self.warn_share, self.error_share)
        fell, flat = (shares[name] if round(shares[name] * channels) >= self.few else 0.0 for name in ("fell", "flat"))
        if on_input:
            judged = next((name for name in ("fell", "small") if shares[name] > 0), "low")
            return judged, Severity.INFO, 0.0
        if fell > error:
            return "fell", Severity.ERROR, error
        if fell > warn:
            return "fell", Severity.WARNING, warn
        if shares["gone"] > 0 and not closing:
            return "gone", Severity.WARNING, 0.0
        if flat >= (self.relu_error_share if closing else self.flat_share):
            return "flat", Severity.WARNING, self.relu_error_share if closing else self.flat_share
        judged = next((name for name in ("fell", "flat", "small") if shares[name] > 0), "low")
        return judged, Severity.INFO, 0.0

    def _finding(
        self,
        window: Window,
        layer: int,
        judged: str,
        channels: tuple[int, ...],
        lowest: float,
        step: int,
        severity: Severity,
        limit: float,
        certain: bool,
    ) -> Finding:
        eps, size = window.layers.eps[layer], window.layers.channels[layer]
        part = len(channels) / size
        some = f"{count(len(channels), 'channel')} of {size}"
        bound = f", limit {number(100 * limit)} %" if limit and len(channels) > 1 else ""
        what = {
            "whole": f"nearly the whole layer varies less than eps ({some}), so that it puts out little but beta",
            "flat": f"{some} ({number(100 * part)} %{bound}) have been constant from the start",
            "small": f"{some} ({number(100 * part)} %) vary so little, from the start, that eps takes part in their "
            "scale",
        }.get(judged, f"the variance of {some} ({number(100 * part)} %{bound}) has fallen near eps or below")
        return Finding(
            severity=severity,
            layer=layer,
            channels=channels,
            first_step=step,
            value=part,
            threshold=limit,
            certain=certain,
            message=f"{what}: variance {'about 0' if lowest <= 0 else number(lowest)}, eps {number(eps)}"
            f"{run_note(window, layer, step)}",
            advice=_advice(judged, eps, tiny_data=_reads_tiny_data(window, layer)),
        )


def _pruned(window: Window, layer: int) -> np.ndarray | None:
    """``[C]`` of the layer's channels: those that are pruned; None if none is, or all of them."""
    ask = window.facts.pruned
    pruned = None if ask is None else ask(layer, window.layers.channels[layer])
    return None if pruned is None or not pruned.any() or pruned.all() else pruned.numpy()


def _places(window: Window) -> tuple[list[bool], list[bool]]:
    """Layers that a nonlinearity before them may close for good, and those that normalize the input itself.

    A depthwise convolution between both changes nothing: each of its features reads one channel.
    """
    structure = window.facts.structure
    places = structure.places if structure is not None else ()
    if len(places) != len(window.layers):
        return [False] * len(window.layers), [False] * len(window.layers)
    closes = [any(reader.role == "nonlinearity" for reader in place.readers) for place in places]
    closing = [
        any(operation.role == "nonlinearity" for operation in place.between)
        or (any(p.depthwise for p in place.producers) and any(closes[i] for i in place.predecessors))
        for place in places
    ]
    return closing, [place.root and not place.blind and place.distance == 0 for place in places]


def _reads_tiny_data(window: Window, layer: int) -> bool:
    """Whether the layer reads the data through at most one operation with weights, and the newest sample was tiny."""
    data = None if window.sample is None else window.sample.data
    return data is not None and layer < data.shape[-1] and bool(data[0, layer] < TINY)


def _advice(judged: str, eps: float, *, tiny_data: bool) -> str:
    if eps >= NO_MOMENTUM:
        return f"write momentum= if {number(eps)} was to be that: the second argument of BatchNorm is eps, usually 1e-5"
    if judged == "small":
        return "lower eps to 1e-5, or scale up what feeds the layer, unless the training goes well"
    if tiny_data:
        return (
            "check the scale of the input: normalize it by the mean and standard deviation of the training data "
            "(transforms.Normalize(mean, std)), and look for a division by 255 that is done twice"
        )
    return (
        "check what feeds the layer (a ReLU that is never positive, weights decayed to zero, a constant); "
        "lower the learning rate or the weight decay of the layer before"
    )
