"""What the tensors of layers show by themselves, where a training would have shown it step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bnmonitor._text import DOCS, count, number, thousands
from bnmonitor.audit.norms import Norms
from bnmonitor.layers import LayerTable
from bnmonitor.limits import ALIVE, DEAD_GAMMA, FLAT, INITIAL_WEIGHT, MANY_DEAD
from bnmonitor.measures import initial_statistics, share
from bnmonitor.results import Alert, Severity
from bnmonitor.rules import Rule, find
from bnmonitor.window import Window

MOSTLY_DEAD = 0.75
"""Share of a layer's channels with a vanished gamma that is a warning: below it, sound networks have such layers."""

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

RECALIBRATE = "estimate them again: bnmonitor.remedies.recalibrate(model, loader)"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The layers of a model or a checkpoint as they are.

    Attributes:
        window: One step with their statistics.
        counts: ``[L]`` float64, ``num_batches_tracked``; NaN for a layer without.
        initial: ``[L]`` bool, statistics of exactly 0 and 1.
        new: ``[L]`` bool, gamma is one number and beta 0 besides, as in a layer that was only just made.
        off: ``[C]`` bool, gamma is exactly 0, or the filter before the channel is: pruned, or held at zero.
        weight: ``[L]`` float64, what the initial 0 and 1 weigh in the statistics by count and momentum, where the
            values agree with that; else 0.
        momentum_known: Whether momentum is the layers' own, and not PyTorch's default.
    """

    window: Window
    counts: Tensor
    initial: Tensor
    new: Tensor
    off: Tensor
    weight: Tensor
    momentum_known: bool

    @property
    def layers(self) -> LayerTable:
        """The table of the layers."""
        return self.window.layers

    def judged(self) -> Window:
        """Return the step without the channels that are switched off on purpose: they are constant, and may be."""
        window, off = self.window, self.off[None]
        flat = off & (window.running_var < ALIVE * self.layers.eps_by_channel)
        var = window.running_var.where(~flat, 1.0)
        return replace(window, running_var=var, batch_var=var, gamma=window.gamma.where(~off, 0.0))

    def cold(self) -> Window:
        """Return the step as one whose evaluation people will act on, after as many updates as were counted."""
        window = self.window
        updates = self.counts.nan_to_num(0.0).clamp(0, 2**31).long()
        return replace(
            window,
            baseline=replace(window.baseline, updates=updates),
            ledger=replace(window.ledger, cold=self.weight),
            facts=replace(window.facts, ending=True),
        )


def read_stored(window: Window, modules: Sequence[nn.Module], model: nn.Module) -> Stored:
    """Read what layers hold besides their statistics.

    Args:
        window: One step with their statistics.
        modules: The layers.
        model: The model that they are of, among whose other tensors the filters before the layers are.
    """
    bare = isinstance(model, Norms)
    others = model.others if isinstance(model, Norms) else model.state_dict()
    layers = window.layers
    counted = [m._buffers.get("num_batches_tracked") for m in modules]
    counts = torch.tensor([torch.nan if t is None or t.is_meta else float(t) for t in counted], dtype=torch.float64)
    mean, var = window.running_mean[0], window.running_var[0]
    left = torch.where(counts > 0, (1 - window.momentum[-1].double()) ** counts.clamp(min=0), 0.0).nan_to_num(0.0)
    initial, mixed = initial_statistics(layers, mean, var, left)
    below = layers.segments.any(var < left[layers.owner] * (1 - 1e-3))
    some = (left > INITIAL_WEIGHT) & ~below & (layers.segments.median(var) < 2.0)
    start = window.gamma[0][torch.tensor(layers.offsets[:-1])][layers.owner]  # 1, or 0 at the end of a residual branch
    return Stored(
        window=window,
        counts=counts,
        initial=initial,
        new=initial & ~layers.segments.any((window.gamma[0] != start) | (window.beta[0] != 0)),
        off=(window.gamma[0] == 0) | _zero_filters(window, others),
        weight=left.where((mixed | some) & ~initial, 0.0),
        momentum_known=not bare or bool(model.momentum_known),
    )


def _zero_filters(window: Window, others: Mapping[str, Tensor]) -> Tensor:
    """Channels without variance whose filters are exactly zero: ``[C]`` bool."""
    layers = window.layers
    flat = window.running_var[0] < FLAT * layers.eps_by_channel
    found = torch.zeros_like(flat)
    suspects = layers.segments.any(flat).nonzero().flatten().tolist()
    widths = {layers.channels[layer] for layer in suspects}
    filters = [t for t in others.values() if t.dim() > 1 and len(t) in widths and _readable(t)]
    rows = [~tensor.flatten(1).bool().any(1) for tensor in filters]
    rows = [zero for zero in rows if zero.any()]
    for layer in suspects:
        span = layers.span(layer)
        # Rows that vanish exactly where the variance does are those of the operation before.
        for zero in rows:
            if len(zero) == layers.channels[layer] and int((zero & flat[span]).sum()) >= 0.9 * int(flat[span].sum()):
                found[span] |= zero
    return found


def _readable(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized and tensor.device.type == "cpu"


# -- what follows from it ----------------------------------------------------------------------------------------------


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
        message=lambda _, __: "num_batches_tracked is 0, but the statistics are not the initial ones: they were written "
        "by something else than updates, such as a conversion or a file without counts",
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


def vanished(stored: Stored) -> Tensor:
    """Channels that gamma has switched off: ``[C]`` bool. It is compared with the large gammas of the model."""
    size = stored.window.gamma[0].abs()
    there = size[(size > 0) & size.isfinite()].sort().values
    usual = float(there[int(0.9 * (len(there) - 1))]) if len(there) else 1.0
    return size < DEAD_GAMMA * usual


def _dead(stored: Stored) -> list[Alert]:
    """Channels that gamma has switched off, but not to exactly 0, as pruning does."""
    window, layers = stored.window, stored.layers
    dead = vanished(stored) & ~stored.off
    part = share(dead, window)
    found = []
    for severity, least, most in (
        (Severity.WARNING, MOSTLY_DEAD, torch.inf),
        (Severity.INFO, MANY_DEAD, MOSTLY_DEAD),
    ):
        found += _alerts(
            stored, "BN701", severity, (part > least) & (part <= most), dead, values=dead.double(),
            message=lambda layer, amount: f"gamma has vanished in {amount} of {layers.channels[layer]} channels "
            f"({number(100 * float(part[layer]))} %): their output is constant",
            advice="if you did not prune them: lower weight decay on gamma (bnmonitor.remedies.parameter_groups) or the "
            "learning rate in the next training",
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


def for_a_file(alert: Alert, stored: Stored) -> Alert:
    """Return an alert in the words of somebody who has a file, and no training that goes on."""
    if alert.code == "BN404":
        return _initial(alert, stored)
    if alert.code == "BN105":
        message = alert.message.replace("have been constant from the start", "are constant").partition("; momentum")[0]
        return replace(alert, message=message)
    if alert.code == "BN303":
        return replace(
            alert,
            message=alert.message.replace("evaluated after", "saved after").replace(
                " at momentum", "" if stored.momentum_known else " at the default momentum", 1
            ),
            advice=f"train on before the model is used, or {RECALIBRATE}",
        )
    if alert.code == "BN101":
        what = alert.message.partition(",")[0]
        return replace(
            alert,
            message=f"{what}: evaluation returns NaN",
            advice=f"go back to a checkpoint from before; if the weights are sound, {RECALIBRATE}",
        )
    return alert


def _initial(alert: Alert, stored: Stored) -> Alert:
    """Say whether all layers are new, or some were left behind."""
    layers = stored.layers
    hit = torch.tensor([name in alert.layers for name in layers.names])
    amount, of = int(hit.sum()), int(layers.tracked.sum())
    if amount == of and bool(stored.new[hit].all()):
        return replace(
            alert,
            severity=Severity.INFO,
            message="every layer is as it was made (statistics 0 and 1, one gamma, beta 0): the model is untrained, or its "
            "layers are kept elsewhere",
            advice="if it has been trained, save its buffers as well: torch.save(model.state_dict(), path)",
        )
    some = bool((stored.counts[hit] > 0).any())
    count_says = f", although up to {thousands(int(stored.counts[hit].nan_to_num(0).max()))} updates are counted" if some else ""
    if amount == of:
        what = "every layer has the initial statistics, exactly 0 and 1, but a trained gamma or beta"
    else:
        verb = "has" if amount == 1 else "have"
        what = f"{amount} of {count(of, 'layer')} {verb} the initial statistics, exactly 0 and 1, and the others do not"
    new = bool(stored.new[hit].all()) and not some
    cause = "they were not loaded, or never ran" if new else "statistics were reset, or not loaded with the weights"
    return replace(
        alert,
        severity=Severity.WARNING if new else alert.severity,
        message=f"{what}{count_says}: {cause}",
        advice=f"check what load_state_dict(strict=False) returns; if the weights are sound, {RECALIBRATE}",
    )


def file_alert(
    rule: Rule,
    severity: Severity,
    names: Sequence[str],
    *,
    message: str,
    advice: str,
    channels: tuple[int, ...] = (),
    value: float = 0.0,
    threshold: float = 0.0,
) -> Alert:
    """Return an alert that knows no steps; arguments as the attributes of :class:`~bnmonitor.Alert`."""
    return Alert(
        code=rule.code,
        rule=rule.name,
        severity=severity,
        layer=names[0] if names else None,
        layers=tuple(names),
        channels=channels,
        first_step=0,
        last_step=0,
        state="open",
        value=value,
        threshold=threshold,
        message=message,
        advice=advice,
        url=f"{DOCS}/rules/{rule.code}.md",
    )
