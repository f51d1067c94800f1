"""What bnmonitor says of a fault: the alert of a rule, and the incident that explains it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from bnmonitor._html import block, link, plain, strong
from bnmonitor._text import count, listing, printable, thousands
from bnmonitor.results.severity import Severity

AFFECTED = " affected"
"""The word of a message after it has counted the layers that the fault has reached since."""


ROLLED_BACK = "BN003"
"""Code of the note that a training went back to an earlier state, which no other note is as important as."""


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

    def __repr__(self) -> str:
        return f"<Alert {self.code} {self.rule}: {self.severity}, {self.state}, since step {self.first_step}>"

    def _repr_html_(self) -> str:
        return block(strong(f"{self.severity.mark} {self}", str(self.severity)), f"fix: {plain(self.advice)}")

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

    def __repr__(self) -> str:
        return f"<Incident {self.cause}: {self.severity}, {self.state}, since step {self.first_step}>"

    def _repr_html_(self) -> str:
        first, detail, _ = self.lines()
        page = link(f"bnmonitor explain {self.code}", self.url)
        return block(strong(first, str(self.severity)), plain(detail), f"fix: {plain(self.advice)} · {page}")

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


def still_open(incidents: Iterable[Incident]) -> list[Incident]:
    """Return the incidents that are open, the worst first, then the earliest."""
    found = [incident for incident in incidents if incident.state == "open"]
    return sorted(found, key=lambda incident: (-incident.severity, incident.first_step, incident.index))


def worst_of(incidents: Iterable[Incident]) -> str:
    """Return what the worst open incident says, and how many more are open; empty if none is."""
    found = still_open(incidents)
    more = f", and {count(len(found) - 1, 'more incident')}" if len(found) > 1 else ""
    return f"{found[0].title}{more}" if found else ""
