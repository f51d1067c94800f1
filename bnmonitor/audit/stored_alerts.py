"""What is wrong with layers as they are, where a training would have shown it step by step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bnmonitor._text import count, number, thousands
from bnmonitor.audit.stored import Stored, vanished
from bnmonitor.audit.words import file_alert
from bnmonitor.limits import ALIVE, MANY_DEAD
from bnmonitor.measures import share
from bnmonitor.results import Alert, Severity
from bnmonitor.rules import find

MOSTLY_DEAD = 0.75
"""Share of a layer's channels with a vanished gamma that is a warning: below it, sound networks have such layers."""

USUAL = 0.3
"""Share of the model's usual largest gamma that a layer's has, if its channels began like those of the others."""

GROWING = 1e-3
"""Share of the largest gamma of a layer below which most channels that grow from 0 together do not stay."""

FAR_MEAN = 100.0
"""Distance of the running mean from 0, in standard deviations, that a median channel behind another layer never has."""

FARTHEST_MEAN = 1e4
"""The same of any channel, behind another layer or on raw input."""

LARGEST_HALF = 65504.0
"""The largest number of float16."""

RARELY = 0.05
"""Share of the median layer's updates from which on a layer was updated far less often than the others."""

Say = Callable[[int, int], str]
"""Writes a message, by the position of the first layer and the number of its channels."""


def stored_alerts(stored: Stored) -> list[Alert]:
    """Return what no rule finds that judges a training."""
    return [
        alert
        for judge in (_affine_not_finite, _counts, _half_precision, _offset, _dead)
        for alert in judge(stored)
    ]  # fmt: skip


def _affine_not_finite(stored: Stored) -> list[Alert]:
    gamma, beta = stored.window.gamma[0], stored.window.beta[0]
    bad = ~(gamma.isfinite() & beta.isfinite())
    layers = stored.layers.segments.any(bad)
    return _alerts(
        stored, "BN101", Severity.ERROR, layers, bad, values=bad.double(),
        message=lambda _, amount: f"gamma or beta is NaN or infinite in {count(amount, 'channel')}: so is what the "
        "layer returns",
        advice="go back to a checkpoint from before: weights that are not finite cannot be mended",
    )  # fmt: skip


def _counts(stored: Stored) -> list[Alert]:
    counts, tracked = stored.counts, stored.layers.tracked
    broken = tracked & ((counts < 0) | counts.isinf())
    found = _alerts(
        stored, "BN109", Severity.ERROR, broken,
        message=lambda layer, _: f"num_batches_tracked is {number(float(counts[layer]))}: no layer was updated that "
        "often, so the buffers are damaged, or belong to something else",
        advice="go back to an undamaged copy of the file",
    )  # fmt: skip
    foreign = tracked & (counts == 0) & ~stored.initial
    found += _alerts(
        stored, "BN306", Severity.INFO, foreign,
        message=lambda _, __: "num_batches_tracked is 0, but the statistics are not the initial ones: they were "
        "written by something else than updates, such as a conversion or a file without counts",
        advice="nothing, unless momentum is None: then the next update would discard the statistics",
    )  # fmt: skip
    positive = counts[counts > 0]
    usual = float(positive.median()) if positive.numel() else 0.0
    rare = tracked & (counts > 0) & (counts < RARELY * usual) & ~stored.initial
    return found + _alerts(
        stored, "BN506", Severity.INFO, rare,
        message=lambda layer, _: f"updated {thousands(int(counts[layer]))} times, where the median layer has "
        f"{thousands(int(usual))}: it was added later, or most training steps did not call it",
        advice="check that the layer takes part in training, if it is not new",
    )  # fmt: skip


def _half_precision(stored: Stored) -> list[Alert]:
    """Values at the end of float16, in a file that has it, and in one that does not but may be converted."""
    window = stored.window
    size = torch.maximum(window.running_mean[0].abs(), window.running_var[0])
    size = torch.maximum(size, torch.maximum(window.gamma[0].abs(), window.beta[0].abs()))
    at_end = size >= LARGEST_HALF
    half = torch.tensor([d == torch.float16 for d in window.facts.buffer_dtypes], dtype=torch.bool)
    over = stored.layers.segments.any(at_end)
    found = _alerts(
        stored, "BN104", Severity.ERROR, over & half, at_end, values=size,
        message=lambda _, amount: f"{count(amount, 'channel')} reached 65 504, the largest number of float16: the true "
        "value was larger, and is lost",
        advice="save the layer in float32 (layer.float() after model.half()), or in bfloat16",
    )  # fmt: skip
    finite = at_end & size.isfinite()
    return found + _alerts(
        stored, "BN103", Severity.INFO, stored.layers.segments.any(finite) & ~half, finite, values=size,
        message=lambda _, amount: f"{count(amount, 'channel')} would be infinite in float16, which ends at 65 504",
        advice="keep the layer in float32 when the model is converted: layer.float() after model.half()",
    )  # fmt: skip


def _offset(stored: Stored) -> list[Alert]:
    """Means that dwarf the deviations: what is normalized is then a small difference of large numbers."""
    window, layers = stored.window, stored.layers
    mean, var, eps = window.running_mean[0], window.running_var[0], layers.eps_by_channel
    alive = (var > ALIVE * eps) & ~stored.off & var.isfinite() & mean.isfinite()
    offset = torch.where(alive, mean.abs() / (var + eps).sqrt(), 0.0)
    middle = layers.segments.median(torch.where(alive, offset, torch.nan).nan_to_num(0.0))
    on_input = torch.arange(len(layers)) == 0
    far = ((middle > FAR_MEAN) & ~on_input) | layers.segments.any(offset > FARTHEST_MEAN)
    return _alerts(
        stored, "BN107", Severity.WARNING, far, offset > FAR_MEAN, values=offset,
        message=lambda layer, amount: f"the running mean is {number(float(offset[layers.span(layer)].max()))} standard "
        f"deviations from 0 in the worst of {count(amount, 'channel')}: in bfloat16 and float16 the difference that is "
        "normalized is lost to rounding",
        advice="look at the layer before: a bias that has run away, or statistics of another layer",
        threshold=FAR_MEAN,
    )  # fmt: skip


def _dead(stored: Stored) -> list[Alert]:
    """Channels that gamma has switched off, but not to exactly 0, as pruning does."""
    window, layers = stored.window, stored.layers
    size = window.gamma[0].abs()
    dead = vanished(stored) & ~stored.off
    part = share(dead, window)
    # Beside channels of the usual size, or a thousand times as large, they have died. Where all are small, they may
    # have begun at 0 and be growing.
    rest = layers.segments.max(size.where(size.isfinite(), 0.0))
    apart = share(size < GROWING * rest[layers.owner], window) > MOSTLY_DEAD
    beside = (rest > USUAL * float(rest.median())) | apart
    many = (part > MOSTLY_DEAD) & beside
    found = []
    for severity, hit, least in (
        (Severity.WARNING, many, MOSTLY_DEAD),
        (Severity.INFO, (part > MANY_DEAD) & ~many, MANY_DEAD),
    ):
        found += _alerts(
            stored, "BN701", severity, hit, dead, values=dead.double(),
            message=lambda layer, amount: f"gamma is nearly 0 in {amount} of {layers.channels[layer]} channels "
            f"({number(100 * float(part[layer]))} %), whose output is nearly constant"
            + ("" if bool(beside[layer]) else "; the whole branch may have begun there"),
            advice="if you did not prune them: lower weight decay on gamma (bnmonitor.remedies.parameter_groups) or "
            "the learning rate in the next training",
            threshold=least,
        )  # fmt: skip
    return found


def _alerts(
    stored: Stored,
    code: str,
    severity: Severity,
    layers: Tensor,
    channels: Tensor | None = None,
    *,
    message: Say,
    advice: str,
    values: Tensor | None = None,
    threshold: float = 0.0,
) -> list[Alert]:
    """Return one alert with all layers that are hit, or none.

    Args:
        stored: The layers.
        code: The rule's code.
        severity: How bad it is.
        layers: ``[L]`` bool, the layers that are hit.
        channels: ``[C]`` bool, the channels that are; None: not a matter of channels.
        message: What is wrong, by position of the first layer and number of its channels.
        advice: One concrete fix.
        values: ``[C]`` what was judged; the largest of the first layer is told.
        threshold: What it was judged by.
    """
    hit = layers.nonzero().flatten().tolist()
    if not hit:
        return []
    table, first = stored.layers, hit[0]
    named = table.locate(channels, first) if channels is not None else ()
    value = float(values[table.span(first)].max()) if values is not None else float(stored.counts[first])
    return [
        file_alert(
            find(code),
            severity,
            [table.names[i] for i in hit],
            channels=() if len(named) == table.channels[first] else named,
            value=value,
            threshold=threshold,
            message=message(first, len(named)),
            advice=advice,
        )
    ]
