"""What every adapter does with its monitor: no error of its own reaches the trainer, and nothing stays behind."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from weakref import WeakMethod

from torch import Tensor, nn

from bnmonitor._text import nearest
from bnmonitor.integrations.modes import Modes
from bnmonitor.layers import norms
from bnmonitor.monitor import (
    AlertError,
    BatchNormWarning,
    Monitor,
    Phase,
    RefusedError,
    Settings,
    as_folder,
    make_harmless,
    warn,
)
from bnmonitor.results import Alert, Incident
from bnmonitor.sinks import Console, Sink, TensorBoard
from bnmonitor.summary import Summary

logger = logging.getLogger("bnmonitor")

harmless = make_harmless(watch=lambda adapter: adapter.watch)
"""Lets a hook of an adapter end the watch, and not the training, if it raises."""


class Watch:
    """One training under watch, for an adapter that is told of its events.

    Args:
        log_dir: The directory for the history; None: none is written.
        settings: Keyword arguments that :class:`bnmonitor.Monitor` and the Lightning callback share.

    Raises:
        TypeError: An argument has a name or a type that is not accepted.
        ValueError: An argument has a value that is not accepted.
    """

    def __init__(self, log_dir: str | Path | None, settings: Mapping[str, Any]) -> None:
        known = [field.name for field in fields(Settings)]
        for name in settings:
            if name not in known:
                raise TypeError(f"there is no argument {name!r}{nearest(name, known)}; there are {', '.join(known)}")
        self.log_dir = as_folder(log_dir)
        self.settings = Settings(**settings)
        self.monitor: Monitor | None = None
        self.gave_up = False
        """Whether an error in the adapter has ended the watch of this training."""
        self._models: list[nn.Module] = []
        self._evaluating = False
        self._raised: Exception | None = None
        self._modes: Modes | None = None
        self._at_exit: Callable[[], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds the model."""
        gone: dict[str, Any] = {"monitor": None, "_models": [], "_modes": None, "_at_exit": None, "_evaluating": False}
        return {**vars(self), **gone}

    @property
    def running(self) -> bool:
        """Whether a training is being watched."""
        return self.monitor is not None and self.monitor.running

    def begin(
        self,
        models: nn.Module | Mapping[str, nn.Module],
        optimizers: Any = None,
        *,
        log_dir: Path | None = None,
        sinks: Sequence[Sink] = (),
        by_mode: bool = False,
        **facts: Any,
    ) -> Monitor:
        """Begin to watch a training; one that was not ended is closed before, and one of the same models goes on.

        Args:
            models: What is trained, and averages of it, by name.
            optimizers: The optimizers.
            log_dir: Where the library writes, for the history where the user has named no directory.
            sinks: Further sinks, where the user has chosen none.
            by_mode: Whether evaluations are told by the mode of the models, as the library does not tell of them.
            facts: What :meth:`bnmonitor.Monitor.learn` takes.

        Raises:
            RefusedError: The settings do not fit the model.
        """
        self.close()
        self.gave_up, self._raised = False, None
        every = list(models.values()) if isinstance(models, Mapping) else [models]
        if self.monitor is None or [*map(id, every)] != [*map(id, self._models)]:
            folder = self.log_dir or log_dir
            settings = self.settings
            if settings.sinks is None:
                settings = replace(settings, sinks=[*([TensorBoard(folder)] if folder else []), *sinks, Console()])
            try:
                self.monitor = Monitor.from_settings(models, settings)
            except (ValueError, TypeError) as error:
                raise RefusedError(error) from error
            self.monitor.connect(log_dir=folder)
            self._models = every
        self.monitor.should_stop = False
        self.monitor.watch_optimizers(optimizers)
        self.learn(**facts)
        self.monitor.start()
        if by_mode:
            self._modes = Modes(every, evaluates=self._within(self.evaluates), trains=self._within(self.trains))
        self._at_exit = _closing(self)
        return self.monitor

    def learn(self, **facts: Any) -> None:
        """Tell the monitor facts of the training, but for loaders that are none."""
        if self.monitor is not None:
            self.monitor.learn(
                **{
                    name: value
                    for name, value in facts.items()
                    if not name.endswith("_loader") or hasattr(value, "__iter__")
                }
            )

    def step(self, number: int | None = None, loss: object = None) -> None:
        """Record the training batch that has just ended.

        Args:
            number: The number of the step; None: it is counted.
            loss: Its loss, if that is one number.
        """
        if self.monitor is None or not self.monitor.running:
            return
        self._evaluating = False
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised
        self.monitor.step(number, loss=one_number(loss))

    def evaluates(self, phase: Phase = "validation") -> None:
        """An evaluation begins; within another this changes nothing."""
        if self.running and self.monitor is not None and not self._evaluating:
            self._evaluating = True
            self.monitor.begin_evaluation(phase)

    def trains(self) -> None:
        """The evaluation has ended; outside of one this changes nothing."""
        if self._evaluating and self.monitor is not None:
            self._evaluating = False
            self.monitor.end_evaluation()

    def _within(self, event: Callable[[], None]) -> Callable[[], None]:
        """An event within a forward, through which no error can pass: what an alert raises waits for the next step."""

        def called() -> None:
            try:
                event()
            except (AlertError, BatchNormWarning) as error:
                self._raised = error

        return called

    def ends_epoch(self, epoch: int | None = None) -> None:
        """Run the rules on the steps that are left, and pass the state to the sinks."""
        if self.running and self.monitor is not None:
            self.monitor.end_epoch(epoch)

    @property
    def should_stop(self) -> bool:
        """Whether ``on_alert="stop"`` asks the trainer to stop."""
        return self.monitor is not None and self.monitor.should_stop

    def close(self) -> None:
        """End the watch, and leave no hook behind; it may be called again."""
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
            self._at_exit = None
        if self._modes is not None:
            self._modes.remove()
            self._modes = None
        if self.running and self.monitor is not None:
            self.trains()
            self.monitor.close()

    def give_up(self, error: Exception) -> None:
        """End the watch of this training because of an error in the adapter, and warn once."""
        self.gave_up = True
        if self._modes is not None:
            self._modes.remove()
        if self.monitor is not None:
            self.monitor.give_up(error)
        else:
            warn(f"bnmonitor stopped watching, training goes on: {type(error).__name__}: {error}")


class Watching:
    """What users read on every adapter, mixed into the class of its library.

    Attributes:
        watch: The training under watch.
    """

    watch: Watch

    @property
    def monitor(self) -> Monitor:
        """The monitor behind the adapter.

        Raises:
            RuntimeError: No training has begun yet.
        """
        if self.watch.monitor is None:
            raise RuntimeError(f"{type(self).__name__}.monitor exists after a training has begun")
        return self.watch.monitor

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Every alert so far; none before the first training."""
        return () if self.watch.monitor is None else self.watch.monitor.alerts

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """Every incident so far; none before the first training."""
        return () if self.watch.monitor is None else self.watch.monitor.incidents

    def summary(self) -> Summary:
        """Return the state of every layer now, as :meth:`bnmonitor.Monitor.summary` does.

        Raises:
            RuntimeError: No training has begun yet.
        """
        return self.monitor.summary()


def one_number(loss: object) -> Tensor | float | None:
    """Return a loss as :meth:`bnmonitor.Monitor.step` takes it; None if it is not one number."""
    if isinstance(loss, Tensor):
        return loss.detach() if loss.numel() == 1 else None
    if isinstance(loss, bool) or not hasattr(loss, "__float__"):
        return None
    return float(loss)


def with_average(model: nn.Module, average: object) -> nn.Module | dict[str, nn.Module]:
    """Return a model together with an average of it, which may be a module or hold one as ``module`` or ``ema``.

    Raises:
        RefusedError: The average is no module, and holds none.
    """
    if average is None:
        return model
    held = [average, *(getattr(average, name, None) for name in ("module", "ema_model", "ema", "averaged_model"))]
    found = next((each for each in held if isinstance(each, nn.Module)), None)
    if found is None:
        raise RefusedError(TypeError(f"ema must be a torch.nn.Module, or hold one, got {type(average).__name__}"))
    return {"": model, "ema": found} if norms([found]) else model


def _closing(watch: Watch) -> Callable[[], None]:
    """Close a watch at the end of the process, where the library does not tell that a training was interrupted."""
    close = WeakMethod(watch.close)

    def at_exit() -> None:
        function = close()
        if function is not None:
            with suppress(Exception):
                function()

    atexit.register(at_exit)
    return at_exit
