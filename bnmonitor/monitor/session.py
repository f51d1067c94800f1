"""One training under watch: when rules run, when sinks are notified, and what happens when bnmonitor fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from bnmonitor._undisturbed import single_precision, undisturbed
from bnmonitor.alerts import AlertBook
from bnmonitor.context import RunFacts, rate_of
from bnmonitor.diagnosis import Change, Diagnosis
from bnmonitor.distributed import world_size
from bnmonitor.monitor.actions import AlertActions, AlertError, BatchNormWarning, warn
from bnmonitor.monitor.overhead import Overhead
from bnmonitor.monitor.run_files import RunFiles
from bnmonitor.monitor.settings import Settings
from bnmonitor.monitor.single_threaded import SingleThreaded
from bnmonitor.recording import Moment, Recorder
from bnmonitor.results import Alert
from bnmonitor.rules import Conditions, Finding, MonitorFault, absent_needs, unmet
from bnmonitor.rules.monitor.sink_error import SinkError
from bnmonitor.sinks import Run
from bnmonitor.summary import Summary, empty, summarize
from bnmonitor.window import Window

logger = logging.getLogger("bnmonitor")

_LOG_EVERY = 50

_CALM_CHECKS = 5
"""Checks of which the rules judge one, as long as there is nothing new."""

VERSION = 1
"""Of the state in a checkpoint."""

T = TypeVar("T")


class Session:
    """Runs the rules on what the recorder measured, and passes the results on: the engine of a Monitor.

    Args:
        settings: How to watch; holds the sinks.
        recorder: Records the layers.
        facts: What the user or the Trainer has said about the training.
        run: What the sinks get to know when they open.
        words: The functions behind actions that an adapter supplies, such as ``"checkpoint"``.
    """

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        facts: RunFacts,
        run: Run,
        words: Mapping[str, Callable[[Alert], object]],
    ) -> None:
        self.settings, self.recorder, self.facts = settings, recorder, facts
        self._run = run
        self._chosen = settings.chosen_rules()
        # Rules of the catalogue draw no random numbers and change no settings, which costs a tenth of them to ensure.
        # They compute no gradients and keep no tensor, so that autograd need not look at what they compute.
        self._own = all(type(rule).__module__.startswith("bnmonitor.") for rule in self._chosen)
        work: Callable[[], AbstractContextManager[None]] = torch.inference_mode if self._own else undisturbed
        self._rules_at_work = work
        # Not around what the user's functions and sinks do.
        self._alone = SingleThreaded()
        self.optimizers: list[Optimizer] = []
        self.book = AlertBook(self._chosen, settings.special_rules(), each=settings.check_every_n_steps)
        self.diagnosis = Diagnosis()
        self._alerts: tuple[Alert, ...] | None = None
        self.actions = AlertActions(settings, words, self._open_sink_error)
        self.running = self.validated = False
        self.files: RunFiles | None = None
        self.overhead = Overhead(settings.max_overhead, lambda: recorder.sampling.seconds)
        """The time that all this takes."""
        recorder.sampling.sparing = lambda: self.overhead.exceeded
        # The steps before the new ones are what these are compared with.
        each = settings.check_every_n_steps
        self._most_unjudged = max(each, (settings.window - each) // each * each)
        self._most_calm = min(self._most_unjudged, _CALM_CHECKS * each)
        self._judged = 0
        """Steps that there were when the rules last judged."""
        self._awake_until = 0
        """Up to which count of steps the rules judge at every check: as long as what was new is in the window."""
        self.failure = ""
        """Why bnmonitor has stopped watching; empty if it has not failed."""
        self._log_every = _LOG_EVERY if settings.log_every_n_steps is None else settings.log_every_n_steps
        self._shown = self._refused = False
        """Whether the state is what the last frame shows."""

    @property
    def watching(self) -> bool:
        """Whether the model has a layer to watch, or may have one after the first forward."""
        return bool(len(self.recorder.layers)) or self.recorder.waiting

    def absent(self) -> dict[str, str]:
        """What rules may need and is missing now, with the reason."""
        peers = self.recorder.peers
        return absent_needs(
            Conditions(
                layers=self.recorder.layers,
                unsampled=self.recorder.sampling.unsampled,
                untraced=self.recorder.sampling.untraced,
                unprobed=self.recorder.evaluations.unprobed,
                exchange_failure=peers.failure,
                untold=self.recorder.untold,
                optimizers=bool(self.optimizers),
                copies=self.recorder.copies,
                loader=None if self.facts.unreadable else self.facts.train_loader is not None,
                scaler=self.facts.scaler is not None,
                validated=self.validated,
                probe=self.settings.probe,
                ranks=world_size() > 1,
                shares=peers.shared,
            )
        )

    @property
    def log_dir(self) -> Path | None:
        """The directory for files of the run."""
        return self._run.log_dir

    def connect(self, **run: Any) -> None:
        """Change fields of the :class:`bnmonitor.sinks.Run` that the sinks get when they open."""
        self._run = replace(self._run, **run)

    def use_optimizers(self, optimizers: list[Optimizer]) -> None:
        """Set the optimizers of the training."""
        self.optimizers = optimizers

    def guard(self, call: Callable[..., object], *args: Any, idle: bool = False) -> None:
        """Run a part of the monitor. If it fails, warn once, stop watching, and let training go on.

        Without a layer to watch, the part runs only if ``idle``.
        """
        if not self.failure and self.running and (idle or self.watching):
            self.shielded(partial(call, *args), None)

    def shielded(self, call: Callable[[], T], otherwise: T) -> T:
        """Return what a call returns. If it fails, warn once, stop watching, and return something else."""
        try:
            with self.overhead, single_precision():
                return call()
        except (AlertError, BatchNormWarning):
            raise
        except Exception as error:
            self.fail(error)
            return otherwise

    def fail(self, error: Exception) -> None:
        """Stop watching because of an error, and warn once."""
        self.failure = f"bnmonitor stopped watching, training goes on: {type(error).__name__}: {error}"
        with suppress(Exception):
            self.recorder.end()
        logger.debug("bnmonitor stopped watching", exc_info=error)
        warn(self.failure)

    def refuse_capture(self) -> None:
        """Say once why a step is not looked at."""
        if not self._refused:
            self._refused = True
            warn(
                "bnmonitor does not look at a step while a CUDA graph is captured, as it would become a part of the "
                "graph: call monitor.step() after each replay of the graph instead"
            )

    def begin(self) -> None:
        """Start to watch, or start again."""
        if not self.running:
            self.running, self.failure = True, ""
            self.overhead.begin()
            try:
                self.guard(self._begin, idle=True)
            except BaseException:  # Ctrl-C as well: `with` never reaches its end
                self.abandon()
                raise

    def abandon(self) -> None:
        """Stop without a word: the hooks are removed, and nothing is written."""
        self.recorder.end()
        self.overhead.end()
        self.running = False

    def _begin(self) -> None:
        self.recorder.begin()
        if not self.watching:
            self.book.check(self.recorder.blank(), self.absent())
            self._diagnose()
            return
        if self.files is None and self._run.log_dir is not None:
            self.files = RunFiles(self._run.log_dir, self.settings.flight_bytes, self.actions.report_failure)
        self.actions.notify("open", replace(self._run, layers=self.recorder.layers, sinks=self.actions.sinks))

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Every alert so far, each with its incident."""
        if self._alerts is None:  # a Trainer asks after each batch, and alerts seldom change
            known = enumerate(self.book.alerts)
            self._alerts = tuple(replace(alert, incident=self.diagnosis.incident_of(i)) for i, alert in known)
        return self._alerts

    def _diagnose(self, window: Window | None = None) -> list[Change]:
        """Explain the alerts that are new or have changed."""
        self._alerts = None
        return self.diagnosis.update(self.book.alerts, window)

    def _open_sink_error(self, who: str, error: Exception) -> tuple[Alert, list[Change]]:
        """Open an alert about a sink, an action or the black box that raised."""
        step = self.recorder.steps[-1] if self.recorder.steps else self.recorder.count
        alert = self.book.open_fault(SinkError.report(who, error, step), SinkError())
        changes = self._diagnose()
        return self._explained(alert), changes

    def write_down(self, finding: Finding, rule: MonitorFault) -> None:
        """Open an alert about what bnmonitor has done, and announce it."""
        self.actions.announce([self._explained(self.book.open_fault(finding, rule))], self._diagnose())

    def rewind(self, record: Mapping[str, Any]) -> None:
        """Go on from what the recorder knew once, as the model has gone back to that state; steps are counted on."""
        recorder = self.recorder
        recorder.load_state_dict({**record, "count": recorder.count, "number": recorder.number})
        recorder.begin()
        self._shown = False

    def collect(self) -> None:
        """Take in what is recorded; after a failure, what was taken in before it is left."""
        self.guard(self.recorder.collect)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state for a checkpoint; after a failure, why there is none."""
        found: dict[str, Any] = {}
        if not self.failure:
            found = self.shielded(lambda: {"watch": self.recorder.state_dict(), "book": self._book_state()}, {})
        return {"version": VERSION, **(found or {"failure": self.failure})}

    def _book_state(self) -> dict[str, Any]:
        return {**self.book.state_dict(), "diagnosis": self.diagnosis.state_dict()}

    def doubt(self, state: Mapping[str, Any]) -> str:
        """Return why a state cannot be continued; empty if it can. Nothing changes."""
        try:
            if "failure" in state:
                return f"the run before it had failed: {state['failure']}"
            if state.get("version", VERSION) != VERSION:
                return f"it is of version {state['version']!r}, and this bnmonitor reads version {VERSION}"
            with torch.inference_mode(False), torch.no_grad(), single_precision():
                window = self.recorder.rehearse(state["watch"])
                book = AlertBook(self._chosen, self.settings.special_rules())
                book.load_state_dict(state["book"])
                _continue(Diagnosis(), state, book.alerts)
                if window is not None:
                    summarize(window, tuple(book.alerts), {})
            return ""
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that there is no doubt about."""
        self.shielded(partial(self._load, state), None)
        self.guard(self.recorder.begin)

    def _load(self, state: Mapping[str, Any]) -> None:
        self.recorder.load_state_dict(state["watch"])
        self.book.load_state_dict(state["book"])
        _continue(self.diagnosis, state, self.book.alerts)
        self._alerts = None

    def step(self, number: int, loss: object = None) -> None:
        """Record the training batch that has just ended; run the rules and write a frame when they are due."""
        self._shown = False
        with self._alone:
            self.recorder.step(number, _learning_rate(self.optimizers), loss)
            self.facts.step(number)
        count = self.recorder.count
        due = self.recorder.full or count == 1 or count % self.settings.check_every_n_steps == 0
        judged = self._look(count) if due else None
        if self._log_every and (count == 1 or count % self._log_every == 0) and self.recorder.steps:
            self._frame(judged)

    def _look(self, count: int) -> Window | None:
        """Take in the steps since the last check; run the rules on them unless a later check is soon enough."""
        if self._renewed():
            return None
        self._collect(wait=False)
        each = self.settings.check_every_n_steps
        if self.recorder.has_lasting_news:
            self._awake_until = count + self.settings.window + each
        may_wait = count > 1 and count + each <= self._judged + self._most_unjudged
        if may_wait and (self.overhead.exceeded or (count % self._most_calm != each and self._is_calm())):
            return None
        return self._judge(wait=False)

    def _is_calm(self) -> bool:
        """Whether the rules would find now what they found last, unless it grows slowly."""
        quiet = self.recorder.count >= self._awake_until and not self.recorder.has_news
        return quiet and self._own and self.book.settled and world_size() == 1

    def skipped(self) -> dict[str, str]:
        """Rules whose needs are not met now, by name, each with the reason."""
        absent = self.absent()
        return {rule.name: why for rule in self._chosen if (why := unmet(rule.needs, absent))}

    def summary(self, epoch: int | None = None) -> Summary:
        """Return the state of every layer now."""
        found = None if self.failure else self.shielded(lambda: self._summarize(self.window(), epoch), None)
        return self._unknown() if found is None else found

    def _unknown(self) -> Summary:
        """The summary after a failure."""
        return replace(
            empty(self.recorder.layers, tuple(self.book.alerts), {"every rule": self.failure}),
            incidents=self.diagnosis.incidents,
        )

    def window(self, *, wait: bool = True) -> Window | None:
        """Return the steps so far, whether rules have judged them or not; None before the first step.

        Args:
            wait: Whether to wait for steps whose copy from an accelerator is not complete.
        """
        self._collect(wait=wait)
        return self.recorder.window(self.optimizers, self.facts)

    def _collect(self, *, wait: bool) -> None:
        with self._alone:
            self.facts.collect(wait=False)  # what is sent before the steps arrives before them
            self.recorder.collect(wait=wait)

    def _summarize(self, window: Window | None, epoch: int | None = None) -> Summary:
        if window is None:
            found = empty(self.recorder.layers, tuple(self.book.alerts), self.skipped())
        else:
            with self._alone:
                found = summarize(window, tuple(self.book.alerts), self.skipped(), epoch, self.diagnosis.incidents)
        loss = next(iter(self.recorder.course.losses(self.recorder.steps[-1:])), None)
        return replace(
            found,
            unwatched=tuple(self.recorder.unwatched),
            unwatched_evaluations=() if window is None else window.ledger.unwatched,
            incidents=self.diagnosis.incidents,
            loss=float("nan") if loss is None else loss,
            learning_rates=_learning_rates(self.optimizers),
            overhead=self.overhead.share,
        )

    def _frame(self, judged: Window | None = None, *, last: bool = False) -> None:
        """Pass the state to the sinks; a window that was just judged is used again, with what it has computed."""
        self._shown = True
        window = judged or self.window(wait=False)
        self.actions.notify("frame", self._summarize(window))
        if window is not None and not last:
            self.recorder.listen()  # receives what other processes sent while the rules ran
            self.recorder.tell(window)

    def check(self, evaluation: str = "", *, wait: bool = False) -> Window | None:
        """Run the rules on the steps since the last check, unless the layers have changed; return the window.

        Without ``wait``, steps whose copy from an accelerator is not complete are left to the next check. An
        evaluation always waits, because it is judged by the state at its start.
        """
        return None if self._renewed() else self._judge(evaluation, wait=wait or bool(evaluation))

    def _renewed(self) -> bool:
        """Find the layers again if they have changed; return whether they have."""
        renewed = self.recorder.renewed()
        if renewed:
            logger.info("the model's layers have changed: bnmonitor watches %d from now on", len(self.recorder.layers))
        return renewed

    def add_model(self, name: str, model: nn.Module) -> None:
        """Watch a further model, after the rules have seen what there is; one in an evaluation is for the next."""
        with torch.inference_mode(False):  # tensors that are made here are written to in training
            judged = self.check(wait=True)
            if self._log_every and not self._shown and self.recorder.steps:
                self._frame(judged)
            self.recorder.add_model(name, model)

    def begin_evaluation(self, phase: str) -> None:
        """Run the rules on the state at the start of an evaluation."""
        self.validated |= phase != "sanity"
        with torch.inference_mode(False):  # tensors that are made here are written to in training
            self.guard(self.check, phase)
            self.guard(self.recorder.pause, phase)

    def end_evaluation(self) -> None:
        """Run the rules on what the evaluation has shown."""
        with torch.inference_mode(False):
            self.guard(self._end_evaluation)

    def _end_evaluation(self) -> None:
        self.recorder.resume()
        if self.recorder.evaluations.has_unjudged:
            self._judge()

    @torch.no_grad()
    def _judge(self, evaluation: str = "", end: bool = False, *, wait: bool = True) -> Window | None:
        moment = Moment(optimizers=self.optimizers, run=self.facts, evaluation=evaluation, end=end, wait=wait)
        with self._alone:
            window = self.recorder.advance(moment)
        self._judged = self.recorder.count
        unjudged = window is not None and (window.fresh > 0 or self.recorder.evaluations.has_unjudged)
        if window is None or not (unjudged or evaluation or end):
            return window
        times = {"check": unjudged, "evaluation": bool(evaluation), "end": end}
        with self._alone, self._rules_at_work():
            events = self.book.check(window, self.absent(), [moment for moment, now in times.items() if now])
            changes = self._diagnose(window)
        self._shown &= not (events or changes)
        if self.files is not None:
            self.files.judged(window, events, [change.incident for change in changes])
        with self._alone:
            self.recorder.settle(window, held=self.book.held(window.layers))
        self.actions.announce([self._explained(alert) for alert in events], changes)
        return window

    def _explained(self, alert: Alert) -> Alert:
        """An alert of the log with its incident."""
        known = self.book.alerts
        at = next(i for i in reversed(range(len(known))) if known[i] is alert or known[i].key == alert.key)
        return replace(alert, incident=self.diagnosis.incident_of(at))

    def end_epoch(self, epoch: int | None) -> None:
        """Run the rules on the steps that are left, and pass the state to the sinks."""
        self.check(wait=True)
        self.recorder.end_epoch()
        if self.files is not None:
            self.files.end_epoch(epoch)
        if self.recorder.steps:
            self.actions.notify("epoch", self.summary(epoch))

    def close(self, *, wait: bool = True) -> None:
        """Run the rules on the steps that are left, pass the summary to the sinks, and remove all hooks.

        Args:
            wait: Whether to wait for what other processes still send.
        """
        with ExitStack() as last_first:  # whatever raises, all else is done
            last_first.callback(self.recorder.end)  # once more: Ctrl-C may have come within the first time
            last_first.callback(self.shielded, partial(self.recorder.peers.leave, wait=wait), None)
            last_first.callback(setattr, self, "running", False)
            last_first.callback(self.overhead.end)
            last_first.callback(self.shielded, self._close_failed, None)
            last_first.callback(self.guard, self._close_sinks)
            last_first.callback(self.shielded, self.recorder.end, None)
            self.guard(self._judge, "", True)

    def _close_failed(self) -> None:
        """Close the sinks after a failure."""
        if self.running and self.failure:
            self.actions.notify("close", self._unknown())

    def _close_sinks(self) -> None:
        if self.files is not None:
            self.files.close()
        if self._log_every and not self._shown and self.recorder.steps:
            self._frame(last=True)
        self.actions.notify("close", self.summary())


def _continue(diagnosis: Diagnosis, state: Mapping[str, Any], alerts: Sequence[Alert]) -> None:
    """Continue the incidents of a checkpoint; one of before there were incidents gets those of its alerts."""
    if "diagnosis" in state["book"]:
        diagnosis.load_state_dict(state["book"]["diagnosis"], alerts)
    else:
        diagnosis.update(alerts)


def _learning_rates(optimizers: Sequence[Optimizer]) -> tuple[float, ...]:
    """The learning rate of each group; NaN if it is unknown, or on a device, where reading it would wait."""
    return tuple([rate_of(group) for optimizer in optimizers for group in optimizer.param_groups])


def _learning_rate(optimizers: Sequence[Optimizer]) -> float:
    """The largest learning rate in force; NaN if it is unknown."""
    return max([rate for rate in _learning_rates(optimizers) if rate == rate], default=float("nan"))
