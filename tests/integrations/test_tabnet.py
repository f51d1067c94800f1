from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.integrations.common import (
    EPOCHS,
    TOO_HIGH,
    Truth,
    data,
    evaluated,
    gradients_seen,
    seed,
    serious,
    state,
    without_and_with,
)

pytest.importorskip("pytorch_tabnet", reason="pytorch-tabnet is not installed: make test-integrations")

from pytorch_tabnet.tab_model import TabNetClassifier

from bnmonitor.integrations.tabnet import BatchNormCallback


def fit(*callbacks: Any, rate: float = 0.01) -> Any:
    seed(0)
    x, y = (each.numpy() for each in data())
    vx, vy = (each.numpy() for each in data(128, 2))
    clf = TabNetClassifier(
        n_d=4, n_a=4, n_steps=2, seed=0, verbose=0, optimizer_fn=torch.optim.Adam, optimizer_params={"lr": rate},
        device_name="cpu",
    )  # fmt: skip
    clf.fit(
        x, y, eval_set=[(vx, vy)], max_epochs=EPOCHS, batch_size=32, virtual_batch_size=16, drop_last=True,
        patience=0, callbacks=list(callbacks), compute_importance=False,
    )  # fmt: skip
    return clf


def test_a_sound_training_is_the_same() -> None:
    def train(watched: bool) -> tuple[dict[str, Tensor], Any]:
        callback = BatchNormCallback(sinks=[])
        clf = fit(*([callback] if watched else []))
        return state(clf.network), callback

    callback = without_and_with(train)
    monitor = callback.monitor
    name = "tabnet.encoder.initial_bn"  # the one of tabnet itself is never called
    assert monitor.failure == ""
    assert monitor.steps[-1] == 79
    assert gradients_seen(monitor, name) == 1.0
    assert evaluated(monitor, name)
    # Its own layer has momentum 0.01: after the first epochs of so few steps it is indeed cold.
    assert [said for said in serious(callback.incidents) if "BN303" not in said] == []
    assert monitor.summary().loss == monitor.summary().loss


def test_its_numbers_are_the_weighted_average_of_the_virtual_batches() -> None:
    truths: list[Truth] = []

    class First(BatchNormCallback):
        def on_train_begin(self, logs: Any = None) -> None:
            norms = {name: m for name, m in self.trainer.network.named_modules() if name.endswith(".bn.bn")}
            self.name_, layer = next(iter(norms.items()))
            truths.append(Truth(layer))
            super().on_train_begin(logs)

    callback = First(sinks=[])
    fit(callback)
    monitor, parts = callback.monitor, 2
    mean = monitor.history(callback.name_, "batch_mean").double()
    rows = [mean for mean, _ in truths[0].rows][-parts * len(mean) :]
    m = 0.02
    weights = torch.tensor([(1 - m) * m, m], dtype=torch.float64) / (1 - (1 - m) ** parts)
    true = torch.stack([sum(w * row for w, row in zip(weights, rows[i : i + 2], strict=True))  # type: ignore[misc]
                        for i in range(0, len(rows), 2)])  # fmt: skip
    assert float((mean - true).abs().nan_to_num().max()) < 1e-4


def test_a_rate_that_is_too_high_is_found(tmp_path: Path) -> None:
    callback = BatchNormCallback(sinks=[], on_alert="log")
    fit(callback, rate=TOO_HIGH)
    assert serious(callback.incidents)
