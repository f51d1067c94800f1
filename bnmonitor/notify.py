"""Notifications for people who are not at the terminal: webhooks and Weights & Biases, as actions of ``on_alert``."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args
from urllib import error as errors
from urllib import request as requests
from urllib.parse import urlsplit

from bnmonitor._text import nearest
from bnmonitor.results import Alert, Severity

logger = logging.getLogger("bnmonitor")

Payload = Literal["text", "slack", "discord", "teams", "json"]
_PAYLOADS: tuple[str, ...] = get_args(Payload)
_LONGEST_TEXT = 1900
"""Characters of a text: Discord refuses more than 2,000."""

_WAITING = 100
_LONGEST_WAIT = 60.0


class DeliveryError(RuntimeError):
    """An alert could not be delivered."""


class Notifier:
    """An action that delivers alerts in the background."""

    def __call__(self, alert: Alert) -> None:
        """Accept an alert for delivery, and return at once."""
        raise NotImplementedError

    def flush(self) -> None:
        """Wait a limited time for pending deliveries."""

    def failure(self) -> DeliveryError | None:
        """Return the first failure since the last call; None if there was none."""
        return None


class Webhook(Notifier):
    """Posts alerts to an HTTP address, from its own thread.

    The body is ``{"text": ...}``, which chat tools such as Mattermost and Google Chat accept, the format of Slack,
    Discord or Teams, or JSON (``{"version": 1, "host": ..., "alert": {...}, "incident": {...}, "withheld": 0}``). After
    a failed connection or an answer of 408, 429 or 5xx the webhook tries again, each time after twice as long, or after
    the time that the server asks for. Any other answer is final, and redirections are not followed. Secrets come from
    environment variables and are never shown::

        BatchNormMonitor(on_alert={"error": ["stop", Webhook(url_env="SLACK_URL")]})

    Args:
        url_env: Name of the environment variable that holds the address.
        url: The address itself, if it is not a secret; ``url_env`` is then ignored.
        token_env: Name of the environment variable with a token, sent as ``Authorization: Bearer``; None: no token.
        payload: "slack", "discord", "teams" (a workflow's address), "text" for other chat tools, or "json".
        timeout: Seconds to wait for the server.
        attempts: How often the webhook tries to send an alert, at most.
        backoff: Seconds before the second attempt.
        per_minute: How many alerts are sent in a minute, at most; the next message counts those that were withheld.

    Raises:
        ValueError: An argument has a value that is not accepted, or an environment variable is not set.
    """

    def __init__(
        self,
        *,
        url_env: str = "BNMONITOR_WEBHOOK_URL",
        url: str | None = None,
        token_env: str | None = None,
        payload: Payload = "text",
        timeout: float = 5.0,
        attempts: int = 4,
        backoff: float = 1.0,
        per_minute: int = 20,
    ) -> None:
        if payload not in _PAYLOADS:
            known = ", ".join(map(repr, _PAYLOADS))
            raise ValueError(f"payload must be {known}, got {payload!r}{nearest(str(payload), _PAYLOADS)}")
        for name, value in (("timeout", timeout), ("backoff", backoff)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 3600:
                raise ValueError(f"{name} must be a number of seconds above 0 and below 3600, got {value!r}")
        for name, number in (("attempts", attempts), ("per_minute", per_minute)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {number!r}")
        self._given, self._url_env, self._token_env = (None if url is None else _Secret(url)), url_env, token_env
        self._read_secrets()
        self._payload, self._timeout, self._attempts = payload, float(timeout), attempts
        self._backoff, self._per_minute = float(backoff), per_minute
        self._queue = _DeliveryQueue(self._deliver, per_minute)

    def __repr__(self) -> str:
        return f"Webhook(host={self._host!r}, payload={self._payload!r})"

    def __call__(self, alert: Alert) -> None:
        """Queue an alert to be posted."""
        self._queue.put(alert)

    def flush(self) -> None:
        """Wait until every alert is posted, at most twice the timeout."""
        self._queue.flush(2 * self._timeout)

    def failure(self) -> DeliveryError | None:
        """Return the first failure since the last call."""
        why, self._queue.failed = self._queue.failed, ""
        return DeliveryError(f"an alert was not delivered to {self._host}: {why}") if why else None

    def __getstate__(self) -> dict[str, Any]:
        # A copy reads the secrets from the environment again, so that they are not written into a file.
        return {name: value for name, value in vars(self).items() if name not in ("_queue", "_url", "_token")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._read_secrets()
        self._queue = _DeliveryQueue(self._deliver, self._per_minute)

    def _read_secrets(self) -> None:
        self._url = self._given or _environment(self._url_env)
        self._host = _host(self._url, "url" if self._given else f"the environment variable {self._url_env}")
        self._token = None if self._token_env is None else _environment(self._token_env)

    # -- on the thread of the queue ------------------------------------------------------------------------------------

    def _deliver(self, alert: Alert, withheld: int) -> None:
        body = json.dumps(self._body(alert, withheld), allow_nan=False).encode()
        for attempt in range(self._attempts):
            try:
                self._post(body)
                return
            except OSError as error:
                final = isinstance(error, errors.HTTPError) and error.code not in (408, 429) and error.code < 500
                if final or attempt == self._attempts - 1:
                    raise
                time.sleep(min(_LONGEST_WAIT, _asked_wait(error) or self._backoff * 2**attempt))

    def _body(self, alert: Alert, withheld: int) -> dict[str, Any]:
        if self._payload == "json":
            told = {} if alert.incident is None else {"incident": alert.incident.to_dict()}
            return {"version": 1, "host": platform.node(), "alert": alert.to_dict(), **told, "withheld": withheld}
        more = f"\n{withheld} more alerts were withheld: too many in a minute" if withheld else ""
        text = f"{str(alert.severity).upper()} on {platform.node()}: {_in_full(alert)}{more}"
        return _message(self._payload, text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…")

    def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "bnmonitor"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.text}"
        request = requests.Request(self._url.text, data=body, headers=headers, method="POST")
        with requests.build_opener(_NoRedirection).open(request, timeout=self._timeout) as answer:
            answer.read(1)


def _message(payload: str, text: str) -> dict[str, Any]:
    """The body for a chat tool; the name of a layer must not notify a person or become a link."""
    if payload == "slack":  # docs.slack.dev/messaging/formatting-message-text: three signs to escape
        return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    if payload == "discord":  # docs.discord.com/developers/resources/webhook
        return {"content": text, "allowed_mentions": {"parse": []}}
    if payload == "teams":  # the trigger "when a Teams webhook request is received" posts Adaptive Cards only
        lines = [{"type": "TextBlock", "text": line, "wrap": True} for line in text.split("\n")]
        card = {"type": "AdaptiveCard", "version": "1.4", "body": lines}
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
        return {"type": "message", "attachments": [attachment]}
    return {"text": text}


class _DeliveryQueue:
    """Calls a function with each alert, on its own thread.

    Args:
        deliver: Called with an alert, and with the number of alerts that were withheld before it.
        per_minute: How many alerts are delivered in a minute, at most.
    """

    def __init__(self, deliver: Callable[[Alert, int], None], per_minute: int) -> None:
        self._deliver, self._per_minute = deliver, per_minute
        self._waiting: queue.Queue[Alert | threading.Event] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._withheld = 0
        self.failed = ""
        """Why the first delivery failed, until :meth:`Webhook.failure` returns it; empty if none did."""
        self._has_failed = False

    def put(self, alert: Alert) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="bnmonitor-webhook", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(alert)
        except queue.Full:
            self._withheld += 1

    def flush(self, seconds: float) -> None:
        done = threading.Event()
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._waiting.put(done, timeout=seconds)
        if not done.wait(seconds):
            self._fail("it did not accept all alerts in time")

    def _work(self) -> None:
        sent: deque[float] = deque(maxlen=self._per_minute)
        while True:
            item = self._waiting.get()
            if isinstance(item, threading.Event):
                item.set()
            elif len(sent) == self._per_minute and time.monotonic() - sent[0] < 60:
                self._withheld += 1
            else:
                sent.append(time.monotonic())
                withheld, self._withheld = self._withheld, 0
                try:
                    self._deliver(item, withheld)
                except Exception as error:
                    self._fail(_plainly(error))

    def _fail(self, why: str) -> None:
        logger.warning("an alert was not delivered: %s", why)
        if not self._has_failed:
            self.failed, self._has_failed = why, True


class _Secret:
    """A text that is never shown."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "***"


class _NoRedirection(requests.HTTPRedirectHandler):
    """Refuses redirections, which would send the token to another address."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _environment(name: str) -> _Secret:
    value = os.environ.get(name, "").strip()
    if not value:
        raise ValueError(f"the environment variable {name} is not set: the webhook reads a secret from it")
    return _Secret(value)


def _host(url: _Secret, where: str) -> str:
    """Return the host of an address.

    Raises:
        ValueError: The address cannot be posted to; the message quotes no part of it.
    """
    try:
        address = urlsplit(url.text)
        host, _ = address.hostname, address.port
    except ValueError:
        host, address = None, urlsplit("")
    if address.scheme not in ("http", "https") or not host or not url.text.isascii() or not url.text.isprintable():
        raise ValueError(f"{where} must hold an address that begins with https:// or http://, in ASCII letters")
    if "@" in address.netloc:
        raise ValueError(
            f"{where} holds an address with a user name or a password in it, which urllib does not send: "
            "put a token into an environment variable and name it with token_env"
        )
    return host


def _plainly(error: Exception) -> str:
    """The reason of a failure, without the address that some messages quote."""
    if isinstance(error, errors.HTTPError):
        return f"HTTP {error.code}"
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or (
        "timed out" if isinstance(reason, TimeoutError) else type(reason).__name__
    )


def _asked_wait(error: OSError) -> float:
    """The seconds that the server asks the client to wait; 0 if it does not."""
    asked = error.headers.get("Retry-After", "") if isinstance(error, errors.HTTPError) and error.headers else ""
    with contextlib.suppress(ValueError):
        return max(0.0, min(float(asked), _LONGEST_WAIT))
    return 0.0


def wandb_runs(loggers: Sequence[Any]) -> list[Any]:
    """Return the Weights & Biases runs of a Trainer's loggers; if there are none, the active run."""
    found = [each.experiment for each in loggers if any(c.__name__ == "WandbLogger" for c in type(each).__mro__)]
    active = getattr(sys.modules.get("wandb"), "run", None)
    return found or ([active] if active is not None else [])


def _in_full(alert: Alert) -> str:
    """The incident that an alert leads, or the alert alone, with the fix."""
    return f"{alert}\nfix: {alert.advice}" if alert.incident is None else str(alert.incident)


def send_to_wandb(runs: Sequence[Any], alert: Alert) -> None:
    """Send an alert through Weights & Biases, which mails or posts it according to the user's settings there."""
    levels = {Severity.INFO: "INFO", Severity.WARNING: "WARN", Severity.ERROR: "ERROR"}
    for run in runs:
        run.alert(
            title=alert.incident.title if alert.incident is not None else f"{alert.code} {alert.rule}",
            text=_in_full(alert),
            level=levels[alert.severity],
        )
