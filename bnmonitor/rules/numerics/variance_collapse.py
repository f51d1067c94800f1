"""BN105: channels that no longer vary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import count, number
from bnmonitor.limits import FLAT
from bnmonitor.measures import share, typical_variance, variances, warm
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, run_note
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class VarianceCollapse(Rule):
    """The variance of some channels has fallen so low that eps decides the output.

    ## What it does
    Flags channels that were alive and have a batch variance and a running variance both below ``eps_factor`` times the
    layer's eps. Many such channels in one layer are a warning or an error; a single one is a warning once it is below
    eps itself. Channels that were never alive are an info, unless they make up a quarter of the layer.

    ## Why is this bad?
    The layer divides by ``sqrt(var + eps)``. At ``var = 10 eps`` this already shrinks the output by 5 %, at
    ``var = eps`` by 29 %. Below that the channel outputs the constant beta: it carries no information and passes no
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
    channels alive.

    ## Thresholds
    ``eps_factor = 10``: there the standard deviation of the output is ``sqrt(10 / 11) = .953`` of what it should be.
    ``warn_share = .05`` and ``error_share = .25`` of a layer's channels. ``flat_share = .25`` for channels that were
    flat from the start: several percent are common in healthy depthwise layers. A channel counts as alive once its
    batch variance has been at least 100 eps.

    ## Look-alikes
    A pruned channel, and a zero-initialized branch in its first steps: neither was ever alive, so both are an info.

    ## References
    Cadene/pretrained-models.pytorch#99; deepinsight/insightface#277.
    """

    code: ClassVar[str] = "BN105"
    name: ClassVar[str] = "variance-collapse"
    severity: ClassVar[Severity] = Severity.WARNING
    holds: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset({"BN106", "BN704"})

    eps_factor: float = FLAT
    warn_share: float = 0.05
    error_share: float = 0.25
    flat_share: float = 0.25

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with collapsed channels."""
        layers, eps = window.layers, window.layers.eps_by_channel
        batch = typical_variance(window)
        if bool((batch - self.eps_factor * eps).amin() >= 0):
            return []
        running = window.running_var[-1]
        low = batch < self.eps_factor * eps
        if not low.any():
            return []
        settled = low & (running < self.eps_factor * eps)
        gone = (batch < eps) & (running < eps)
        fell, flat = settled & window.baseline.alive, settled & ~window.baseline.alive & warm(window)[-1][layers.owner]
        fell_share, flat_share = share(fell, window), share(flat, window)
        gone_share = share(gone & window.baseline.alive, window)
        coming = share(low & window.baseline.alive, window) > 0

        # With thousands of findings, one call of PyTorch for each would take most of the time.
        alive = window.baseline.alive
        masks = {"fell": fell, "flat": flat, "gone": gone & alive, "low": low & alive}
        channels = {name: mask.numpy() for name, mask in masks.items()}
        known = {name: (mask & settled).numpy() for name, mask in masks.items()}
        below, variance = (variances(window) < self.eps_factor * eps).numpy(), running.numpy()
        lost_by_layer, never_by_layer, gone_by_layer = fell_share.tolist(), flat_share.tolist(), gone_share.tolist()

        findings = []
        for layer in (coming | (flat_share > 0)).nonzero().flatten().tolist():
            lost, never = lost_by_layer[layer], never_by_layer[layer]
            if lost > self.error_share:
                judged, severity, limit = "fell", Severity.ERROR, self.error_share
            elif lost > self.warn_share:
                judged, severity, limit = "fell", Severity.WARNING, self.warn_share
            elif gone_by_layer[layer] > 0:
                judged, severity, limit = "gone", Severity.WARNING, 0.0
            elif never >= self.flat_share:
                judged, severity, limit = "flat", Severity.WARNING, self.flat_share
            elif never > 0:
                judged, severity, limit = "flat", Severity.INFO, 0.0
            else:
                judged, severity, limit = "low", Severity.INFO, 0.0
            span = layers.span(layer)
            where = channels[judged][span].nonzero()[0]
            step = window.steps[int(below[:, span][:, where].any(1).argmax())]
            lowest = float(variance[span][where].min())
            certain = bool(known[judged][span].any())
            findings.append(self._finding(window, layer, tuple(where.tolist()), lowest, step, severity, limit, certain))
        return findings

    def _finding(
        self,
        window: Window,
        layer: int,
        channels: tuple[int, ...],
        lowest: float,
        step: int,
        severity: Severity,
        limit: float,
        certain: bool,
    ) -> Finding:
        part = len(channels) / window.layers.channels[layer]
        state = "is" if severity is Severity.INFO or limit == self.flat_share else "has fallen"
        return Finding(
            severity=severity,
            layer=layer,
            channels=channels,
            first_step=step,
            value=part,
            threshold=limit,
            certain=certain,
            message=f"the variance of {count(len(channels), 'channel')} ({number(100 * part)} %, limit "
            f"{number(100 * limit)} %) {state} near eps or below: "
            f"running variance {number(lowest)}, eps {number(window.layers.eps[layer])}"
            f"{run_note(window, layer, step)}",
            advice="check what feeds the layer (a ReLU that is never positive, weights decayed to zero, a constant); "
            "lower the learning rate or the weight decay of the layer before",
        )
