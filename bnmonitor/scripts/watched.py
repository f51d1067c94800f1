"""One model of a script under watch: when its steps end, and when it is evaluated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import nn
from torch.optim import Optimizer

from bnmonitor._undisturbed import undisturbed
from bnmonitor.display import show
from bnmonitor.layers import Hooks, is_compiled, norms
from bnmonitor.monitor import Monitor, running
from bnmonitor.sinks import Console, Sink, TensorBoard
from bnmonitor.summary import Summary

if TYPE_CHECKING:
    from rich.console import RenderableType

UNKNOWN = ("BN507",)
"""Rules that need to know all models of a training: its parts may be called one by one, each a model of its own."""

RARELY = 2
"""A copy that is called only every so many steps, or more rarely, is evaluated; a teacher is called in each."""


class Watched:
    """A model of a script under watch.

    Args:
        model: The model.
        log_dir: The directory for its history.
        quiet: Whether nothing is to be printed.
        averages: Modules that average weights; those with layers of the same sizes are taken to be of this model.
    """

    def __init__(self, model: nn.Module, log_dir: Path, *, quiet: bool, averages: Sequence[nn.Module] = ()) -> None:
        self.model = model
        self._channels = _channels(norms([model]))
        self._averages = [each for each in averages if _channels(norms([each])) == self._channels]
        models = {"": model, **{_name(i): each for i, each in enumerate(self._averages)}}
        self._console = None if quiet else Console()
        self._before: Summary | None = None
        with undisturbed():
            sinks: list[Sink] = [TensorBoard(log_dir), *([] if self._console is None else [self._console])]
            self.monitor = Monitor(models, log_dir=log_dir, sinks=sinks, on_alert="log", ignore=UNKNOWN)
            self.monitor.connect(emit=_to_stderr)
            self.monitor.start()
        self._optimizers: list[ref[Optimizer]] = []
        self._anchor: ref[Optimizer] | None = None
        self._others: dict[int, int] = {}
        self._steps = 0
        self.last_step = 0
        """The step of any optimizer at which this model was last trained."""
        self._evaluating = self._without_gradients = self._trains_in_eval = False
        self._hooks, self._deaf = Hooks(), False
        self._called_at: dict[int, int] = {}

    @property
    def trained(self) -> bool:
        """Whether a step has been recorded."""
        return self._steps > 0

    @property
    def wholes(self) -> list[nn.Module]:
        """The model and its averages."""
        return [self.model, *self._averages]

    def parts(self) -> Iterator[nn.Module]:
        """Every module of them."""
        return (part for whole in self.wholes for part in whole.modules())

    # -- forwards ------------------------------------------------------------------------------------------------------

    def called(self) -> None:
        """The model is about to run: in training mode for training, without gradients for an evaluation.

        In evaluation mode with gradients it may be either: it is taken as an evaluation until a step of the optimizer
        follows, and as training from then on.
        """
        if self.model.training:
            self._trains_in_eval = False
            self._trains()
        elif not torch.is_grad_enabled():
            self._evaluates(without_gradients=True)
        elif self._evaluating and self._without_gradients:
            self._trains()
        elif not self._trains_in_eval:
            self._evaluates(without_gradients=False)

    def listen(self, guarded: Callable[..., None]) -> None:
        """Take the calls of the model by a hook of its own, unless it is compiled: the hook for all modules is gone.

        Args:
            guarded: Calls a function and lets no error through.
        """
        if not self._hooks.placed and not self._deaf:
            self._deaf = is_compiled(self.model) or self._hooks.refused
            if not self._deaf:
                self._hooks.on_call(self.model, lambda *_: guarded(self.called))

    def may_average(self, module: nn.Module, layers: Sequence[nn.Module]) -> bool:
        """Whether a module that is evaluated may be a copy of this model: it has layers of the same sizes."""
        return any(module is each for each in self._averages) or _channels(layers) == self._channels

    def takes(self, module: nn.Module) -> bool:
        """Watch a module that averages weights, if it may average this model."""
        if not self.may_average(module, norms([module])):
            return False
        if all(module is not each for each in self._averages):
            self._trains()
            self._before = self.monitor.summary() if self.monitor.steps else self._before
            self._averages.append(module)
            self.monitor.watch_model(_name(len(self._averages) - 1), module)
        return True

    def average_called(self, module: nn.Module) -> None:
        """A copy of the model is about to be evaluated."""
        last, self._called_at[id(module)] = self._called_at.get(id(module), -RARELY), self._steps
        if self._steps < RARELY or (self._steps - last < RARELY and not self._evaluating):
            return
        self.takes(module)
        self._evaluates(without_gradients=True)

    def _evaluates(self, *, without_gradients: bool) -> None:
        if not self._evaluating:
            self._evaluating, self._without_gradients = True, without_gradients
            self.monitor.begin_evaluation()

    def _trains(self) -> None:
        if self._evaluating:
            self._evaluating = False
            self.monitor.end_evaluation()

    # -- steps ---------------------------------------------------------------------------------------------------------

    def trained_by(self, optimizer: Optimizer) -> None:
        """Note an optimizer of the model, or of one that is trained with it."""
        if not any(each() is optimizer for each in self._optimizers):
            self._optimizers = [each for each in self._optimizers if each() is not None] + [ref(optimizer)]
            self.monitor.watch_optimizers([found for each in self._optimizers if (found := each()) is not None])

    def stepped(self, optimizer: Optimizer, count: int) -> None:
        """One of the model's optimizers has made a step; of several, the first one's ends a batch.

        Another one takes its place if it makes two steps between two of the first.

        Args:
            optimizer: Which.
            count: Steps of all optimizers so far.
        """
        self.last_step = count
        anchor = None if self._anchor is None else self._anchor()
        if anchor is not optimizer and anchor is not None:
            self._others[id(optimizer)] = self._others.get(id(optimizer), 0) + 1
            if self._others[id(optimizer)] < 2:
                return
        self._anchor, self._others = ref(optimizer), {}
        if self._evaluating:
            self._evaluating, self._trains_in_eval = False, True
        self._steps += 1
        self.monitor.step()

    def claimed(self, ours: Sequence[Monitor]) -> bool:
        """Whether a monitor of the script itself watches the model."""
        return watched_by_others(self.model, ours)

    def close(self) -> None:
        """Close the monitor, which says what it has found, and where the history is."""
        self._hooks.remove()
        self._trains()
        with undisturbed():
            ended = self.monitor.failure or self.monitor.steps
            if self._console is not None and self._before is not None and not ended:
                self._console.close(self._before)  # nothing was trained since the last model was added
            self.monitor.close()


def _name(average: int) -> str:
    return f"ema{average + 1}" if average else "ema"


def watched_by_others(model: nn.Module, ours: Sequence[Monitor]) -> bool:
    """Whether another monitor than ours watches a layer of a model."""
    layers = {id(layer) for layer in norms([model])}
    others = [each for each in running if not any(each is own for own in ours)]
    return any(id(layer) in layers for other in others for layer in other.modules)


def monitors_started() -> int:
    """How many monitors have been started in this process."""
    return running.started


def _channels(layers: Sequence[nn.Module]) -> tuple[Any, ...]:
    """The sizes of layers."""
    return tuple(sorted(tuple(b.shape) for layer in layers if (b := layer._buffers.get("running_mean")) is not None))


def _to_stderr(renderable: RenderableType) -> None:
    from rich.console import Console as RichConsole

    with undisturbed():
        show(renderable, RichConsole(file=sys.stderr))
