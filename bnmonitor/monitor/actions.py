"""What happens when an alert opens: all sinks are notified, then the actions run that the user asked for."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, Protocol

from bnmonitor._undisturbed import undisturbed
from bnmonitor.diagnosis import Change
from bnmonitor.monitor.settings import OneAction, Settings
from bnmonitor.notify import Notifier, send_to_wandb, wandb_runs
from bnmonitor.results import Alert, Severity
from bnmonitor.rules import MONITOR_FAULTS
from bnmonitor.sinks import FanOut, Run, Sink

logger = logging.getLogger("bnmonitor")

_LEVELS = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.ERROR: logging.ERROR}
_NOT_FOR_MONITOR_FAULTS = ("stop", "raise", "checkpoint", "rollback", "save-batch")
"""Actions that change the training: an alert about bnmonitor itself gives a warning instead."""


class BatchNormWarning(UserWarning):
    """The warning of ``on_alert="warn"``, and of problems in bnmonitor's own set-up."""


class AlertError(RuntimeError):
    """The exception that ``on_alert="raise"`` raises.

    Attributes:
        alert: The alert.
    """

    def __init__(self, alert: Alert) -> None:
        super().__init__(_sentence(alert))
        self.alert = alert


def _sentence(alert: Alert) -> str:
    """The incident of an alert, or the alert alone, in one line, for places without room for a table."""
    if alert.incident is not None:
        return " · ".join(filter(None, alert.incident.lines())).removeprefix(f"{alert.incident.severity.mark} ")
    return f"{alert}. Fix: {alert.advice}" + (f". See {alert.url}" if alert.url else "")


def _log(change: Change) -> None:
    """Write a record of an incident: handlers find it as ``incident`` in the record."""
    incident, kind = change
    level = logging.INFO if kind in ("resolved", "revised") else _LEVELS[incident.severity]
    text = f"resolved: {incident.title}" if kind == "resolved" else " · ".join(filter(None, incident.lines()))
    logger.log(level, "%s", text, extra={"incident": incident})


def warn(message: str) -> None:
    """Give a Python warning about the set-up."""
    warnings.warn(message, BatchNormWarning, stacklevel=2)


class FaultOpener(Protocol):
    """Opens an alert about a sink or an action that raised."""

    def __call__(self, who: str, error: Exception) -> tuple[Alert, Sequence[Change]]:
        """Open the alert, and return it with the incidents that have changed."""


class AlertActions:
    """Notifies the sinks, and runs the actions.

    Args:
        settings: Holds the sinks, and the actions by severity.
        words: The functions behind words that an adapter supplies, such as ``"checkpoint"``.
        open_fault: Called when a sink or an action raised. The alert that it returns is announced like any other.
    """

    def __init__(
        self, settings: Settings, words: Mapping[str, Callable[[Alert], object]], open_fault: FaultOpener
    ) -> None:
        self._sinks = FanOut(
            settings.sinks or (), lambda sink, error: self.report_failure(f"sink {type(sink).__name__}", error)
        )
        self._actions = settings.actions()
        self._words = {**words, "wandb": self._send_to_wandb}
        self._wandb: list[Any] = []
        self._open_fault = open_fault
        self.should_stop = False
        """Whether the training should end."""

    def request_stop(self, wanted: bool = True) -> None:
        """Say that the training should end, or take that back."""
        self.should_stop = wanted

    def notify(self, event: Literal["open", "frame", "epoch", "close"], argument: Any) -> None:
        """Pass an event other than an alert to every sink."""
        if event == "open":
            self._find_wandb_runs(argument)
        self._sinks.call(event, argument)
        for notifier in self._notifiers:
            if event == "close":
                notifier.flush()
            failed = notifier.failure()
            if failed is not None:
                self.report_failure("on_alert", failed)

    def announce(self, events: Sequence[Alert], changes: Sequence[Change] = ()) -> None:
        """Pass alerts and incidents to the sinks, then run the actions: an action may raise.

        An action runs when an incident opens and when its severity rises, with the alert that leads the incident; and
        when a note opens that no incident explains.

        Args:
            events: Alerts that opened, got worse or were cleared.
            changes: Incidents that have changed.
        """
        for alert in events:
            self._sinks.call("alert", alert)
        for change in changes:
            self._sinks.call("incident", change.incident)
            _log(change)
        due = [alert for alert in events if alert.state == "open" and alert.incident is None]
        for incident, kind in changes:
            if kind in ("opened", "worse"):
                due.append(replace(incident.evidence[0], severity=incident.severity, incident=incident))
        for alert in due:
            for action in sorted(self._actions[alert.severity], key=lambda action: action == "raise"):
                self._act(action, alert)

    def report_failure(self, who: str, error: Exception) -> None:
        """Open and announce an alert about a sink, an action or the black box that raised."""
        alert, changes = self._open_fault(who, error)
        self.announce([alert], changes)

    @property
    def sinks(self) -> Sequence[Sink]:
        """The sinks, without those that failed."""
        return self._sinks.sinks

    @property
    def _notifiers(self) -> list[Notifier]:
        every = [action for actions in self._actions.values() for action in actions if isinstance(action, Notifier)]
        return list(dict.fromkeys(every))

    def _find_wandb_runs(self, run: Run) -> None:
        if any("wandb" in actions for actions in self._actions.values()):
            self._wandb = wandb_runs(run.loggers)
            if not self._wandb:
                warn('on_alert="wandb" finds no run: give the Trainer a WandbLogger, or call wandb.init() first')

    def _send_to_wandb(self, alert: Alert) -> None:
        send_to_wandb(self._wandb, alert)

    def _act(self, action: OneAction, alert: Alert) -> None:
        if alert.code in MONITOR_FAULTS and action in _NOT_FOR_MONITOR_FAULTS:
            action = "warn"
        function = action if callable(action) else self._words.get(action)
        if function is not None:
            self._call(action, function, alert)
            if action == "rollback":  # it may have nothing to go back to
                self._show(alert)
        elif action == "raise":
            raise AlertError(alert)
        elif action == "stop":
            self.request_stop()
        elif action == "log":
            if alert.incident is None:  # an incident is in the log by now
                logger.log(_LEVELS[alert.severity], "%s", _sentence(alert))
        else:
            self._show(alert)

    def _show(self, alert: Alert) -> None:
        """Warn, unless a sink shows the alert."""
        if not self._sinks.shows_alerts:
            warn(_sentence(alert))

    def _call(self, action: OneAction, function: Callable[[Alert], object], alert: Alert) -> None:
        """Call the function of an action; if it raises, the action only logs alerts from then on."""
        # A function of the user's may want to change the training's random states.
        ours = isinstance(action, str | Notifier)
        try:
            with undisturbed() if ours else nullcontext():
                function(alert)
        except Exception as error:
            self._actions = {
                severity: tuple("log" if each is action or each == action else each for each in actions)
                for severity, actions in self._actions.items()
            }
            self.report_failure("on_alert", error)
