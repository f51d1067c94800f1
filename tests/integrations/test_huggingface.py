from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.integrations.common import (
    BATCH,
    EPOCHS,
    RATE,
    SAMPLES,
    STEPS,
    TOO_HIGH,
    Truth,
    data,
    evaluated,
    gradients_seen,
    network,
    seed,
    serious,
    state,
    without_and_with,
)

transformers = pytest.importorskip("transformers", reason="Transformers is not installed: make test-integrations")

from bnmonitor.integrations.huggingface import BatchNormCallback  # noqa: E402


class Classifier(nn.Module):
    """Returns its loss, as the models of Transformers do."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.body(x)
        found = {"logits": logits}
        return found if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), **found}


def rows(samples: int, value: int = 1) -> list[dict[str, Tensor]]:
    x, y = data(samples, value)
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


def fit(
    folder: Path, *callbacks: Any, body: nn.Sequential | None = None, rate: float = RATE, **options: Any
) -> tuple[Classifier, Any]:
    model = Classifier(network() if body is None else body)
    seed(3)
    arguments: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": EPOCHS,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 10,
        **options,
    }
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(**arguments),
        train_dataset=rows(SAMPLES),
        eval_dataset=rows(96, 2),
        callbacks=list(callbacks),
    )
    trainer.train()
    return model, trainer


def test_a_sound_training_is_the_same_and_its_numbers_are_true(tmp_path: Path) -> None:
    truths: list[Truth] = []

    def train(watched: bool) -> tuple[dict[str, Tensor], BatchNormCallback]:
        callback = BatchNormCallback(sinks=[])
        body = network()
        if watched:
            truths.append(Truth(body[4]))
        model, _ = fit(tmp_path, *([callback] if watched else []), body=body)
        return state(model), callback

    callback = without_and_with(train)
    monitor = callback.monitor
    assert monitor.failure == ""
    assert monitor.steps[-1] == STEPS - 1
    assert truths[0].error(monitor, "body.4") < 1e-4
    assert gradients_seen(monitor, "body.4") == 1.0
    assert evaluated(monitor, "body.4")
    assert serious(callback.incidents) == []
    assert monitor.summary().loss > 0


def test_a_rate_that_is_too_high_is_found(tmp_path: Path) -> None:
    callback = BatchNormCallback(sinks=[], on_alert="log")
    fit(tmp_path, callback, rate=TOO_HIGH)
    assert serious(callback.incidents)


def test_stop_ends_the_training(tmp_path: Path) -> None:
    callback = BatchNormCallback(sinks=[], on_alert="stop")
    _, trainer = fit(tmp_path, callback, rate=TOO_HIGH)
    assert trainer.state.global_step < STEPS


def test_each_micro_batch_of_an_accumulation_is_a_row(tmp_path: Path) -> None:
    def train(watched: bool) -> tuple[dict[str, Tensor], Any]:
        callback = BatchNormCallback(sinks=[])
        body = network()
        truth = Truth(body[4]) if watched else None
        model, _ = fit(tmp_path, *([callback] if watched else []), body=body, gradient_accumulation_steps=2)
        return state(model), (callback, truth)

    callback, truth = without_and_with(train)
    monitor = callback.monitor
    assert list(monitor.steps) == [step for step in range(STEPS // 2) for _ in range(2)][-64:]
    assert truth.error(monitor, "body.4") < 1e-4
    assert serious(callback.incidents) == []


def test_tensorboard_has_the_scalars_and_the_history_beside_the_trainers_own(tmp_path: Path) -> None:
    import bnmonitor

    fit(tmp_path, BatchNormCallback(), report_to=["tensorboard"], logging_steps=5)
    [folder] = (tmp_path / "out" / "runs").iterdir()
    run = next(iter(bnmonitor.open(folder).values()))
    assert len(run.steps)
    assert list(run.layers) == ["body.1", "body.4"]


def test_bars_are_not_torn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, BatchNormCallback(on_alert="warn"), rate=TOO_HIGH, disable_tqdm=False)
    out, err = capsys.readouterr()
    assert "✗" in out or "!" in out or "x" in out
    assert "it/s]✗" not in err.replace("\n", "")


def test_an_average_that_is_evaluated_is_seen(tmp_path: Path) -> None:
    body = network()
    average = torch.optim.swa_utils.AveragedModel(Classifier(body), use_buffers=True)
    callback = BatchNormCallback(sinks=[], ema=average)

    class Update(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            average.update_parameters(kwargs["model"])

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            average.eval()
            with torch.no_grad():
                average(data(64, 2)[0])

    fit(tmp_path, callback, Update(), body=body)
    assert evaluated(callback.monitor, "ema.module.body.4")
    assert evaluated(callback.monitor, "body.4")
    assert serious(callback.incidents) == []


def test_an_argument_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="check_every_n_steps"):
        BatchNormCallback(check_every_n_step=3)
