"""A run under watch: what is looked at when, who judges it, and who is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bnmonitor.alerts import AlertBook
from bnmonitor.context import RunFacts
from bnmonitor.distributed import world_size
from bnmonitor.monitor.actions import AlertActions, AlertError, BatchNormWarning, warn
from bnmonitor.monitor.settings import Settings
from bnmonitor.recording import Moment, Recorder
from bnmonitor.results import Severity
from bnmonitor.rules import missing, unmet
from bnmonitor.sinks import BlackBox, Run, Sink
from bnmonitor.summary import Summary, empty, summarize
from bnmonitor.window import Window

logger = logging.getLogger("bnmonitor")

_LOG_EVERY = 50


class Session:
    """What :class:`bnmonitor.Monitor` wires together.

    Args:
        settings: How to watch.
        watch: Records the layers.
        facts: What the run tells of itself.
        sinks: Where findings go.
        log_dir: Where the black boxes go, unless :attr:`run` says so; None: not written.
    """

    def __init__(
        self, settings: Settings, watch: Recorder, facts: RunFacts, sinks: Sequence[Sink], log_dir: Path | None
    ) -> None:
        self.settings, self.watch, self.facts = settings, watch, facts
        self._chosen = settings.chosen_rules()
        self.optimizers: list[Optimizer] = []
        self.book = AlertBook([])
        self.responder = AlertActions(
            sinks, settings.actions(), self.book.tell, lambda: watch.steps[-1] if watch.steps else watch.count
        )
        self.run: dict[str, Any] = {"log_dir": log_dir}
        """Fields of :class:`bnmonitor.sinks.Run`, for the sinks."""
        self.running = self.validated = False
        self.black_box: BlackBox | None = None
        self._broken = ""
        self._log_every = _LOG_EVERY if settings.log_every_n_steps is None else settings.log_every_n_steps
        self._shown = False
        """Whether the state is what the last frame shows."""

    @property
    def watching(self) -> bool:
        """Whether there is a layer to watch, or may be one after the first forward."""
        return bool(len(self.watch.layers)) or self.watch.waiting

    def absent(self) -> dict[str, str]:
        """What rules may need and is not there now, with the reason."""
        loader = None if self.facts.unreadable else self.facts.train_loader is not None
        peers = self.watch.peers
        absent = missing(
            tracking=not len(self.watch.layers) or any(self.watch.layers.tracking),
            affine=not len(self.watch.layers) or any(self.watch.layers.affine),
            unsampled=self.watch.unsampled,
            untraced=self.watch.untraced,
            optimizers=bool(self.optimizers),
            loader=loader,
            scaler=self.facts.scaler is not None,
            validated=self.validated,
            probe=self.settings.probe,
            ranks=world_size() > 1,
            exchange=peers.shared and not peers.failure,
            split=bool(self.watch.layers.split),
            copies=self.watch.copies,
        )
        if peers.failure:
            absent["exchange"] = f"needs what all processes see, and {peers.failure}"
        return {**absent, "probe": self.watch.unprobed} if self.watch.unprobed else absent

    def guard(self, call: Callable[..., object], *args: Any, idle: bool = False) -> None:
        """Run a part of the monitor; should it fail, say so once and let training go on without it.

        Without a layer to watch it is run only if ``idle``.
        """
        if self._broken or not self.running or not (idle or self.watching):
            return
        try:
            call(*args)
        except (AlertError, BatchNormWarning):
            raise
        except Exception as error:
            self._broken = f"bnmonitor stopped watching, training goes on: {type(error).__name__}: {error}"
            self.watch.end()
            logger.debug("bnmonitor stopped watching", exc_info=True)
            warn(self._broken)

    def begin(self) -> None:
        """Begin to watch, or begin again."""
        if not self.running:
            self.running, self._broken = True, ""
            self.guard(self._begin, idle=True)

    def _begin(self) -> None:
        self.watch.begin()
        if not self.watching:
            return
        folder = self.run.get("log_dir")
        if self.black_box is None and folder is not None:
            self.black_box = BlackBox(Path(folder))
        self.book.rules = [rule for rule in self._chosen if rule.code not in self.book.broken]
        self.book.special = self.settings.special_rules()
        self.responder.tell("open", Run(layers=self.watch.layers, sinks=self.responder.sinks, **self.run))

    def step(self, number: int) -> None:
        """Look at the training batch that has just ended, and judge and show what is due."""
        self._shown = False
        self.watch.step(number, _learning_rate(self.optimizers))
        self.facts.step(number)
        count = self.watch.count
        due = self.watch.full or count == 1 or count % self.settings.check_every_n_steps == 0
        judged = self.check() if due else None
        if self._log_every and (count == 1 or count % self._log_every == 0) and self.watch.steps:
            self._frame(judged)

    def skipped(self) -> dict[str, str]:
        """Rules whose needs are not met now, by name, with the reason."""
        absent = self.absent()
        return {rule.name: why for rule in self._chosen if (why := unmet(rule.needs, absent))}

    def summary(self, epoch: int | None = None) -> Summary:
        """Return how every layer is now."""
        return self._summarize(self.window(), epoch)

    def window(self, *, wait: bool = True) -> Window | None:
        """Return the steps so far, judged or not; None before the first.

        Args:
            wait: Whether to wait for those that are still on their way from the device.
        """
        self.watch.collect(wait=wait)
        return self.watch.window(self.optimizers, self.facts)

    def _summarize(self, window: Window | None, epoch: int | None = None) -> Summary:
        if window is None:
            return empty(self.watch.layers, tuple(self.book.alerts), self.skipped())
        return summarize(window, tuple(self.book.alerts), self.skipped(), epoch)

    def _frame(self, judged: Window | None = None, *, last: bool = False) -> None:
        """Show the state; of the window that was just judged if there is one, as it knows most of it already."""
        self._shown = True
        window = judged or self.window(wait=False)
        self.responder.tell("frame", self._summarize(window))
        if window is not None and not last:
            self.watch.peers.listen(self.watch.steps)  # what came in while the window was judged
            self.watch.peers.offer(window)

    def check(self, evaluation: str = "", *, wait: bool = False) -> Window | None:
        """See whether the layers are still the same, and judge the steps since the last check; return the window.

        Without ``wait``, those that are still on their way from an accelerator are left to the next check, but for an
        evaluation, which is judged by the state it begins with.
        """
        if self.watch.renewed():
            logger.info("the model's layers have changed: %d are watched from here on", len(self.watch.layers))
            return None
        return self._judge(evaluation, wait=wait or bool(evaluation))

    def begin_evaluation(self, phase: str) -> None:
        """Judge what comes before an evaluation by the state that it begins with."""
        self.validated |= phase != "sanity"
        with torch.inference_mode(False):  # what is made here is written to in training
            self.guard(self.check, phase)
            self.guard(self.watch.pause, phase)

    def end_evaluation(self) -> None:
        """Judge what an evaluation has shown."""
        with torch.inference_mode(False):
            self.guard(self._end_evaluation)

    def _end_evaluation(self) -> None:
        self.watch.resume()
        if self.watch.has_unjudged:
            self._judge()

    @torch.no_grad()
    def _judge(self, evaluation: str = "", end: bool = False, *, wait: bool = True) -> Window | None:
        moment = Moment(optimizers=self.optimizers, run=self.facts, evaluation=evaluation, end=end, wait=wait)
        window = self.watch.advance(moment)
        unjudged = window is not None and (window.fresh > 0 or self.watch.has_unjudged)
        if window is None or not (unjudged or evaluation or end):
            return window
        times = {"check": unjudged, "evaluation": bool(evaluation), "end": end}
        events = self.book.check(window, self.absent(), [moment for moment, now in times.items() if now])
        self._shown &= not events
        self.watch.settle(window, held=self.book.held(window.layers))
        if self.black_box is not None:
            for alert in events:
                if alert.state == "open" and alert.severity is Severity.ERROR:
                    self.black_box.write(window, alert)
        self.responder.announce(events)
        return window

    def end_epoch(self, epoch: int | None) -> None:
        """Judge what is still unjudged, and let the sinks show the state."""
        self.check(wait=True)
        self.watch.end_epoch()
        if self.watch.steps:
            self.responder.tell("epoch", self.summary(epoch))

    def close(self, *, wait: bool = True) -> None:
        """Judge what is still unjudged, show the summary, and leave no hook behind.

        Args:
            wait: Whether to wait for what other processes still tell.
        """
        try:
            self.guard(self._judge, "", True)
        finally:
            self.watch.end()
            try:
                self.guard(self._close_sinks)
                if self.running and self._broken:
                    closing = empty(self.watch.layers, tuple(self.book.alerts), {"every rule": self._broken})
                    self.responder.tell("close", closing)
            finally:
                self.running = False
                self.watch.peers.leave(wait=wait)

    def _close_sinks(self) -> None:
        if self.black_box is not None:
            self.black_box.close()
            for error in self.black_box.failures():
                self.responder.report("the black box", error)
        if self._log_every and not self._shown and self.watch.steps:
            self._frame(last=True)
        self.responder.tell("close", self.summary())


def _learning_rate(optimizers: Sequence[Optimizer]) -> float:
    """The largest learning rate in force; NaN if unknown, or on a device that reading it would have to wait for."""
    rates = [g.get("lr") for o in optimizers for g in o.param_groups]
    known = [float(r) for r in rates if r is not None and not (isinstance(r, Tensor) and r.device.type != "cpu")]
    return max(known, default=float("nan"))
