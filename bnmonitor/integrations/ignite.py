"""The adapter to the engines of PyTorch Ignite, and to MONAI's trainers and evaluators, which are such engines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bnmonitor.integrations.watch import Watch, Watching, harmless, with_average

if TYPE_CHECKING:
    Engine = Any
    Events: Any
else:
    from ignite.engine import Engine, Events


class BatchNormHandler(Watching):
    """Watches every BatchNorm layer of the model that an engine of Ignite trains.

    ::

        BatchNormHandler(model, optimizer).attach(trainer, evaluators=[evaluator])

    MONAI's trainer takes it among its handlers, and knows model and optimizer itself::

        SupervisedTrainer(..., train_handlers=[BatchNormHandler(evaluators=[evaluator])])

    An evaluator that is not named is noticed by the model's mode.

    Args:
        model: The model; None: the ``network`` of the engine, as MONAI has it.
        optimizer: The optimizer or optimizers; None: the ``optimizer`` of the engine.
        evaluators: The engines that evaluate the model.
        log_dir: The directory for the history; None: none is written.
        ema: An average of the weights that is evaluated, such as Ignite's ``EMAHandler``; None: there is none.
        accumulate_grad_batches: Micro-batches per optimizer step.
        settings: The arguments that :class:`bnmonitor.Monitor` shares with the Lightning callback.

    Raises:
        TypeError: An argument has a name or a type that is not accepted.
        ValueError: An argument has a value that is not accepted.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module] | None = None,
        optimizer: Any = None,
        *,
        evaluators: Iterable[Engine] = (),
        log_dir: str | Path | None = None,
        ema: Any = None,
        accumulate_grad_batches: int = 1,
        **settings: Any,
    ) -> None:
        self.watch = Watch(log_dir, settings)
        self._model, self._optimizer, self._ema = model, optimizer, ema
        self._evaluators = list(evaluators)
        self._accumulate = accumulate_grad_batches

    def attach(self, engine: Engine, evaluators: Iterable[Engine] = ()) -> BatchNormHandler:
        """Listen to the engine that trains, and to those that evaluate; return the handler.

        Args:
            engine: The engine that trains.
            evaluators: Further engines that evaluate.
        """
        self._evaluators += list(evaluators)
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_STARTED, self._iterates)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iterated)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        for event in (Events.COMPLETED, Events.TERMINATE):
            engine.add_event_handler(event, self._completed)
        for evaluator in self._evaluators:
            evaluator.add_event_handler(Events.STARTED, self._evaluates)
            evaluator.add_event_handler(Events.COMPLETED, self._evaluated)
        return self

    @harmless
    def _started(self, engine: Any) -> None:
        model = getattr(engine, "network", None) if self._model is None else self._model
        if model is None:
            raise TypeError("BatchNormHandler needs the model: BatchNormHandler(model, optimizer).attach(trainer)")
        optimizer = getattr(engine, "optimizer", None) if self._optimizer is None else self._optimizer
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        models = with_average(model, self._ema) if isinstance(model, nn.Module) else model
        self.watch.begin(
            models,
            optimizer,
            by_mode=True,
            train_loader=engine.state.dataloader,
            batches=engine.state.epoch_length,
            accumulate_grad_batches=max(self._accumulate, int(getattr(engine, "accumulation_steps", 1) or 1)),
            scaler=_scaler(engine),
        )

    @harmless
    def _iterates(self, engine: Any) -> None:
        self.watch.trains()

    @harmless
    def _iterated(self, engine: Any) -> None:
        self.watch.step(int(engine.state.iteration) - 1, loss=_loss(engine.state.output))
        if self.watch.should_stop:
            engine.terminate()

    @harmless
    def _epoch(self, engine: Any) -> None:
        self.watch.ends_epoch(int(engine.state.epoch) - 1)

    @harmless
    def _completed(self, engine: Any) -> None:
        self.watch.close()

    @harmless
    def _evaluates(self, engine: Any) -> None:
        self.watch.evaluates()

    @harmless
    def _evaluated(self, engine: Any) -> None:
        self.watch.trains()


def _scaler(engine: Any) -> Any:
    """The gradient scaler of an engine: Ignite's keeps it in its state, MONAI's trainer has it."""
    found = getattr(engine.state, "scaler", None) or getattr(engine, "scaler_", None) or getattr(engine, "scaler", None)
    return found if hasattr(found, "get_scale") else None


def _loss(output: Any) -> object:
    """The loss in what a training step returned: Ignite's returns it alone, MONAI's under ``loss``."""
    if isinstance(output, Sequence) and output and (len(output) == 1 or isinstance(output[0], Mapping)):
        output = output[0]  # MONAI makes a list of a batch: each part has the loss of all
    if isinstance(output, Mapping):
        return output.get("loss")
    return output
