"""BN104: running statistics in half precision that cannot follow their updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import listing, number
from bnmonitor.measures import median, normalizing, sampled_batch
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class HalfPrecisionBuffers(Rule):
    """Running statistics are kept in half precision, and rounding loses their updates.

    ## What it does
    Flags layers in training with running statistics in bf16 or fp16 and a momentum so small that rounding loses the
    update. Also flags such a layer at any momentum if its running statistics did not change over the whole window
    although a sampled batch was far from them. Opens one alert for all affected layers.

    ``bnmonitor audit`` reports values of a float16 file at 65504, the largest of that type, as an error.

    ## Why is this bad?
    An update adds ``momentum * (batch - running)``. bf16 keeps 8 bits: an addend smaller than half of the last bit
    leaves the running value unchanged. The running statistics stop short of the true value and stay there. Measured in
    bf16, a true mean of 5 was estimated as 3.3 at momentum .01, and as 2 at .001.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> import torch
    >>> half = {"buffer_dtypes": (torch.bfloat16,)}
    >>> [finding] = HalfPrecisionBuffers().check(make_window(momentum=0.01, facts=half))
    >>> str(finding.severity), finding.value
    ('warning', 0.01)

    Float32 buffers, which autocast keeps, stay quiet:

    >>> HalfPrecisionBuffers().check(make_window(momentum=0.01, facts={"buffer_dtypes": (torch.float32,)}))
    []

    ## Code
    Wrong::

        model = model.bfloat16()  # the running statistics too: a small update is rounded away

    Right::

        model = model.bfloat16()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.float()

    ## What to do
    Keep the layer in float32: call ``layer.float()`` after ``model.half()`` or ``model.bfloat16()``; in Lightning use
    ``precision="bf16-mixed"`` instead of ``"bf16-true"``. Under FSDP, leave normalization out of mixed precision.

    ## Thresholds
    ``warn_bf16_momentum = .05`` and ``warn_fp16_momentum = .002``: an update is lost if
    ``momentum * |batch - running|`` is less than half a unit in the last place, which is ``2^-9`` to ``2^-8`` of the
    value in bf16 and an eighth of that in fp16. In bf16 this is an error of 4 to 8 % at momentum .05, and of 20 to 39 %
    at .01.

    The running statistics count as stalled if they did not change in the median channel over ``least_steps = 16``
    updates, while a sampled batch was ``stall = .1`` standard deviations or more away from the running mean. That
    distance must also be at least three times the error of the mean of that many samples.

    ## Look-alikes
    A layer frozen in evaluation mode may be kept in half precision: it has no updates to add.

    ## References
    facebookresearch/fairscale#442; google-deepmind/dm-haiku#396.
    """

    code: ClassVar[str] = "BN104"
    name: ClassVar[str] = "half-precision-buffers"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers"})
    exact: ClassVar[bool] = True

    warn_bf16_momentum: float = 0.05
    warn_fp16_momentum: float = 0.002
    stall: float = 0.1
    least_steps: int = 16

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that lose updates of their running statistics."""
        dtypes = window.facts.buffer_dtypes
        if not {torch.float16, torch.bfloat16} & set(dtypes):
            return []
        limits = {torch.bfloat16: self.warn_bf16_momentum, torch.float16: self.warn_fp16_momentum}
        limit = torch.tensor([limits.get(d, torch.nan) if d else torch.nan for d in dtypes], device="cpu")
        momentum = window.momentum[-1]
        small = (momentum > 0) & (momentum <= limit + 1e-9)
        stalled, away = self._stalled(window)
        hit = normalizing(window) & limit.isfinite() & (small | stalled)
        layers = tuple(hit.nonzero().flatten().tolist())
        if not layers:
            return []
        first = layers[0]
        still = bool(stalled[first] and not small[first])
        kinds = listing(sorted({str(dtypes[i]).removeprefix("torch.") for i in layers}))
        what = (
            f"the running mean has not changed in {len(window)} steps, {number(float(away[first]))} standard "
            "deviations from the batch"
            if still
            else f"at momentum {number(float(momentum[first]))} rounding loses the updates (limit "
            f"{number(float(limit[first]))})"
        )
        return [
            Finding(
                severity=Severity.WARNING,
                layer=first,
                layers=layers,
                first_step=window.steps[0],
                value=round(float(away[first] if still else momentum[first]), 6),
                threshold=float(self.stall if still else limit[first]),
                message=f"the running statistics are kept in {kinds}: {what}",
                advice="keep the layer in float32: layer.float() after model.half() or model.bfloat16(); in Lightning "
                "use Trainer(precision='bf16-mixed') instead of 'bf16-true'",
            )
        ]

    def _stalled(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """Layers with unchanged running statistics far from the sampled batch, and their distance: ``[L]`` each."""
        sample = window.sample
        if sample is None:
            unknown = torch.full((len(window.layers),), torch.nan, device="cpu")
            return torch.zeros_like(unknown, dtype=torch.bool), unknown
        updated = window.updates.clamp(min=0).sum(0) >= self.least_steps
        moved = median((window.running_mean != window.running_mean[-1]).any(0).float(), window) > 0
        scale = (window.running_var[-1] + window.layers.eps_by_channel).sqrt()
        seen = sampled_batch(sample, window)
        away = median((seen.mean - window.running_mean[-1]).abs() / scale, window)
        credible = (3 / seen.count.clamp(min=1).float().sqrt()).clamp(min=self.stall)
        return updated & ~moved & (away > credible), away
