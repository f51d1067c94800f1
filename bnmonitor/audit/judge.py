"""The rules that can judge layers as they are, on a window of one step that is made of nothing but their state."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor._text import count
from bnmonitor.audit.images import Estimates, estimate_alerts
from bnmonitor.audit.norms import Norms
from bnmonitor.audit.one_step import forward
from bnmonitor.audit.reference import Moved, moved_layers, reference_alerts
from bnmonitor.audit.stored import Stored, read_stored, vanished
from bnmonitor.audit.stored_alerts import stored_alerts
from bnmonitor.audit.words import file_alert, for_a_file
from bnmonitor.layers import LayerTable, discover
from bnmonitor.measures import share
from bnmonitor.recording import snapshot_window
from bnmonitor.results import HEALTH_CAPS, Alert, LayerSummary, Severity, StepSummary
from bnmonitor.rules import Finding, Rule, all_rules
from bnmonitor.window import EVALUATIONS, Facts, Ledger, Recovery, Window

STATE = ("BN101", "BN104", "BN105", "BN109", "BN404", "BN707")
"""Rules that a layer's tensors are enough for."""

SETTINGS = ("BN301", "BN302", "BN408", "BN504")
"""Rules that ask for the module besides: its momentum, its mode, its class."""

PLACES = ("BN801", "BN802", "BN803", "BN804", "BN806")
"""Rules that ask how the layers are connected, which one forward shows."""

MOMENTUM = ("BN301",)
"""Of these the ones that momentum alone decides, which some files say; one for inference may have momentum 0."""

YIELDS = {"BN105": ("BN101",), "BN707": ("BN101", "BN105", "BN109", "BN701")}
"""Rules that have nothing to add where others have a finding that explains theirs."""

COLD = "BN303"
"""The rule that asks how often the statistics were updated."""

UNTRAINED = "BN404"
"""The rule that has nothing to say of a model that was only just made."""

_UPDATES = 1000


@dataclass(frozen=True, kw_only=True)
class Audit(StepSummary):
    """What the rules say of layers as they are.

    Attributes:
        spread: By layer the smallest, the middle and the largest running variance; NaN for a layer without.
        offset: By layer the middle distance of the running mean from zero, in deviations.
        kinds: Class name of each layer; empty where only tensors are known.
        dead: By layer the share of channels that gamma has switched off.
        updates: By layer ``num_batches_tracked``; None for a layer without.
        moved: How far each layer is from the reference, the furthest first.
        estimates: What images showed.
    """

    spread: tuple[tuple[float, float, float], ...]
    offset: tuple[float, ...]
    kinds: tuple[str, ...]
    dead: tuple[float, ...] = ()
    updates: tuple[int | None, ...] = ()
    moved: tuple[Moved, ...] = ()
    estimates: Estimates | None = None

    def _calm(self) -> tuple[str, ...]:
        """What was looked at, without calling it healthy: neither a file nor a forward shows all that can be wrong."""
        if not len(self):
            return ("BatchNorm · no layer with running statistics",)
        what = f"BatchNorm ✓ {count(len(self), 'layer')}, {count(sum(row.channels for row in self.rows), 'channel')}"
        shown = "a model can show without training" if any(self.kinds) else "a file can show"
        return f"{what}: nothing wrong found in what {shown}", f"{what}: nothing wrong found"

    def to_dict(self) -> dict[str, Any]:
        """Return plain types that JSON can hold."""
        keys = ("name", "channels", "health", "gamma_min")
        rows = [{key: _plain(getattr(row, key)) for key in keys} for row in self.rows]
        more = zip(self.kinds, self.spread, self.offset, self.dead, self.updates, strict=True)
        for row, (kind, spread, offset, dead, updates) in zip(rows, more, strict=True):
            row |= {"kind": kind or None, "running_var": [_plain(v) for v in spread], "offset": _plain(offset)}
            row |= {"dead": _plain(dead), "updates": updates}
        return {
            "health": self.health,
            "layers": rows,
            "alerts": [alert.to_dict() for alert in self.alerts],
            "skipped": dict(self.skipped),
            "moved": [{key: _plain(value) for key, value in asdict(each).items()} for each in self.moved],
            "images": None if self.estimates is None else self.estimates.to_dict(),
        }


@torch.no_grad()
def audit(
    model: nn.Module,
    *,
    settings: bool = True,
    inputs: Tensor | Sequence[Tensor] | None = None,
    reference: nn.Module | None = None,
    estimates: Estimates | None = None,
) -> Audit:
    """Judge the normalization layers of a model as they are; nothing is trained and nothing changed.

    Args:
        model: A model, or what :func:`bnmonitor.audit.read_checkpoint` made of a checkpoint.
        settings: Whether the modules are the real ones, with momentum, eps and class; False for a checkpoint.
        inputs: What a forward takes, for the rules that ask how the layers are connected. None: for a model whose first
            layer says what it takes, something of that shape; where that does not work these rules are skipped.
        reference: A model of the same layers that this one began as, or is to be compared with.
        estimates: The statistics that :func:`bnmonitor.audit.estimate` found on images.
    """
    found = discover({"": model})
    window = _window(found.table, found.modules)
    skipped = {f"layer {name}": why for name, why in model.left_out.items()} if isinstance(model, Norms) else {}
    if not len(window.layers):
        return _report(window, None, (), skipped, settings)
    stored = read_stored(window, found.modules, model)
    alerts = stored_alerts(stored)
    for code in STATE:
        blamed = {name for a in alerts if a.code in YIELDS.get(code, ()) for name in a.layers if a.severity > 10}
        alerts += [for_a_file(each, stored) for each in _judge(_rules((code,)), stored.judged(), blamed)]
    alerts += [for_a_file(each, stored) for each in _judge(_rules((COLD,)), stored.cold())]
    if settings:
        if bool(window.ledger.initial.all()):
            alerts = [alert for alert in alerts if alert.code != UNTRAINED]
            skipped |= {
                rule.name: "the model is untrained: all its statistics are initial" for rule in _rules((UNTRAINED,))
            }
        alerts += _judge(_rules(SETTINGS), window)
        monitor, why = forward(model, inputs, select=PLACES)
        placed = monitor.alerts if monitor is not None else ()
        alerts += [replace(alert, first_step=0, last_step=0) for alert in placed if alert.code in PLACES]
        skipped |= {rule.name: why for rule in _rules(PLACES)} if why else {}
    else:
        known = MOMENTUM if stored.momentum_known else ()
        alerts += _judge(_rules(known), window)
        why = "needs the model itself: give it with --model package.module:factory"
        skipped |= {rule.name: why for rule in _rules((*SETTINGS, *PLACES)) if rule.code not in known}
    moved: tuple[Moved, ...] = ()
    if reference is not None:
        moved, unlike = moved_layers(reference, model)
        alerts += reference_alerts(moved, reference, model)
        skipped |= {f"comparison of {name}": why for name, why in unlike.items()}
    if estimates is not None:
        alerts += estimate_alerts(estimates)
        skipped |= {f"images in {name}": "the layer did not run on them" for name in estimates.not_run}
    return replace(_report(window, stored, alerts, skipped, settings), moved=moved, estimates=estimates)


def _rules(codes: Sequence[str]) -> list[Rule]:
    return [rule for rule in all_rules() if rule.code in codes]


def _window(layers: LayerTable, modules: Sequence[nn.Module]) -> Window:
    """One step in which every layer saw exactly what its running statistics say, and was evaluated with it."""
    count = len(layers)
    one = torch.ones(1, count, dtype=torch.bool)
    updates = torch.full((count,), _UPDATES)
    facts = Facts(
        affine_trains=one[0],
        quantized=True,
        buffer_dtypes=tuple(None if (t := m._buffers.get("running_mean")) is None else t.dtype for m in modules),
    )
    now = snapshot_window(layers, modules, facts=facts, ledger=Ledger.blank(count), updates=updates)
    mean, var = now.running_mean, now.running_var
    evaluated = now.ledger.evaluated.clone()
    evaluated[EVALUATIONS] = True
    initial = ~layers.segments.any(((mean != 0) | (var != 1))[0]) & layers.tracked
    return replace(
        now,
        batch_mean=mean,
        batch_var=var,
        shift=torch.zeros_like(mean),
        ratio=torch.ones_like(mean),
        updates=(one & layers.tracked).long(),
        training=one & layers.which("has_modes"),
        recovery=torch.full((1, count), int(Recovery.EXACT)),
        variance=layers.segments.sum(var) / torch.tensor(layers.channels),
        baseline=replace(now.baseline, updates=updates, forgotten=torch.full((count,), 100.0, dtype=torch.float64)),
        ledger=replace(now.ledger, evaluated=evaluated, initial=initial),
        fresh=1,
    )


def _judge(rules: Sequence[Rule], window: Window, blamed: Collection[str] = ()) -> list[Alert]:
    """One alert for each rule and severity, with all its layers but those that something else is blamed for."""
    alerts = []
    for rule in rules:
        by_severity: dict[Severity, list[Finding]] = {}
        for finding in rule.check(window):
            if finding.layer is not None and window.layers.names[finding.layer] in blamed:
                continue
            by_severity.setdefault(finding.severity, []).append(finding)
        for severity in sorted(by_severity, reverse=True):
            findings = by_severity[severity]
            first = min(findings, key=lambda f: -1 if f.layer is None else f.layer)
            affected = [i for f in findings for i in (f.layer, *f.layers) if i is not None]
            names = [window.layers.names[i] for i in dict.fromkeys(affected)]
            alerts.append(_alert(rule, first, names))
    return alerts


def _alert(rule: Rule, finding: Finding, names: Sequence[str]) -> Alert:
    return file_alert(
        rule,
        finding.severity,
        names,
        channels=finding.channels,
        value=finding.value,
        threshold=finding.threshold,
        message=finding.message,
        advice=finding.advice,
    )


# -- what is shown -----------------------------------------------------------------------------------------------------


def _report(
    window: Window, stored: Stored | None, alerts: Sequence[Alert], skipped: Mapping[str, str], settings: bool
) -> Audit:
    layers = window.layers
    worst: dict[str, Severity] = {}
    codes: dict[str, tuple[str, ...]] = {}
    for alert in alerts:
        for name in alert.layers:
            worst[name] = max(worst.get(name, Severity.INFO), alert.severity)
            codes[name] = (*codes.get(name, ()), alert.code)
    var, mean = window.running_var[0], window.running_mean[0]
    scale = (var + layers.eps_by_channel).sqrt()
    offset, middle = layers.segments.median(mean.abs() / scale), layers.segments.median(var)
    low, high = -layers.segments.max(-var), layers.segments.max(var)
    gamma_min = -layers.segments.max(-window.gamma[0].abs())
    rows = tuple(
        LayerSummary(
            name=name,
            channels=layers.channels[i],
            health=HEALTH_CAPS[worst.get(name, Severity.INFO)],
            training=False,
            settled=True,
            batch_var=(),
            running_gap=math.nan,
            gamma_min=float(gamma_min[i]),
            silent=math.nan,
            alerts=codes.get(name, ()),
            recovery="",
        )
        for i, name in enumerate(layers.names)
    )
    return Audit(
        step=-1,
        epoch=None,
        rows=rows,
        alerts=tuple(sorted(alerts, key=lambda a: (-a.severity, a.code))),
        skipped=dict(skipped),
        spread=tuple(zip(low.tolist(), middle.tolist(), high.tolist(), strict=True)),
        offset=tuple(offset.tolist()),
        kinds=layers.kinds if settings else ("",) * len(layers),
        dead=() if stored is None else tuple(share(vanished(stored), window).tolist()),
        updates=() if stored is None else tuple(None if n != n or n - n else int(n) for n in stored.counts.tolist()),
    )


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
