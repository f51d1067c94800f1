"""The adapter to the Trainer of Hugging Face Transformers, and of what derives from it, such as TRL."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bnmonitor.integrations.watch import Watch, Watching, harmless, with_average
from bnmonitor.layers import Hooks
from bnmonitor.sinks import Loggers, Sink

if TYPE_CHECKING:
    TrainerCallback = object
else:
    from transformers import TrainerCallback


class BatchNormCallback(Watching, TrainerCallback):
    """Watches every BatchNorm layer of the model that a Trainer of Transformers trains.

    ::

        Trainer(model, args, callbacks=[BatchNormCallback()], ...)

    A step is a micro-batch, as it is numbered by ``state.global_step``. Of several processes the first one is watched.
    TensorBoard, Weights & Biases and MLflow get the numbers where ``report_to`` names them.

    Args:
        log_dir: The directory for the history; None: that of the Trainer's TensorBoard, or else ``bnmonitor`` within
            ``output_dir``.
        ema: An average of the weights that is evaluated, or what holds it; None: there is none.
        settings: The arguments that :class:`bnmonitor.Monitor` shares with the Lightning callback.

    Raises:
        TypeError: An argument has a name or a type that is not accepted.
        ValueError: An argument has a value that is not accepted.
    """

    def __init__(self, *, log_dir: str | Path | None = None, ema: Any = None, **settings: Any) -> None:
        super().__init__()
        self.watch = Watch(log_dir, settings)
        self._ema = ema
        self._loss: object = None
        self._outputs = Hooks()

    @harmless
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch."""
        model = kwargs.get("model")
        if not state.is_world_process_zero or not isinstance(model, nn.Module):
            return
        self._outputs.remove()
        self._loss = None
        self.watch.begin(
            with_average(model, self._ema),
            getattr(kwargs.get("optimizer"), "optimizer", kwargs.get("optimizer")),  # Accelerate wraps it
            log_dir=_folder(args),
            sinks=_writers(args),
            by_mode=True,
            train_loader=kwargs.get("train_dataloader"),
            accumulate_grad_batches=max(1, int(args.gradient_accumulation_steps)),
        )
        self._outputs.on_forward(model, self._returned)

    @harmless
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The training goes on, after an evaluation."""
        self.watch.trains()

    @harmless
    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record a micro-batch that no step of the optimizer follows."""
        self._step(state)

    @harmless
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the micro-batch of an optimizer's step, while its gradients are still there."""
        self._step(state)

    @harmless
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the training if an alert asked for it."""
        if self.watch.should_stop:
            control.should_training_stop = True

    @harmless
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Run the rules on the steps that are left."""
        self.watch.ends_epoch(max(0, round(state.epoch or 0) - 1))

    @harmless
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the evaluation, which began with the first forward in evaluation mode."""
        self.watch.trains()

    on_predict = on_evaluate

    @harmless
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the monitor: pass the summary to the sinks and remove all hooks."""
        self._outputs.remove()
        self.watch.close()

    def _step(self, state: Any) -> None:
        loss, self._loss = self._loss, None
        self.watch.step(int(state.global_step), loss=loss)

    def _returned(self, module: nn.Module, args: Any, output: Any) -> None:
        """Keep the loss that a model computes itself."""
        if module.training:
            loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            self._loss = None if loss is None else loss.detach()


def _folder(args: Any) -> Path:
    """Where the Trainer's TensorBoard callback writes, or else a directory beside the checkpoints."""
    output = Path(args.output_dir)
    if "tensorboard" in (args.report_to or ()):
        given = os.environ.get("TENSORBOARD_LOGGING_DIR")
        if given:
            return Path(given).expanduser()
        made = [path for path in (output / "runs").glob("*") if path.is_dir()]
        if made:  # that callback comes first, and has just made it
            return max(made, key=lambda path: path.stat().st_mtime)
    return output / "bnmonitor"


def _writers(args: Any) -> list[Sink]:
    """The writers of ``report_to`` besides TensorBoard, to which the history itself is given."""
    chosen = {str(name) for name in args.report_to or ()}
    found: list[Any] = []
    if "wandb" in chosen and (run := getattr(sys.modules.get("wandb"), "run", None)) is not None:
        found.append(_WandB(run))
    if "mlflow" in chosen and (mlflow := sys.modules.get("mlflow")) is not None:
        found.append(_MLflow(mlflow))
    return [Loggers(found)] if found else []


class _WandB:
    """A run of W&B by the axis that the Trainer gives it; a step of its own would be refused."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self.run.log({**values, "train/global_step": step})


class _MLflow:
    """The active run of MLflow."""

    def __init__(self, mlflow: Any) -> None:
        self.mlflow = mlflow

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        if self.mlflow.active_run() is not None:
            self.mlflow.log_metrics(dict(values), step=step)
