"""BN103: activations close to the largest number of fp16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import count, number
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, rate_note, sampled
from bnmonitor.window import Window

LARGEST = torch.finfo(torch.float16).max
"""The largest number in fp16, 65 504."""


@dataclass(frozen=True, kw_only=True)
class HalfPrecisionHeadroom(Rule):
    """The fp16 input of a layer is near the largest number that fp16 can hold.

    ## What it does
    On sampled steps, takes the largest absolute value of each layer's input, if that input is fp16.

    ``bnmonitor audit`` notes statistics and parameters that fp16 could not hold, should the model be converted.

    ## Why is this bad?
    fp16 ends at 65 504. The layer normalizes any scale away, so nothing keeps the output of the convolution before it
    small. Autocast passes that output on as it is: beyond the end of fp16 it is infinite, the running mean becomes
    infinite with it, and every later evaluation returns NaN (BN101).

    ## Example
    >>> from bnmonitor.testing import make_sample, make_window
    >>> import torch
    >>> window = make_window()
    >>> sample = make_sample(window.layers, dtype=torch.float16, input={"max": [9.0, 2e4, 8.0]})
    >>> [finding] = HalfPrecisionHeadroom().check(make_window(sample=sample))
    >>> str(finding.severity), finding.channels, finding.value
    ('warning', (1,), 20000.0)

    The same values in bf16, which has the range of float32, stay quiet:

    >>> sample = make_sample(window.layers, dtype=torch.bfloat16, input={"max": [9.0, 2e4, 8.0]})
    >>> HalfPrecisionHeadroom().check(make_window(sample=sample))
    []

    ## Code
    Wrong::

        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(images)  # pixels from 0 to 255

    Right::

        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model((images / 255 - mean) / std)

    ## What to do
    Train in bf16: ``precision="bf16-mixed"`` or ``torch.autocast(dtype=torch.bfloat16)``. Otherwise keep the layer
    before in float32 (``with torch.autocast("cuda", enabled=False)``), normalize the input of the network, or put
    weight decay on the weights that have grown.

    ## Thresholds
    ``warn_above = 6.5e3``, a tenth of the range: near the peak of the learning rate, a batch with ten times the usual
    values is not rare. ``error_above = 3.2e4``, half of the range.

    ## Look-alikes
    A single large value in the raw data: the danger is the same.

    ## References
    pytorch/pytorch#88929, #75478; open-mmlab/mmcv#1910.
    """

    code: ClassVar[str] = "BN103"
    name: ClassVar[str] = "half-precision-headroom"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"samples"})

    warn_above: float = 6.5e3
    error_above: float = 3.2e4

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with an fp16 input near the end of its range."""
        sample = window.sample
        if sample is None or torch.float16 not in sample.input_dtypes:
            return []
        half = torch.tensor([d == torch.float16 for d in sample.input_dtypes], device="cpu")
        largest = torch.fmax(sample.input.min.abs(), sample.input.max.abs())
        worst = window.layers.segments.max(largest)
        at = (half & (worst > self.warn_above)).nonzero().flatten().tolist()
        return [self._finding(window, layer, float(worst[layer]), largest) for layer in at]

    def _finding(self, window: Window, layer: int, worst: float, largest: torch.Tensor) -> Finding:
        error = worst > self.error_above
        channels = window.layers.locate(largest > self.warn_above, layer)
        step = sampled(window)
        everywhere = len(channels) == window.layers.channels[layer]
        limit = self.error_above if error else self.warn_above
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            channels=() if everywhere else channels,
            first_step=step,
            value=worst,
            threshold=limit,
            message=f"the fp16 input reaches {number(worst)} in {count(len(channels), 'channel')} (limit "
            f"{number(limit)}):"
            f" a value {number(LARGEST / worst)} times as large is infinite in fp16{rate_note(window, step)}",
            advice="train in bf16 (precision='bf16-mixed'), or run the layer before in float32: "
            "torch.autocast('cuda', enabled=False)",
        )
