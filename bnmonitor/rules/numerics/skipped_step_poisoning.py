"""BN102: a batch whose gradients were thrown away, but not its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import count, number
from bnmonitor.measures import warm
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class SkippedStepPoisoning(Rule):
    """The gradient scaler skipped a step, but the batch of that step had already entered the running statistics.

    ## What it does
    Looks at the steps at which the scaler lowered its scale, which it does when it has thrown the gradients away.
    If a batch statistic of such a step lies far outside the running statistics of a layer that was warm, that is a
    warning; if running statistics stopped being finite, an error. One alert for all layers concerned.

    ## Why is this bad?
    ``scaler.step(optimizer)`` protects the weights from a batch that overflowed. Nothing protects the running
    statistics: the forward wrote to them before anybody looked at the gradients. Training mode does not read them, so
    that only the evaluation goes wrong, and after an infinity it stays wrong for ever.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> import torch
    >>> shift = torch.zeros(64, 3)
    >>> shift[60] = 8.0
    >>> skipped = tuple(step == 60 for step in range(64))
    >>> [finding] = SkippedStepPoisoning().check(make_window(shift=shift, facts={"skipped_steps": skipped}))
    >>> str(finding.severity), finding.first_step, finding.value
    ('warning', 60, 1.6)

    A step that was skipped for its gradients alone, with statistics like those of other batches, stays quiet:

    >>> SkippedStepPoisoning().check(make_window(shift=0.3, facts={"skipped_steps": skipped}))
    []

    ## What to do
    Train in bf16 (``precision="bf16-mixed"``), which needs no scaler. Else keep a copy of the buffers before the
    forward and put it back when the scale has gone down; lower ``init_scale`` of the scaler, or clip the gradients.
    What is poisoned already: ``layer.reset_running_stats()``, then ``torch.optim.swa_utils.update_bn(loader, model)``.

    ## Thresholds
    ``limit_shift = 5`` deviations in the mean and ``limit_ratio = 3`` in the deviation, either way: the final clip
    limits of Batch Renormalization, beyond which a batch counts as telling nothing of the others. In a middle channel
    of the layer: among thousands of channels one is always far out. The value is the larger of the two, by its limit.

    ## Look-alikes
    A scaler begins with a scale that is too large, and skips the first few steps to find a better one: their batches
    are sound, and the layers are not warm yet.

    ## References
    pytorch/pytorch#88474, #90342, #115500; Ioffe, Batch Renormalization, 2017.
    """

    code: ClassVar[str] = "BN102"
    name: ClassVar[str] = "skipped-step-poisoning"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "scaler"})
    exact: ClassVar[bool] = True

    limit_shift: float = 5.0
    limit_ratio: float = 3.0

    def check(self, window: Window) -> list[Finding]:
        """Find the skipped steps whose batch moved the running statistics."""
        skipped = window.facts.skipped_steps
        at = [t for t, was in enumerate(skipped) if was] if len(skipped) == len(window) else []
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
        """How far the middle channel of each warm layer is out, in units of the limit: ``[L]``."""
        segments = window.layers.segments
        mean = segments.median(window.shift[t].abs()) / self.limit_shift
        scale = segments.median(window.ratio[t].log().abs()) / torch.tensor(self.limit_ratio).log()
        return torch.fmax(mean, scale).where(warm(window)[t], 0.0).nan_to_num(0.0, 0.0)

    def _finding(self, window: Window, t: int, hit: torch.Tensor, worst: torch.Tensor | None) -> Finding:
        layers = tuple(hit.nonzero().flatten().tolist())
        scales = window.facts.scales
        scale = f" (its scale is now {number(scales[t])})" if len(scales) == len(window) else ""
        if worst is None:
            value, limit = float(len(layers)), 0.0
            did = f"running statistics of {count(len(layers), 'layer')} stopped being finite"
        else:
            value, limit = round(float(worst.max()), 4), 1.0
            did = f"its batch entered the running statistics, {number(value)} times as far out as is credible"
        return Finding(
            severity=Severity.ERROR if worst is None else Severity.WARNING,
            layer=layers[0],
            layers=layers,
            first_step=window.steps[t],
            value=value,
            threshold=limit,
            message=f"the gradient scaler skipped step {window.steps[t]}{scale}, but {did}",
            advice="train in bf16 (precision='bf16-mixed'), or restore the buffers after a skipped step; then "
            "layer.reset_running_stats() and torch.optim.swa_utils.update_bn(loader, model)",
        )
