"""What the sampled steps showed of each layer's input, over all samples that are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnmonitor.measures.moments import looked_at
from bnmonitor.measures.reductions import once_of_rows
from bnmonitor.window import Sample, Window


@dataclass(frozen=True)
class SampledInput:
    """The input of each layer in the sampled batches.

    Attributes:
        mean: ``[C]`` median over the batches of the mean; NaN where none was sampled.
        var: ``[C]`` median over the batches of the variance, alike.
        count: ``[L]`` int64, independent samples that were really looked at, in all of them together: images, not
            pixels, and not those of the batch that were left out.
    """

    mean: Tensor
    var: Tensor
    count: Tensor


@once_of_rows
def sampled_input(window: Window) -> SampledInput:
    """Return what the kept samples together show of each layer's input."""
    samples = [*window.earlier, *([] if window.sample is None else [window.sample])]
    if not samples:
        unknown = torch.full((window.layers.total,), torch.nan, device="cpu")
        return SampledInput(unknown, unknown, torch.zeros(len(window.layers), dtype=torch.int64, device="cpu"))
    looks = [sampled_batch(sample, window) for sample in samples]
    mean, var = (torch.stack([getattr(look, name) for look in looks]).nanmedian(0).values for name in ("mean", "var"))
    return SampledInput(mean, var, torch.stack([look.count for look in looks]).sum(0))


def sampled_batch(sample: Sample, window: Window) -> SampledInput:
    """Return the same of one sampled step, from the part of its batch that shows more samples."""
    looked = sample.looked.expand(len(window.layers))
    whole = torch.tensor([looked_at(size) for size in sample.size.tolist()], device="cpu")
    called = sample.calls > 0
    if sample.level is None:
        return SampledInput(sample.input.mean, sample.input.var, looked.where(called, 0))
    # The variance of a few images is that within an image: that between images is missing.
    wide = (whole > looked)[window.layers.owner]
    mean = torch.where(wide, sample.level, sample.input.mean)
    var = torch.where(wide, sample.input.var + sample.between.nan_to_num(0.0), sample.input.var)
    return SampledInput(mean, var, torch.maximum(whole, looked).where(called, 0))
