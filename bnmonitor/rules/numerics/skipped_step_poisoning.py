"""BN102: a skipped step with a batch that still entered the running statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import count, number
from bnmonitor.measures import skipped_steps, warm
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class SkippedStepPoisoning(Rule):
    """An optimizer step was skipped, but the batch of that step had already entered the running statistics.

    ## What it does
    Looks at the steps at which the gradient scaler lowered its scale, which it does after it has discarded the
    gradients. Where no scaler is known, it looks at the few steps in which running statistics moved and neither gamma
    nor beta of any layer did: a guard against NaN or against large gradients has skipped them. It is a warning if a
    batch statistic of such a step lies far outside the running statistics of a layer that was warm. It is an error if
    running statistics stopped being finite. Opens one alert for all affected layers.

    ## Why is this bad?
    ``scaler.step(optimizer)`` protects the weights from a batch that overflowed. Nothing protects the running
    statistics: the forward pass wrote them before the scaler checked the gradients. Training mode does not read them,
    so only evaluation goes wrong, and after an infinity it stays wrong forever.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> import torch
    >>> shift = torch.zeros(64, 3)
    >>> shift[60] = 8.0
    >>> skipped = tuple(step == 60 for step in range(64))
    >>> [finding] = SkippedStepPoisoning().check(make_window(shift=shift, facts={"skipped_steps": skipped}))
    >>> str(finding.severity), finding.first_step, finding.value
    ('warning', 60, 1.6)

    A step skipped only for its gradients, with batch statistics like those of other steps, stays quiet:

    >>> SkippedStepPoisoning().check(make_window(shift=0.3, facts={"skipped_steps": skipped}))
    []

    ## Code
    Wrong::

        Trainer(precision="16-mixed")  # a skipped step leaves its batch in the running statistics

    Right::

        Trainer(precision="bf16-mixed")  # needs no scaler, skips no step

    ## What to do
    Train in bf16 (``precision="bf16-mixed"``), which needs no scaler. Otherwise copy the buffers before the forward
    pass and restore them when the scale has gone down; lower ``init_scale`` of the scaler, or clip the gradients. To
    repair running statistics that are already damaged, call ``layer.reset_running_stats()``, then
    ``torch.optim.swa_utils.update_bn(loader, model)``.

    ## Thresholds
    ``limit_shift = 5`` standard deviations in the mean and a factor ``limit_ratio = 3`` in the standard deviation, up
    or down: these are the final clip limits of Batch Renormalization, and a batch beyond them says nothing about the
    others. The median channel of the layer is judged, because among thousands of channels one is always far out. The
    reported value is the larger of the two distances, each divided by its limit.

    ## Look-alikes
    With gradient accumulation, or in a GAN, most steps move no parameter of some network: without a scaler, skipped
    steps are judged while they are at most ``most_skipped = .25`` of the window. A scaler begins with a scale that is
    too large and skips the first few steps to find a better one. The batches of these steps are normal, and the layers
    are not warm yet.

    ## References
    pytorch/pytorch#88474, #90342, #115500; Ioffe, Batch Renormalization, 2017.
    """

    code: ClassVar[str] = "BN102"
    name: ClassVar[str] = "skipped-step-poisoning"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers"})
    exact: ClassVar[bool] = True

    limit_shift: float = 5.0
    limit_ratio: float = 3.0
    most_skipped: float = 0.25

    def check(self, window: Window) -> list[Finding]:
        """Find the skipped steps with a batch that changed the running statistics."""
        at = skipped_steps(window, self.most_skipped)
        for t in at:
            lost = self._not_finite(window, t) & (~self._not_finite(window, t - 1) if t else True)
            if lost.any():
                return [self._finding(window, t, lost, None)]
        far = [(t, self._distance(window, t)) for t in at]
        hit = [(t, distance) for t, distance in far if (distance > 1).any()]
        if not hit:
            return []
        t, _ = hit[0]
        worst = torch.stack([distance for _, distance in hit]).amax(0)
        return [self._finding(window, t, worst > 1, worst)]

    def _not_finite(self, window: Window, t: int) -> torch.Tensor:
        finite = window.running_mean[t].isfinite() & window.running_var[t].isfinite()
        tracking = torch.tensor(window.layers.tracking, dtype=torch.bool, device="cpu")
        return window.layers.segments.any(~finite) & tracking

    def _distance(self, window: Window, t: int) -> torch.Tensor:
        """Distance of each warm layer's median channel from its running statistics, over the limit: ``[L]``."""
        segments = window.layers.segments
        mean = segments.median(window.shift[t].abs()) / self.limit_shift
        scale = segments.median(window.ratio[t].log().abs()) / math.log(self.limit_ratio)
        return torch.fmax(mean, scale).where(warm(window)[t], 0.0).nan_to_num(0.0, 0.0)

    def _finding(self, window: Window, t: int, hit: torch.Tensor, worst: torch.Tensor | None) -> Finding:
        far = torch.zeros_like(hit, dtype=torch.float32) if worst is None else worst
        layers = tuple(sorted(hit.nonzero().flatten().tolist(), key=lambda i: -float(far[i])))
        scales = window.facts.scales
        scale = f" (its scale is now {number(scales[t])})" if len(scales) == len(window) else ""
        if worst is None:
            value, limit = float(len(layers)), 0.0
            did = f"the running statistics of {count(len(layers), 'layer')} stopped being finite"
        else:
            value, limit = round(float(worst.max()), 4), 1.0
            did = f"its batch entered the running statistics, {number(value)} times the credible distance from them"
        return Finding(
            severity=Severity.ERROR if worst is None else Severity.WARNING,
            layer=layers[0],
            layers=layers,
            first_step=window.steps[t],
            value=value,
            threshold=limit,
            message=f"the gradient scaler skipped step {window.steps[t]}{scale}, but {did}"
            if window.facts.skipped_steps
            else f"step {window.steps[t]} moved no parameter (it was skipped), but {did}",
            advice=(
                "train in bf16 (precision='bf16-mixed'), or restore the buffers after a skipped step"
                if window.facts.skipped_steps
                else "copy the buffers before the forward and restore them where the step is skipped"
            )
            + "; then call layer.reset_running_stats() and torch.optim.swa_utils.update_bn(loader, model)",
        )
