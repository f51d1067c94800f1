"""BN606: one batch of data that is far from all others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from bnmonitor._text import number
from bnmonitor.measures import normalizing, samples_normalized, skipped_steps, warm
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Recovery, Window

MAD = 1.4826
"""A Gaussian's standard deviation in units of its median absolute deviation."""

LEAST_SAMPLES = 16
"""Samples from which one of them does not decide what a batch is like."""

LEAST_CHANNELS = 6
"""Channels from which the middle one does not show what one of them does."""


@dataclass(frozen=True, kw_only=True)
class OutlierBatch(Rule):
    """One batch of data is far from the batches before and after it, and is in the running statistics.

    ## What it does
    Judges the layers that see the data, with no other layer before them. Looks for a step whose batch is far from the
    one before, while the batch after it is near to that one again. Weights that jump do not jump back in the next step,
    so what was odd is the data: a broken file, a picture that was not normalized, a sensor that failed.

    ## Why is this bad?
    Training mode divides the batch away, and the loss hardly shows it. The running average keeps it: a batch with a
    hundred times the deviation at momentum .1 is felt for about 90 steps, and every evaluation until then is wrong.

    ## Example
    >>> import torch
    >>> from bnmonitor.testing import make_structure, make_window
    >>> course = torch.ones(64, 3)
    >>> course[60] = 1e4
    >>> [finding] = OutlierBatch().check(make_window(batch_var=course, facts={"structure": make_structure(root=True)}))
    >>> str(finding.severity), finding.first_step, round(finding.value)
    ('warning', 60, 100)

    What changes and stays is not one batch:

    >>> course[60:] = 1e4
    >>> OutlierBatch().check(make_window(batch_var=course, facts={"structure": make_structure(root=True)}))
    []

    ## Code
    Wrong::

        x = load(path)  # now and then pixels from 0 to 255 instead of 0 to 1

    Right::

        x = load(path)
        if not -10 < x.mean() < 10:
            raise ValueError(path)

    ## What to do
    Look at the data of that step. Then estimate the statistics again before the next evaluation
    (:func:`bnmonitor.remedies.recalibrate`), or train on until the average has forgotten the batch.

    ## Thresholds
    ``limit_shift = 5`` deviations in the mean or a factor ``limit_ratio = 3`` in the deviation, in the middle channel,
    as for BN102, and ``wild = 6`` robust deviations of what is usual from step to step, as for BN106: small batches
    vary much. Of fewer than 16 samples, and of fewer than 6 channels, a single far sample decides: the limits are
    larger by 16 over the samples, and threefold. The batch after it must be within a deviation and a factor 1.7 of the
    one before. What the batch moves in the running statistics decides how bad it is, by the limits of BN603: an info
    from ``.25`` deviations or ``.5`` in the log of the variance, a warning from ``warn_shift = 1`` or ``warn_log_ratio
    = 1.4``. At momentum .1 that is 6 times the deviation. Of more odd steps than ``most_share = .1`` none is an
    outlier: BN601 and BN602 judge batches of several kinds.

    ## Look-alikes
    A batch of the usual kind that is smaller varies by less. A dark or empty batch leaves the average nearly as it was.
    Weights that jump, data that change for good (BN106) and updates by evaluations (BN406) do not come back after a
    step. A batch whose step was skipped is BN102's.

    ## References
    Ioffe, Batch Renormalization, 2017, for the limits.
    """

    code: ClassVar[str] = "BN606"
    name: ClassVar[str] = "outlier-batch"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "dataflow"})
    exact: ClassVar[bool] = True
    own: ClassVar[bool] = True
    yields_to: ClassVar[frozenset[str]] = frozenset({"BN101"})

    limit_shift: float = 5.0
    limit_ratio: float = 3.0
    wild: float = 6.0
    back_shift: float = 1.0
    most_share: float = 0.1
    info_shift: float = 0.25
    info_log_ratio: float = 0.5
    warn_shift: float = 1.0
    warn_log_ratio: float = 1.4

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that got such a batch."""
        structure = window.facts.structure
        if structure is None or len(structure.places) != len(window.layers) or len(window) < 3:
            return []
        judged = structure.roots() & normalizing(window) & window.layers.tracked
        found = (self._found(window, layer) for layer in judged.nonzero().flatten().tolist())
        return [finding for finding in found if finding is not None]

    def _found(self, window: Window, layer: int) -> Finding | None:
        span = window.layers.span(layer)
        mean, var = window.batch_mean[:, span], window.batch_var[:, span] + window.layers.eps[layer]
        if not self._may_be_far(window, layer, mean, var):
            return None
        log, scale = var.log() / 2, var[:-2].sqrt()
        wider = (log[1:-1] - log[:-2]).nanmedian(1).values
        shift = ((mean[1:-1] - mean[:-2]).abs() / scale).nanmedian(1).values
        limit, more = math.log(self.limit_ratio), _allowance(window, layer)
        if not ((wider > limit + math.log(more)) | (shift > self.limit_shift * more)).any():
            return None
        known = (window.updates[:, layer] == 1) & (window.recovery[:, layer] <= Recovery.OBSERVED)
        known = known[:-2] & known[1:-1] & known[2:] & warm(window)[1 : len(window) - 1, layer]
        after = (log[2:] - log[:-2]).nanmedian(1).values
        home = ((mean[2:] - mean[:-2]).abs() / scale).nanmedian(1).values
        usual, usually = (float(rows[known].nanmedian()) if known.any() else 0.0 for rows in (wider.abs(), shift))
        odd = wider > max(limit + math.log(more), self.wild * MAD * usual)
        odd |= shift > max(self.limit_shift * more, self.wild * usually)
        odd &= known
        odd &= (after.abs() < limit / 2) & (home < self.back_shift)
        if not odd.any() or float(odd.double().mean()) > self.most_share:
            return None
        odd[[t - 1 for t in skipped_steps(window) if 0 < t <= len(odd)]] = False
        momentum = window.momentum[1:-1, layer].nan_to_num(0.0)
        moved = momentum * shift, (1 - momentum + momentum * (2 * wider).exp()).log()
        harm = torch.maximum(moved[0] / self.info_shift, moved[1] / self.info_log_ratio).where(odd, 0.0)
        at = int(harm.nan_to_num(0.0).argmax())
        if not float(harm[at]) > 1:
            return None
        far, ratio = float(shift[at]), float(wider[at].exp())
        return self._finding(window, layer, at + 1, far, ratio, [float(m[at]) for m in moved])

    def _may_be_far(self, window: Window, layer: int, mean: torch.Tensor, var: torch.Tensor) -> bool:
        """Whether most channels may be far from the step before in any step: to count them is cheaper than a median."""
        m, v, more = mean.numpy(), var.numpy(), _allowance(window, layer)
        # The rounding of a logarithm must not decide. NaN may be far.
        wide, far = 0.999 * (more * self.limit_ratio) ** 2, 0.999 * more * self.limit_shift
        with np.errstate(all="ignore"):
            near = v[1:-1] / wide <= v[:-2], np.abs(m[1:-1] - m[:-2]) <= far * np.sqrt(v[:-2])
        return any(bool((2 * each.sum(1) <= each.shape[1]).any()) for each in near)

    def _finding(self, window: Window, layer: int, at: int, shift: float, ratio: float, moved: list[float]) -> Finding:
        serious = moved[0] > self.warn_shift or moved[1] > self.warn_log_ratio
        by_mean = shift / self.limit_shift > ratio / self.limit_ratio
        rate = float(window.momentum[at, layer])
        # The excess of the variance shrinks by 1 - momentum in a step, until a tenth is left of the usual variance.
        left = max(moved[0], math.expm1(moved[1])) / 0.1
        felt = math.log(max(left, 2.0)) / -math.log1p(-min(rate, 0.99))
        return Finding(
            severity=Severity.WARNING if serious else Severity.INFO,
            layer=layer,
            first_step=window.steps[at],
            value=shift if by_mean else ratio,
            threshold=self.limit_shift if by_mean else self.limit_ratio,
            message=f"the batch of step {window.steps[at]} is far from those before and after it: {number(ratio)}× "
            f"their deviation, the mean {number(shift)} deviations away; the running statistics remember it for about "
            f"{number(round(felt))} steps",
            advice="look at the data of that step (a broken file, a missing normalization); before an evaluation "
            "estimate the statistics again: bnmonitor.remedies.recalibrate(model, loader)",
        )


def _allowance(window: Window, layer: int) -> float:
    """How much larger the limits are for a layer, where one sample or one channel decides."""
    size = float(samples_normalized(window)[layer])
    few = 3.0 if window.layers.channels[layer] < LEAST_CHANNELS else 1.0
    return few * (max(1.0, LEAST_SAMPLES / size) if size > 0 else 1.0)
