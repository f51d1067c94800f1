"""The state of every layer at one step, and what a headline says of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bnmonitor._text import count, listing, printable, thousands
from bnmonitor.results.incidents import Alert, Incident, still_open
from bnmonitor.results.severity import Severity


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer's row.

    Attributes:
        name: Dotted path of the layer.
        channels: Number of channels.
        health: 100 is healthy; open incidents cap it: see :data:`HEALTH_CAPS`.
        training: Whether the layer was in training mode at the last step.
        settled: Whether the window lies after the warm-up, so that a lag of the statistics is judged; a layer in
            evaluation mode has none to judge.
        batch_var: Mean of the channels' batch variances at each step of the window.
        running_gap: Distance of batch mean and running mean, noise averaged out, in standard deviations.
        gamma_min: Smallest absolute gamma.
        silent: Share of channels whose output was never positive in the last sample; NaN without one.
        alerts: Open alerts, each as ``rule since step``, and open incidents that outlast their alerts, as ``cause since
            step``: where health is capped, there is one.
        recovery: Why batch statistics are missing; empty if they are not.
    """

    name: str
    channels: int
    health: float
    training: bool
    settled: bool
    batch_var: tuple[float, ...]
    running_gap: float
    gamma_min: float
    silent: float
    alerts: tuple[str, ...]
    recovery: str

    @property
    def seen(self) -> bool:
        """Whether anything is known that a layer can be called healthy by: its batches, or that it is frozen."""
        return not self.training or (not self.recovery and any(value == value for value in self.batch_var))


@dataclass(frozen=True, kw_only=True, repr=False)
class StepSummary:
    """The state of all layers at one step; iterating gives a :class:`LayerSummary` each, in execution order.

    Attributes:
        step: The last recorded step; -1 before the first.
        epoch: The epoch, where there is one.
        rows: A row per layer.
        alerts: Every alert so far, cleared ones too.
        skipped: Rules that could not run, with the reason.
        incidents: Every incident so far, resolved ones too.
        unwatched: Names of the normalizations that belong to no watched layer.
        unwatched_evaluations: Kinds of evaluation, such as ``"validation"``, of which the latest ran no watched layer.
        loss: The loss of the last step; NaN where it is unknown.
        learning_rates: The learning rate of each parameter group at the last step; empty where unknown.
        overhead: Part of the training's time that bnmonitor took; NaN where it is unknown.
    """

    step: int
    epoch: int | None
    rows: tuple[LayerSummary, ...]
    alerts: tuple[Alert, ...]
    skipped: Mapping[str, str]
    incidents: tuple[Incident, ...] = ()
    unwatched: tuple[str, ...] = ()
    unwatched_evaluations: tuple[str, ...] = ()
    loss: float = float("nan")
    learning_rates: tuple[float, ...] = ()
    overhead: float = field(default=float("nan"), compare=False)

    def __iter__(self) -> Iterator[LayerSummary]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, severity: Severity = Severity.INFO) -> list[Alert]:
        """Return the open alerts of a severity or worse."""
        return [a for a in self.alerts if a.state == "open" and a.severity >= severity]

    def open_incidents(self) -> list[Incident]:
        """Return the incidents that are open, the worst first, then the earliest."""
        return still_open(self.explained)

    @property
    def health(self) -> float:
        """Health of the worst layer."""
        return min((row.health for row in self.rows), default=100.0)

    @property
    def explained(self) -> tuple[Incident, ...]:
        """Every incident; where a history knows of none, each warning and each error is one of its own."""
        serious = [] if self.incidents else [a for a in self.alerts if a.severity > Severity.INFO]
        return self.incidents or tuple(Incident.of(alert, i, len(self)) for i, alert in enumerate(serious))

    @property
    def notes(self) -> tuple[Alert, ...]:
        """Alerts that are only worth knowing, and that no incident explains."""
        evidence = {alert.key for incident in self.explained for alert in incident.evidence}
        return tuple(a for a in self.alerts if a.severity is Severity.INFO and a.key not in evidence)

    @property
    def cost(self) -> str:
        """How much of the training's time bnmonitor took, in words; empty if it is unknown."""
        if math.isnan(self.overhead):
            return ""
        percent = 100 * self.overhead
        return f"bnmonitor took {f'{percent:.2g}' if percent < 10 else round(percent)} % of the time"

    @property
    def span(self) -> str:
        """The steps of the rows' courses, in words."""
        return count(max((len(row.batch_var) for row in self.rows), default=0), "step")

    def severities(self) -> dict[str, Severity]:
        """Return the worst severity of the open incidents in each layer that has one."""
        found: dict[str, Severity] = {}
        for incident in self.open_incidents():
            for layer in incident.layers:
                found[layer] = max(found.get(layer, Severity.INFO), incident.severity)
        return found

    def ill(self) -> list[LayerSummary]:
        """Return the layers with an open incident, the worst first."""
        worst = self.severities()
        ill = (row for row in self.rows if row.name in worst)
        return sorted(ill, key=lambda row: (-worst[row.name], row.health))

    def headline(self) -> str:
        """One line: is it healthy, and if not, what is the worst incident."""
        return self.verdicts()[0] + self.place

    @property
    def place(self) -> str:
        """The epoch and the step, as the end of a line: `` · epoch 3 · step 1 170``."""
        epoch = f" · epoch {self.epoch}" if self.epoch is not None else ""
        return epoch + (f" · step {thousands(self.step)}" if self.step >= 0 else "")

    def verdicts(self) -> tuple[str, ...]:
        """The headline without its place; then shorter ones, for a line that has less room."""
        found = self.open_incidents()
        if not found:
            return self._calm()
        first, more = found[0], f", {count(len(found) - 1, 'more incident')}" if len(found) > 1 else ""
        begin = f", since step {thousands(first.first_step)}" if self.step >= 0 else ""
        since = f"BatchNorm {first.severity.mark} {first.title}{begin}"
        where = first.extent if len(first.layers) > 1 else first.where
        return (f"{since} ({where}){more}" if where else f"{since}{more}", f"{since}{more}", since)

    def _calm(self) -> tuple[str, ...]:
        """What is known to be healthy, and what is not known."""
        unknown = [row for row in self.rows if not row.seen]
        known = len(self) - len(unknown)
        names = listing(map(printable, self.unwatched), 3)
        if not len(self):
            text = "BatchNorm · no layer is watched"
            besides = f"; {count(len(self.unwatched), 'normalization')} not seen: {names}"
            return (f"{text}{besides}", text) if self.unwatched else (text,)
        if not known:
            why = next((row.recovery for row in unknown if row.recovery), "no step was seen")
            text = f"BatchNorm · nothing is known of {count(len(self), 'layer')}"
            return (f"{text}: {why}", text)
        if unknown or self.unwatched:
            missed = len(unknown) + len(self.unwatched)
            text = (
                f"BatchNorm ✓ {known} of {count(len(self) + len(self.unwatched), 'layer')} healthy, {missed} not seen"
            )
            first = next((row.recovery for row in unknown if row.recovery), "")
            why = f" ({first})" if first and not self.unwatched else ""
            return (
                f"{text}: {listing(map(printable, (*(row.name for row in unknown), *self.unwatched)), 3)}{why}",
                text,
            )
        channels = count(sum(row.channels for row in self.rows), "channel")
        text = f"BatchNorm ✓ {count(len(self), 'layer')}, {channels} healthy"
        if self.unwatched_evaluations:
            return (f"{text} in training, {listing(self.unwatched_evaluations)} not seen", f"{text} in training")
        return (text,)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain types."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "health": self.health,
            "layers": [asdict(row) for row in self.rows],
            "alerts": [alert.to_dict() for alert in self.alerts],
            "incidents": [incident.to_dict() for incident in self.incidents],
            "loss": self.loss,
            "learning_rates": list(self.learning_rates),
            "overhead": self.overhead,
            "skipped": dict(self.skipped),
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.headline()}>"

    def __str__(self) -> str:
        lines = [self.headline()]
        for row in self.rows:
            alerts = f"  {', '.join(row.alerts)}" if row.alerts else ""
            lines.append(f"  {row.name}: health {row.health:.0f}, running gap {row.running_gap:.2g} sigma{alerts}")
        return "\n".join(lines)
