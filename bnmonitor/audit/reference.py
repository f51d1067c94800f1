"""How far a model is from another that has the same layers, such as the one that it was fine-tuned from."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from bnmonitor._text import count, number
from bnmonitor.audit.norms import Norms
from bnmonitor.audit.words import RECALIBRATE, file_alert
from bnmonitor.layers import discover
from bnmonitor.limits import LAG_LOG_DEVIATION, LAG_MEAN
from bnmonitor.results import Alert, Severity
from bnmonitor.rules import find

FAR_MEAN = 10.0
"""Standard deviations that a layer's mean moves in no fine-tuning that leaves the other layers where they are."""

FAR_DEVIATION = 2.3
"""The same for the log ratio of deviations: a factor of ten."""

ALONE = 10.0
"""How many times further than the median layer a layer has to be."""

_TINY = 1e-5


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How far the median channel of a layer has moved; 0 means not at all.

    Attributes:
        layer: Dotted path of the layer.
        mean: Distance of the running means, in standard deviations of the first.
        deviation: Log ratio of the running standard deviations, without sign.
        gamma: Distance of gamma, over its size in the first.
    """

    layer: str
    mean: float
    deviation: float
    gamma: float

    @property
    def far(self) -> float:
        """The largest of them; a value that is not finite counts as infinite."""
        return max(v if v - v == 0 else float("inf") for v in (self.mean, self.deviation, self.gamma))


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the normalization layers by name, in the order of the model."""
    found = discover({"": model})
    return dict(zip(found.table.names, found.modules, strict=True))


@torch.no_grad()
def moved_layers(before: nn.Module, after: nn.Module) -> tuple[tuple[Moved, ...], dict[str, str]]:
    """Compare the layers that two models share.

    Returns:
        How far each has moved, the furthest first; and by name why other layers were not compared.
    """
    old, new = aligned(before, after)
    unlike = {name: "only the reference has it" for name in old if name not in new}
    unlike |= {name: "the reference has no such layer" for name in new if name not in old}
    for name in (n for n in new if n in old):
        one, two = _width(old[name]), _width(new[name])
        if one != two or not one:
            unlike[name] = f"the reference has {one} channels there, not {two}" if one and two else "no statistics"
    moved = [_moved(name, old[name], new[name]) for name in new if name not in unlike]
    return tuple(sorted(moved, key=lambda m: -m.far)), unlike


def aligned(before: nn.Module, after: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Return the layers of two models by name, those of the first under the names that the second has for them.

    One of the two may have something before every name, such as the ``model.`` of a Lightning checkpoint.
    """
    old, new = layers_of(before), layers_of(after)
    add, cut = _prefixes(old, new)
    return {add + name.removeprefix(cut): layer for name, layer in old.items()}, new


def _prefixes(old: Collection[str], new: Collection[str]) -> tuple[str, str]:
    """Return what to put before the names of the first model, and what to take from them; empty if some agree."""
    if not old or not new or set(old) & set(new):
        return "", ""
    first, other = next(iter(old)), next(iter(new))
    if other.endswith(f".{first}") and all(name.startswith(other.removesuffix(first)) for name in new):
        return other.removesuffix(first), ""
    if first.endswith(f".{other}") and all(name.startswith(first.removesuffix(other)) for name in old):
        return "", first.removesuffix(other)
    return "", ""


def reference_alerts(moved: Sequence[Moved], reference: nn.Module, model: nn.Module) -> list[Alert]:
    """Return what is wrong with the way that layers have moved.

    Statistics that have moved under a gamma and beta that are the same bit for bit were updated in layers that were
    meant to be frozen; unless no weight of the model was trained, which estimates statistics again. A layer that has
    moved far more than all others has not come there by training.
    """
    old, new = aligned(reference, model)
    order = {name: place for place, name in enumerate(new)}
    moved = sorted(moved, key=lambda m: order[m.layer])
    still = [m for m in moved if _same_affine(old[m.layer], new[m.layer])]
    leaked = [m for m in still if _felt(m)]
    trained = _others_trained(reference, model) or len(still) < len(moved)
    found = []
    if leaked and trained:
        found.append(_leaked(leaked))
    elif leaked:
        found.append(_written(leaked, len(moved)) if len(leaked) < len(moved) else _estimated_again(leaked))
    alone = [m for m in moved if m not in leaked and _alone(m, moved)]
    return [*found, _moved_alone(alone, moved)] if alone else found


def _leaked(hit: Sequence[Moved]) -> Alert:
    worst = _worst(hit)
    return _alert(
        "BN402",
        Severity.WARNING,
        hit,
        *_limited(worst),
        f"gamma and beta are exactly those of the reference, but {_how_far(worst)} in {worst.layer}: the layers were "
        "frozen without their statistics",
        "freeze with bnmonitor.remedies.freeze(model), and take the statistics of the reference",
    )


def _written(hit: Sequence[Moved], of: int) -> Alert:
    worst = _worst(hit)
    return _alert(
        "BN306",
        Severity.WARNING,
        hit,
        *_limited(worst),
        f"no weight differs from the reference, but {_how_far(worst)} in {worst.layer}, and {of - len(hit)} of "
        f"{count(of, 'layer')} are as they were: something other than a training wrote them",
        f"take the statistics of the reference, or {RECALIBRATE}",
    )


def _estimated_again(hit: Sequence[Moved]) -> Alert:
    worst = _worst(hit)
    return _alert(
        "BN402",
        Severity.INFO,
        hit,
        worst.mean,
        LAG_MEAN,
        f"no weight differs from the reference, but every layer's statistics do ({_how_far(worst)} in "
        f"{worst.layer}): they were estimated again",
        "nothing, if you did that",
    )


def _moved_alone(hit: Sequence[Moved], every: Sequence[Moved]) -> Alert:
    worst = _worst(hit)
    return _alert(
        "BN304",
        Severity.WARNING,
        hit,
        worst.far,
        FAR_MEAN if worst.mean > FAR_MEAN else FAR_DEVIATION,
        f"{_how_far(worst)} from the reference in {worst.layer}, where the median layer has moved by "
        f"{number(median(m.mean for m in every))}σ: no training moves one layer alone",
        f"compare the file with an earlier checkpoint; if the weights are sound, {RECALIBRATE}",
    )


def _worst(hit: Sequence[Moved]) -> Moved:
    return max(hit, key=lambda m: m.far)


def _limited(moved: Moved) -> tuple[float, float]:
    """The distance that says more, and its limit."""
    by_mean = moved.mean >= LAG_MEAN
    return (moved.mean, LAG_MEAN) if by_mean else (moved.deviation, LAG_LOG_DEVIATION)


def _alert(
    code: str, severity: Severity, hit: Sequence[Moved], value: float, threshold: float, message: str, advice: str
) -> Alert:
    names = [m.layer for m in hit]
    return file_alert(find(code), severity, names, value=value, threshold=threshold, message=message, advice=advice)


def _how_far(moved: Moved) -> str:
    parts = [f"the running mean moved by {number(moved.mean)}σ"] if moved.mean > LAG_MEAN else []
    factor = number(math.exp(min(moved.deviation, 99.0)))
    parts += [f"the deviation changed by a factor of {factor}"] if moved.deviation > LAG_LOG_DEVIATION else []
    return " and ".join(parts)


def _felt(moved: Moved) -> bool:
    return moved.mean > LAG_MEAN or moved.deviation > LAG_LOG_DEVIATION


def _alone(moved: Moved, every: Sequence[Moved]) -> bool:
    """Whether a layer has moved far, and much further than the median layer."""
    if len(every) < 3:
        return False
    mean, deviation = median(m.mean for m in every), median(m.deviation for m in every)
    return (moved.mean > max(FAR_MEAN, ALONE * mean)) or (moved.deviation > max(FAR_DEVIATION, ALONE * deviation))


def _same_affine(before: nn.Module, after: nn.Module) -> bool:
    pairs = [(before._parameters.get(name), after._parameters.get(name)) for name in ("weight", "bias")]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return bool(known) and all(a.shape == b.shape and torch.equal(a, b) for a, b in known)


def _others_trained(reference: nn.Module, model: nn.Module) -> bool:
    """Whether a weight outside the normalization layers differs, as far as both hold it."""
    add, cut = _prefixes(layers_of(reference), layers_of(model))
    old, new = {add + name.removeprefix(cut): t for name, t in _others(reference).items()}, _others(model)
    return any(
        t.shape == old[name].shape and t.dtype == old[name].dtype and not torch.equal(t, old[name])
        for name, t in new.items()
        if name in old and t.layout == old[name].layout == torch.strided and t.dim() > 1
    )


def _others(model: nn.Module) -> dict[str, Tensor]:
    return model.others if isinstance(model, Norms) else model.state_dict()


def _width(layer: nn.Module) -> int:
    mean = layer._buffers.get("running_mean")
    return 0 if mean is None else mean.numel()


def _moved(name: str, before: nn.Module, after: nn.Module) -> Moved:
    (mean, var, gamma), (mean_now, var_now, gamma_now) = (
        [
            (torch.ones(1) if t is None else t.detach()).double()
            for t in (m._buffers["running_mean"], m._buffers["running_var"], m._parameters.get("weight"))
        ]
        for m in (before, after)
    )
    return Moved(
        layer=name,
        mean=float(((mean_now - mean).abs() / (var + _TINY).sqrt()).median()),
        deviation=float((0.5 * ((var_now + _TINY) / (var + _TINY)).log()).abs().median()),
        gamma=float(((gamma_now - gamma).abs() / gamma.abs().clamp(min=_TINY)).median()),
    )
