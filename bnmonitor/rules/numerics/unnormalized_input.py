"""BN108: input data that was not normalized."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from bnmonitor._text import number
from bnmonitor.limits import FLAT, RAW
from bnmonitor.measures import median, middle_over_steps, newest, sampled_input, typical_variance
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class UnnormalizedInput(Rule):
    """The first layer of the network appears to receive data that was not normalized.

    ## What it does
    Looks at the layers that have no other normalization upstream, and at most one operation with weights between the
    network's input and themselves. On sampled steps the data itself is looked at, as that operation reads it: it is an
    info if the median channel has a large mean square or a mean of many standard deviations. Where the data cannot be
    seen, the batch variance and mean of the layer are judged alike, if they were so from the start. It is a warning
    where this does harm: in fp16, or if the layer is frozen with running statistics of other data.

    ## Why is this bad?
    The layer divides any scale away, so the loss does not show a forgotten ``/ 255`` or ``Normalize``. But the
    convolution before the layer gets gradients of that scale, fp16 ends at 65 504, and the frozen statistics of a
    pretrained network describe data that was normalized.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = UnnormalizedInput().check(make_window(batch_var=4.6e3, level=4.6e3, chain=True))
    >>> str(finding.severity), finding.value
    ('info', 4600.0)

    The scale that normalized data has after a default initialization stays quiet:

    >>> UnnormalizedInput().check(make_window(batch_var=2.0, running_var=2.0, chain=True))
    []

    ## Code
    Wrong::

        x = torch.from_numpy(image).float()  # pixels from 0 to 255

    Right::

        x = (torch.from_numpy(image).float() / 255 - mean) / std

    ## What to do
    Normalize the input by the mean and standard deviation of the training data, or by those that a pretrained network
    was trained with: ``torchvision.transforms.v2.Normalize``. Look for a division by 255 that is missing, or done
    twice.

    ## Thresholds
    ``limit_variance = 1e3``: normalized data has a mean square of about 1, and so has what a default initialization
    makes of it; images from 0 to 255 have 1e4 and more, and about 5e3 behind a convolution. ``limit_offset = 5``
    standard deviations between the mean and zero.
    ``frozen_shift = .5`` standard deviations, or ``frozen_log_ratio = .7`` in the log of the standard deviation,
    between the statistics of a frozen layer and its input, in the median of the sampled batches. These must have shown
    ``least_samples = 32`` samples together: large images are looked at in part.

    ## Look-alikes
    Some networks take raw pixels by design, and some use the layer itself to normalize their input; so this is only an
    info. Weights that are too large make the batch variance large, and not the data. BN106 and BN107 judge a variance
    or mean that has grown during training.

    ## References
    Megvii-BaseDetection/YOLOX#736; matterport/Mask_RCNN#573; TuSimple/mx-maskrcnn#127; tensorflow/tensorflow#44371.
    """

    code: ClassVar[str] = "BN108"
    name: ClassVar[str] = "unnormalized-input"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[frozenset[str]] = frozenset({"dataflow"})

    limit_variance: float = RAW
    limit_offset: float = 5.0
    frozen_shift: float = 0.5
    frozen_log_ratio: float = 0.7
    least_samples: int = 32

    def check(self, window: Window) -> list[Finding]:
        """Find the first layers with a large variance or mean."""
        structure = window.facts.structure
        if structure is None or len(structure.places) != len(window.layers):
            return []
        first = structure.near_input
        if not first.any():
            return []
        power, distance = self._data(window)
        known = first & ~power.isnan()
        found = (known & ((power > self.limit_variance) | (distance > self.limit_offset))).nonzero().flatten().tolist()
        hits = [(i, bool(power[i] > self.limit_variance), float(power[i]), float(distance[i])) for i in found]
        unknown = first & ~known
        if not hits and not (unknown.any() and self._suspicious(window, unknown)):
            return []
        mean, var = self._seen(window)
        eps = window.layers.eps_by_channel
        if unknown.any():
            variance = median(var, window)
            offset = median((mean.abs() / (var + eps).sqrt()).where(var > FLAT * eps, torch.nan), window)
            # The baseline shows whether it was so from the start: it follows growth slowly, and is unknown before
            # warm-up.
            level = median(window.baseline.log_var, window).nan_to_num(torch.inf)
            large = (variance > self.limit_variance) & (level > math.log(self.limit_variance / 2))
            far = (offset > self.limit_offset) & (window.baseline.offset.nan_to_num(torch.inf) > self.limit_offset / 2)
            hit = (unknown & (large | far)).nonzero().flatten().tolist()
            hits += [(i, bool(large[i]), float(variance[i]), float(offset[i])) for i in hit]
        return [
            self._finding(window, i, size, offset, large, bool(known[i]), mean, var) for i, large, size, offset in hits
        ]

    def _data(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean square, and distance of the mean from zero, of the data that each layer reads: the middle sample."""
        rows = [data for _, data in self._samples(window)]
        if not rows:
            return (torch.full((len(window.layers),), torch.nan, device="cpu"),) * 2
        power, distance = torch.stack(rows).nanmedian(0).values
        return power, distance

    def _samples(self, window: Window) -> list[tuple[int, torch.Tensor]]:
        """Step, and mean square and distance of the data, of each sample that is kept."""
        samples = [*window.earlier, *([] if window.sample is None else [window.sample])]
        return [(s.step, s.data) for s in samples if s.data is not None and s.data.shape[-1] == len(window.layers)]

    def _began(self, window: Window, layer: int, row: int, limit: float) -> int:
        """The first sampled step after the last one with less; the window's first if there was none."""
        since = window.steps[0]
        for step, data in reversed(self._samples(window)):
            if float(data[row, layer]) <= limit:
                return max(since, window.steps[0])
            since = step
        return window.steps[0]

    def _suspicious(self, window: Window, first: torch.Tensor) -> bool:
        """Whether any channel of the first layers has a large variance or mean: a cheap test before the full one."""
        return any(self._any_large(window, layer) for layer in first.nonzero().flatten().tolist())

    def _any_large(self, window: Window, layer: int) -> bool:
        mean, var = (rows.numpy() for rows in self._seen(window, window.layers.span(layer)))
        with np.errstate(all="ignore"):
            far = np.abs(mean) / np.sqrt(var + np.float32(window.layers.eps[layer])) > self.limit_offset
            return bool(far.any() or (var > self.limit_variance).any())

    def _seen(self, window: Window, at: slice | torch.Tensor = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of the input by channel: from the buffers or, if these do not change, from samples."""
        mean = middle_over_steps(window.batch_mean[newest(window)][:, at])
        var = typical_variance(window)[at]
        unknown = (mean + var).isnan()
        if window.sample is None or not unknown.any():
            return mean, var
        seen = sampled_input(window)
        enough = unknown & (seen.count >= self.least_samples)[window.layers.owner[at]]
        return torch.where(enough, seen.mean[at], mean), torch.where(enough, seen.var[at], var)

    def _finding(
        self,
        window: Window,
        layer: int,
        size: float,
        offset: float,
        large: bool,
        seen: bool,
        mean: torch.Tensor,
        var: torch.Tensor,
    ) -> Finding:
        sample, span = window.sample, window.layers.span(layer)
        half = sample is not None and sample.input_dtypes[layer : layer + 1] == (torch.float16,)
        frozen = not bool(window.training[-1, layer]) and self._differs(window, span, mean, var)
        harm = "; it is fp16, which ends at 65 504" if half else ""
        harm = f"{harm}; the frozen statistics of the layer are of other data" if frozen else harm
        offset_says = f"the {'' if seen else 'batch '}mean is {number(offset)} standard deviations from zero"
        size_says = f"the {'mean square' if seen else 'batch variance'} is {number(size)}"
        what = size_says if large else offset_says
        limit = self.limit_variance if large else self.limit_offset
        return Finding(
            severity=Severity.WARNING if half or frozen else Severity.INFO,
            layer=layer,
            first_step=self._began(window, layer, 0 if large else 1, limit) if seen else window.steps[0],
            value=round(size if large else offset, 6),
            threshold=limit,
            message=f"the input of the network looks unnormalized: {what} in the median channel "
            f"(limit {number(limit)}){harm}",
            advice="normalize the input by the mean and standard deviation of the training data "
            "(transforms.Normalize(mean, std)); look for a missing division by 255",
        )

    def _differs(self, window: Window, span: slice, mean: torch.Tensor, var: torch.Tensor) -> bool:
        eps = window.layers.eps_by_channel[span]
        own_mean, own_var = window.running_mean[-1, span], window.running_var[-1, span] + eps
        shift = ((mean[span] - own_mean) / own_var.sqrt()).abs().nanmedian()
        ratio = (0.5 * ((var[span] + eps) / own_var).log()).abs().nanmedian()
        return bool(shift > self.frozen_shift) or bool(ratio > self.frozen_log_ratio)
