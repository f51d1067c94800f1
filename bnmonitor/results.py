"""What bnmonitor says of a run: its alerts, and the state of every layer. Free of torch, to read a history with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import IntEnum
from typing import Any, Literal

from bnmonitor._text import count, listing, printable, thousands


class Severity(IntEnum):
    """How bad an alert is. An info is hygiene; a warning costs accuracy; an error makes the result wrong."""

    INFO = 10
    WARNING = 20
    ERROR = 30

    def __str__(self) -> str:
        return self.name.lower()

    @property
    def mark(self) -> str:
        """The sign of the severity, so that color is never the only difference."""
        return _MARKS[self]


_MARKS = {Severity.INFO: "·", Severity.WARNING: "!", Severity.ERROR: "✗"}

HEALTH_CAPS: Mapping[Severity, float] = {Severity.INFO: 100.0, Severity.WARNING: 60.0, Severity.ERROR: 20.0}
"""The most health that a layer can have with an open incident of a severity."""

NEAR_LIMIT_HEALTH = HEALTH_CAPS[Severity.WARNING] + 10.0
"""The least health of a layer without an open incident: its running statistics are at the limit of a warning."""

NEAR_LIMIT = NEAR_LIMIT_HEALTH + 10.0
"""Health from which on a layer without an open incident is called near its limit."""


def health_near(nearness: Any) -> Any:
    """Return the health of a layer without an open incident.

    Args:
        nearness: How near its lag is to the limit of a warning, from 0 to 1; numbers, arrays and tensors will do.

    >>> health_near(0.0), health_near(1.0)
    (100.0, 70.0)
    """
    return 100.0 - (100.0 - NEAR_LIMIT_HEALTH) * nearness * nearness


def health_severity(health: float) -> Severity:
    """Return the severity of the worst incident that a health leaves room for.

    >>> [str(health_severity(health)) for health in (61.0, 60.0, 20.0)]
    ['info', 'warning', 'error']
    """
    found = (severity for severity in (Severity.ERROR, Severity.WARNING) if health <= HEALTH_CAPS[severity])
    return next(found, Severity.INFO)


AFFECTED = " affected"
"""The word of a message after it has counted the layers that the fault has reached since."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One episode of one fault.

    Attributes:
        code: Code of the rule, such as ``BN304``.
        rule: Name of the rule, such as ``stale-statistics``.
        severity: The worst severity so far.
        layer: Dotted path of the layer where it began; None if there is no layer to name.
        layers: Every layer of the incident, the first one first.
        channels: Channels within ``layer``; empty means the whole layer.
        first_step: The step when it began.
        last_step: The last step at which it was seen.
        state: ``"open"`` or ``"cleared"``.
        value: The number that was judged.
        threshold: The number it was judged by.
        message: What is wrong, with the likely cause.
        advice: One concrete fix.
        url: The rule's page in the manual.
        incident: The incident that explains it; None for a note, which no incident explains.
    """

    code: str
    rule: str
    severity: Severity
    layer: str | None
    layers: tuple[str, ...]
    channels: tuple[int, ...]
    first_step: int
    last_step: int
    state: Literal["open", "cleared"]
    value: float
    threshold: float
    message: str
    advice: str
    url: str
    incident: Incident | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> tuple[str, str, int]:
        """What distinguishes this episode from every other one of the run."""
        return self.code, self.layer or self.message, self.first_step

    @property
    def extent(self) -> str:
        """How many layers there are besides the first, unless the message says it: `` and 3 more layers``."""
        more = len(self.layers) - 1
        return f" and {count(more, 'more layer')}" if more > 0 and AFFECTED not in self.message else ""

    def __str__(self) -> str:
        where = f" · {self.layer}" if self.layer is not None else ""
        channels = f" · channels {listing(self.channels)}" if self.channels else ""
        return f"{self.code} {self.rule}{where}{self.extent}{channels} · since step {self.first_step}: {self.message}"

    def to_dict(self) -> dict[str, Any]:
        """Return the alert as plain types that JSON can hold, without its incident."""
        plain = asdict(replace(self, incident=None))
        del plain["incident"]
        plain["severity"] = str(self.severity)
        plain["layers"], plain["channels"] = list(self.layers), list(self.channels)
        for name in ("value", "threshold"):
            if plain[name] - plain[name] != 0:
                plain[name] = str(plain[name])
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Alert:
        """Return the alert that :meth:`to_dict` described.

        Raises:
            KeyError: A field is missing, or there is no such severity.
            TypeError: A field is of another type, or there is one too many.
            ValueError: A number cannot be read.
        """
        texts = [plain[name] for name in ("code", "rule", "severity", "state", "message", "advice", "url")]
        layer = [] if plain["layer"] is None else [plain["layer"]]
        if not all(isinstance(each, str) for each in (*texts, *layer, *plain["layers"])):
            raise TypeError("a text of the alert is not a string")
        if not all(isinstance(each, int) for each in (plain["first_step"], plain["last_step"], *plain["channels"])):
            raise TypeError("a step or a channel of the alert is not an int")
        return cls(
            **{
                **plain,
                "severity": Severity[plain["severity"].upper()],
                "layers": tuple(plain["layers"]),
                "channels": tuple(plain["channels"]),
                "value": float(plain["value"]),
                "threshold": float(plain["threshold"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One root cause, with everything that follows from it.

    While an incident is open its cause, title and severity may be revised as evidence comes in.

    Attributes:
        index: Its position among the incidents of the run, which it keeps.
        code: Code of the rule whose page explains it, such as ``BN704``.
        cause: Name of the cause, such as ``learning-rate-too-high``.
        severity: The worst severity so far.
        title: One plain sentence that names the cause.
        detail: The numbers that show it.
        layer: Dotted path of the layer where it began; None if there is no layer to name.
        layers: Every affected layer, the first one first.
        of_layers: How many layers are watched; 0: unknown.
        first_step: The step when it began.
        last_step: The last step at which it was seen.
        state: ``"open"`` or ``"resolved"``.
        evidence: Its alerts in causal order, the cause first.
        advice: One concrete fix.
        url: The page of the cause in the manual.
    """

    index: int
    code: str
    cause: str
    severity: Severity
    title: str
    detail: str
    layer: str | None
    layers: tuple[str, ...]
    of_layers: int
    first_step: int
    last_step: int
    state: Literal["open", "resolved"]
    evidence: tuple[Alert, ...]
    advice: str
    url: str

    @classmethod
    def of(cls, alert: Alert, index: int = 0, of_layers: int = 0) -> Incident:
        """Return an incident that says of an alert what the alert itself says.

        Args:
            alert: The alert.
            index: The position of the incident among those of the run.
            of_layers: How many layers are watched; 0: unknown.
        """
        return cls(
            index=index,
            code=alert.code,
            cause=alert.rule,
            severity=alert.severity,
            title=alert.rule.replace("-", " "),
            detail=alert.message,
            layer=alert.layer,
            layers=alert.layers,
            of_layers=of_layers,
            first_step=alert.first_step,
            last_step=alert.last_step,
            state="open" if alert.state == "open" else "resolved",
            evidence=(alert,),
            advice=alert.advice,
            url=alert.url,
        )

    @property
    def where(self) -> str:
        """Which layers are affected, as a text: ``19 of 20 layers, first layer4.0.bn2``; empty without a layer."""
        if self.layer is None:
            return ""
        name = printable(f"layer {self.layer}" if self.layer.isdigit() else self.layer)
        return name if len(self.layers) < 2 else f"{self.extent}, first {name}"

    @property
    def extent(self) -> str:
        """How many layers are affected: ``19 of 20 layers``; empty without a layer."""
        if self.layer is None:
            return ""
        of = f"{len(self.layers)} of " if self.of_layers >= len(self.layers) else ""
        return of + count(self.of_layers if of else max(1, len(self.layers)), "layer")

    def lines(self) -> tuple[str, str, str]:
        """The incident in three lines: what, since when and where; the numbers; the fix."""
        where = f" · {self.where}" if self.where else ""
        more = f" · bnmonitor explain {self.code}" if self.url else ""
        return (
            f"{self.severity.mark} {self.title} · since step {thousands(self.first_step)}{where}",
            self.detail,
            f"fix: {self.advice}{more}",
        )

    def __str__(self) -> str:
        first, *rest = self.lines()
        return "\n".join([first, *(f"  {line}" for line in rest if line)])

    def to_dict(self) -> dict[str, Any]:
        """Return the incident as plain types that JSON can hold."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            **own,
            "severity": str(self.severity),
            "layers": list(self.layers),
            "evidence": [alert.to_dict() for alert in self.evidence],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Incident:
        """Return the incident that :meth:`to_dict` described.

        Raises:
            KeyError: A field is missing, or there is no such severity.
            TypeError: A field is of another type, or there is one too many.
            ValueError: A number cannot be read.
        """
        texts = [plain[name] for name in ("code", "cause", "severity", "state", "title", "detail", "advice", "url")]
        layer = [] if plain["layer"] is None else [plain["layer"]]
        if not all(isinstance(each, str) for each in (*texts, *layer, *plain["layers"])):
            raise TypeError("a text of the incident is not a string")
        numbers = [plain[name] for name in ("index", "of_layers", "first_step", "last_step")]
        if not all(isinstance(each, int) for each in numbers):
            raise TypeError("a step or a number of the incident is not an int")
        return cls(
            **{
                **plain,
                "severity": Severity[plain["severity"].upper()],
                "layers": tuple(plain["layers"]),
                "evidence": tuple(map(Alert.from_dict, plain["evidence"])),
            }
        )


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
        alerts: Open alerts, each as ``rule since step``.
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
        loss: The loss of the last step; NaN where it is unknown.
        learning_rates: The learning rate of each parameter group at the last step; empty where unknown.
    """

    step: int
    epoch: int | None
    rows: tuple[LayerSummary, ...]
    alerts: tuple[Alert, ...]
    skipped: Mapping[str, str]
    incidents: tuple[Incident, ...] = ()
    loss: float = float("nan")
    learning_rates: tuple[float, ...] = ()

    def __iter__(self) -> Iterator[LayerSummary]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, severity: Severity = Severity.INFO) -> list[Alert]:
        """Return the open alerts of a severity or worse."""
        return [a for a in self.alerts if a.state == "open" and a.severity >= severity]

    def open_incidents(self) -> list[Incident]:
        """Return the incidents that are open, the worst first, then the earliest."""
        found = [incident for incident in self.explained if incident.state == "open"]
        return sorted(found, key=lambda incident: (-incident.severity, incident.first_step, incident.index))

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
        if not known:
            why = next(iter({row.recovery for row in unknown if row.recovery}), "no layer is watched")
            text = f"BatchNorm · nothing is known of {count(len(self), 'layer')}"
            return (f"{text}: {why}", text)
        if unknown:
            text = f"BatchNorm ✓ {known} of {count(len(self), 'layer')} healthy, {len(unknown)} not seen"
            return (f"{text}: {listing((printable(row.name) for row in unknown), 3)}", text)
        channels = count(sum(row.channels for row in self.rows), "channel")
        return (f"BatchNorm ✓ {count(len(self), 'layer')}, {channels} healthy",)

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
