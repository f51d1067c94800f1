"""A program as a fit of a Lightning Trainer."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bnmonitor import BatchNormMonitor, Monitor
from tests.fuzz import parts
from tests.fuzz.program import Program
from tests.fuzz.training import Run
from tests.fuzz.truth import Truth

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_PRECISIONS = {"float32": "32-true", "float64": "64-true", "bfloat16": "bf16-true"}


class Fit(Run):
    """One run of a program in a Trainer: with the callback, without it, or with the truth in its place."""

    def __init__(self, program: Program, kind: str, folder: Path) -> None:
        super().__init__(program, kind, folder)
        self.lightning: Any = importlib.import_module(PACKAGES[program.seed % 2])
        self.callback: BatchNormMonitor | None = None
        self.average = None
        self.prefix = "net."

    @property
    def monitor(self) -> Monitor | None:  # type: ignore[override]
        """The monitor behind the callback, once there is one."""
        return None if self.callback is None or self.callback._monitor is None else self.callback.monitor

    @monitor.setter
    def monitor(self, value: Monitor | None) -> None:
        """The callback makes it."""

    @contextlib.contextmanager
    def evaluating(self, announced: bool = True) -> Iterator[None]:
        """The Trainer announces its evaluations; a user's own are not."""
        yield

    def train(self) -> None:
        """Fit to the end, or until something raises."""
        program, lightning = self.program, self.lightning
        watcher: list[Any] = []
        if self.kind == "watched":
            self.callback = BatchNormMonitor(
                check_every_n_steps=program.check,
                sample_every_n_steps=program.sample,
                log_every_n_steps=program.log,
                window=program.window,
                probe=program.probe,
                sinks=[] if program.sinks == "none" else None,
            )
            watcher = [self.callback]
        if self.kind == "truth":
            watcher = [_truth(self)]
        mine = _happenings(self)
        averages = [lightning.callbacks.WeightAveraging()] if program.average.startswith("averaged") else []
        logger: Any = False
        if program.sinks in ("default", "files"):
            logger = importlib.import_module(f"{lightning.__name__}.loggers").TensorBoardLogger(self.folder)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=2,
            limit_train_batches=max(1, program.steps // 2),
            limit_val_batches=1 if program.evaluate_every else 0,
            num_sanity_val_steps=program.seed % 3 % 2,
            accumulate_grad_batches=program.accumulate,
            precision="bf16-mixed" if program.autocast else _PRECISIONS[program.dtype],
            gradient_clip_val=1.0 if program.seed % 5 == 0 and program.optimizer != "lbfgs" else None,
            callbacks=[*watcher, mine, *averages] if program.first else [mine, *averages, *watcher],
            logger=logger,
            enable_checkpointing=program.seed % 3 == 0,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.folder,
        )
        trainer.fit(_module(self), _loader(program.steps), _loader(2))


def _loader(length: int) -> DataLoader[Any]:
    return DataLoader(torch.arange(float(length)), batch_size=1)  # type: ignore[arg-type]


def _module(run: Fit) -> Any:
    class Module(run.lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = run.model

        def training_step(self, _: Any, batch_idx: int) -> Tensor:
            if not run.numbers or run.step != len(run.numbers):
                run.step = len(run.numbers)
                run.at("start")
            for module in run.model.modules():
                if id(module) in run.frozen:
                    module.eval()
            x = run.batch()
            run.at("before")
            parts.during_forward(lambda: run.at("forward"))
            try:
                out = run.called(x)
            finally:
                parts.during_forward(lambda: None)
            if out.requires_grad:
                out.register_hook(lambda _: run.at("backward"))
            loss = parts.loss_of(out)
            run.losses.append(float(loss.detach()))
            return loss

        def validation_step(self, _: Any, batch_idx: int) -> None:
            run.losses.append(float(parts.loss_of(run.called(run.batch()))))

        def configure_optimizers(self) -> Any:
            return run.optimizers[0]

    return Module()


def _happenings(run: Fit) -> Any:
    class Happenings(run.lightning.Callback):  # type: ignore[misc,name-defined]
        """Lets happen what the program has, where the Trainer says that it is there."""

        def on_before_backward(self, *_: Any) -> None:
            run.at("forwarded")

        def on_after_backward(self, *_: Any) -> None:
            run.at("backwarded")

        def on_before_zero_grad(self, *_: Any) -> None:
            run.at("optimized")

        def on_train_batch_end(self, *_: Any) -> None:
            run.numbers.append(len(run.numbers))
            run.keep_buffers()
            run.at("done")

        def on_validation_start(self, *_: Any) -> None:
            run.at("evaluation")

    return Happenings()


def _truth(run: Fit) -> Any:
    class Taken(run.lightning.Callback):  # type: ignore[misc,name-defined]
        """Tells the truth when steps and evaluations begin and end."""

        def on_fit_start(self, *_: Any) -> None:
            run.truth = Truth(run.model)

        def on_train_batch_end(self, *_: Any) -> None:
            run.truth.step()  # type: ignore[union-attr]

        def on_validation_start(self, *_: Any) -> None:
            run.truth.begin_evaluation()  # type: ignore[union-attr]

        def on_validation_end(self, *_: Any) -> None:
            run.truth.end_evaluation()  # type: ignore[union-attr]

    return Taken()
