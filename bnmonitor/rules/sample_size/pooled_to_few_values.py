"""BN202: a layer with few values after a pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import number
from bnmonitor.measures import normalizing, processes, trunk
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class PooledToFewValues(Rule):
    """A layer normalizes over a handful of values per channel, while others of the model see plenty.

    ## What it does
    Takes the number of values per channel that each layer sees in a call: samples times positions. Flags the layers
    that see few, while the median layer of the trunk has enough; the trunk is the layers that see several positions of
    each sample. One alert, under the first of these layers.

    ## Why is this bad?
    In the trunk of a convolutional network a batch of 8 images gives thousands of values per channel. After a global
    pooling it gives 8: the mean is off by a third of a standard deviation, and the variance by half. Squeeze-and-excite
    branches, pooled pyramids and projection heads are the weakest layers of a network, and the first to fail on a last
    batch of one.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> import torch
    >>> values = torch.tensor([8192.0, 8192.0, 8.0])
    >>> [finding] = PooledToFewValues().check(make_window(channels=(4, 4, 4), sizes=8, values=values))
    >>> str(finding.severity), finding.layer, finding.value
    ('warning', 2, 8.0)

    A network without positions, in which all layers see equally many values, is left to BN201:

    >>> PooledToFewValues().check(make_window(channels=(4, 4, 4), sizes=8, values=8))
    []

    ## Code
    Wrong::

        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(512))  # one value a sample

    Right::

        head = nn.Sequential(nn.BatchNorm2d(512), nn.AdaptiveAvgPool2d(1))

    ## What to do
    Remove the normalization after the pooling, or use ``GroupNorm`` or ``LayerNorm`` there: with one value per channel
    and sample, ``GroupNorm(1, channels)``. Otherwise use a larger batch, or ``Trainer(sync_batchnorm=True)``.

    ## Thresholds
    ``warn_below = 16`` and ``error_below = 4`` values per channel: the mean is off by 25 % and 50 % of a standard
    deviation, as for BN201, without further positions to reduce the error. The median layer has ``contrast = 4`` times
    as many values.

    ## Look-alikes
    A head on the features of 64 samples or more has enough.

    ## References
    pytorch/vision#1491; zhanghang1989/ResNeSt#46; VainF/DeepLabV3Plus-Pytorch#27.
    """

    code: ClassVar[str] = "BN202"
    name: ClassVar[str] = "pooled-to-few-values"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"samples"})
    exact: ClassVar[bool] = True

    warn_below: int = 16
    error_below: int = 4
    contrast: float = 4.0

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that see far fewer values than the rest of the model."""
        values = window.baseline.values * processes(window)
        judged = normalizing(window) & values.isfinite()
        if not judged.any():
            return []
        usual = float(values[trunk(window, judged)].nanmedian())
        few = judged & (values < max(self.warn_below, self.error_below)) & (values * self.contrast <= usual)
        layers = tuple(sorted(few.nonzero().flatten().tolist(), key=lambda i: float(values[i])))
        if not layers:
            return []
        least = float(values[layers[0]])
        error = least < self.error_below
        limit = self.error_below if error else self.warn_below
        return [
            Finding(
                severity=Severity.ERROR if error else Severity.WARNING,
                layer=layers[0],
                layers=layers,
                first_step=window.steps[0],
                value=least,
                threshold=float(limit),
                message=f"only {number(least)} values per channel are normalized together (fewer than {limit}), while "
                f"the median layer of the trunk sees {number(usual)}: the mean of a batch is off by "
                f"{number(100 / least**0.5)} % of a standard deviation",
                advice="remove the normalization after the pooling, or use GroupNorm(1, channels) there; otherwise "
                "use a larger batch, or Trainer(sync_batchnorm=True) on several devices",
            )
        ]
