"""The words for somebody who has a file, and no training that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bnmonitor._text import DOCS, count, thousands
from bnmonitor.audit.stored import Stored
from bnmonitor.results import Alert, Severity
from bnmonitor.rules import Rule

RECALIBRATE = "estimate them again: bnmonitor.remedies.recalibrate(model, loader)"
"""The end of an advice, where the statistics are wrong and the weights are not."""


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
                " at momentum", " at momentum" if stored.momentum_known else " at the default momentum", 1
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
            message="every layer is as it was made (statistics 0 and 1, one gamma, beta 0): the model is untrained, or "
            "its layers are kept elsewhere",
            advice="if it has been trained, save its buffers as well: torch.save(model.state_dict(), path)",
        )
    some = bool((stored.counts[hit] > 0).any())
    count_says = (
        f", although up to {thousands(int(stored.counts[hit].nan_to_num(0).max()))} updates are counted" if some else ""
    )
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
