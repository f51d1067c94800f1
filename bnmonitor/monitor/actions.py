"""What happens when an alert opens: every sink is told, then the action is taken that was asked for."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from bnmonitor.monitor.settings import OneAction, unsaid
from bnmonitor.notify import Notifier, tell_wandb, wandb_runs
from bnmonitor.results import Alert, Severity
from bnmonitor.rules import Finding, Rule
from bnmonitor.rules.monitor.rule_error import RuleError
from bnmonitor.rules.monitor.sink_error import SinkError
from bnmonitor.sinks import FanOut, Run, Sink

logger = logging.getLogger("bnmonitor")

_LEVELS = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.ERROR: logging.ERROR}
_OWN_FAULTS = (RuleError.code, SinkError.code)
"""Alerts about bnmonitor itself, which never stop a training."""


class BatchNormWarning(UserWarning):
    """What ``on_alert="warn"`` warns with, and what bnmonitor says of its own set-up."""


class AlertError(RuntimeError):
    """What ``on_alert="raise"`` raises.

    Attributes:
        alert: The alert.
    """

    def __init__(self, alert: Alert) -> None:
        super().__init__(_sentence(alert))
        self.alert = alert


def _sentence(alert: Alert) -> str:
    """All that there is to say of an alert where there is no room for a table."""
    return f"{alert}. Fix: {alert.advice}" + (f". See {alert.url}" if alert.url else "")


def warn(message: str) -> None:
    """Say something of the set-up as a Python warning."""
    warnings.warn(message, BatchNormWarning, stacklevel=2)


class AlertActions:
    """Tells the sinks, and acts.

    Args:
        sinks: Where alerts go.
        actions: What to do by severity.
        tell: Opens an alert about bnmonitor itself.
        now: The step that such an alert is dated with.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        actions: Mapping[Severity, tuple[OneAction, ...]],
        tell: Callable[[Finding, Rule], Alert],
        now: Callable[[], int],
    ) -> None:
        self._sinks = FanOut(sinks, lambda sink, error: self.report(f"sink {type(sink).__name__}", error))
        self._actions = dict(actions)
        self._wandb: list[Any] = []
        self._silent = not sinks
        self._tell_book, self._now = tell, now
        self.should_stop = False
        """Set by the action ``"stop"``."""

    def tell(self, what: Literal["open", "frame", "epoch", "close"], argument: Any) -> None:
        """Tell every sink something other than an alert."""
        if what == "open":
            self._meet(argument)
        self._sinks.tell(what, argument)
        for notifier in self._notifiers:
            if what == "close":
                notifier.flush()
            failed = notifier.failure()
            if failed is not None:
                self.report("on_alert", failed)

    def announce(self, events: Sequence[Alert]) -> None:
        """Tell the sinks of all alerts, then act on each that is open: an action may raise."""
        for alert in events:
            self._sinks.tell("alert", alert)
        for alert in events:
            if alert.state == "open":
                for action in sorted(self._actions[alert.severity], key=lambda action: action == "raise"):
                    self._act(action, alert)

    def report(self, who: str, error: Exception) -> None:
        """Open an alert about something of the user's, or of ours, that raised."""
        self.announce([self._tell_book(SinkError.report(who, error, self._now()), SinkError())])

    @property
    def sinks(self) -> Sequence[Sink]:
        """The sinks; one that failed is not among them any more."""
        return self._sinks.sinks

    @property
    def _notifiers(self) -> list[Notifier]:
        every = [action for actions in self._actions.values() for action in actions if isinstance(action, Notifier)]
        return list(dict.fromkeys(every))

    def _meet(self, run: Run) -> None:
        """Find who the word ``"wandb"`` means in this run."""
        if any("wandb" in actions for actions in self._actions.values()):
            self._wandb = wandb_runs(run.loggers)
            if not self._wandb:
                warn('on_alert="wandb" finds no run: give the Trainer a WandbLogger, or call wandb.init() first')

    def _act(self, action: OneAction, alert: Alert) -> None:
        if alert.code in _OWN_FAULTS and action in ("stop", "raise"):
            action = "warn"
        if callable(action):
            self._call(action, alert)
        elif action == "raise":
            raise AlertError(alert)
        elif action == "stop":
            self.should_stop = True
        elif action == "wandb":
            self._call(self._tell_wandb, alert)
        elif action == "log":
            logger.log(_LEVELS[alert.severity], "%s", _sentence(alert))
        elif not self._sinks.shows_alerts and not (self._silent and unsaid(action)):
            warn(_sentence(alert))

    def _call(self, action: Callable[[Alert], object], alert: Alert) -> None:
        """Call the user's function; should it raise, alerts are only logged from then on."""
        try:
            action(alert)
        except Exception as error:
            known = "wandb" if action == self._tell_wandb else action
            self._actions = {
                severity: tuple("log" if each is known or each == known else each for each in actions)
                for severity, actions in self._actions.items()
            }
            self.report("on_alert", error)

    def _tell_wandb(self, alert: Alert) -> None:
        tell_wandb(self._wandb, alert)
