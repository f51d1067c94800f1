"""Batch variances as far as a judgement needs them: also those that are too small to be recovered exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from bnmonitor.window import Window


def variances(
    window: Window, rows: slice = slice(None), channels: slice = slice(None), *, least: bool = False
) -> Tensor:
    """Return some steps of the batch variance, in which what rounding hides is as large as it may be.

    A batch variance far below the running one is withheld from the record, as rounding may change it by more than 1 %.
    Its ratio to the running variance is known all the same, and says that it is next to nothing: no more than what
    rounds to no change. After a leap of the running variance to 1e10 that is not next to nothing for the layer.

    Args:
        window: The window.
        rows: The steps.
        channels: The channels.
        least: Count what rounding hides as small as its ratio to the running variance says, as what judges large
            variances has to.

    Returns:
        ``[T', C']``; NaN where nothing is known of the batch.
    """
    known = window.batch_var[rows, channels]
    # The averages are carried along only where all but the first row is known.
    complete = window.averages is not None and rows.indices(len(window))[0] > 0
    if complete or not bool(known.sum().isnan()):
        return known
    owner, eps = window.layers.owner[channels], window.layers.eps_by_channel[channels]
    momentum = window.momentum[rows].nan_to_num(0.0).clamp(0.0, 0.9999).to(known.dtype)[:, owner]
    # A small batch leaves of the running variance what its update keeps of it.
    before = window.running_var[rows, channels] / (1 - momentum)
    rough = (window.ratio[rows, channels].square() * (before + eps) - eps).clamp(min=0)
    if not least:
        rounding = before * (torch.finfo(known.dtype).eps / 2) / momentum.clamp(min=1e-4)
        rough = torch.maximum(rough, rounding)
    return known.where(~known.isnan(), rough)
