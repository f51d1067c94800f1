"""The loss of each step, beside the statistics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor, Monitor
from bnmonitor.recording.course import FIRST, LEVEL, Course


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


def test_losses_of_all_kinds_are_kept_by_their_step() -> None:
    course = Course(8)
    for step, loss in enumerate([1.5, torch.tensor(2.5), torch.tensor([3.5], dtype=torch.bfloat16), 4, None, "no"]):
        course.note(step, loss)
    losses = course.losses(range(6))
    assert losses[:4] == (1.5, 2.5, 3.5, 4.0)
    assert losses[4:] == (None, None)


@pytest.mark.parametrize("loss", [torch.zeros(2), torch.tensor(1j), torch.zeros(0)])
def test_what_is_no_loss_is_ignored(loss: Any) -> None:
    course = Course(8)
    course.note(0, loss)
    assert course.losses([0]) == (None,)


def test_only_the_newest_losses_are_kept() -> None:
    course = Course(4)
    for step in range(10):
        course.note(step, float(step))
    kept = course.losses(range(10))
    assert kept[6:] == (6.0, 7.0, 8.0, 9.0)
    assert kept[:6] == (None,) * 6


def test_the_start_is_the_lowest_of_the_first_losses_and_the_best_the_lowest_level() -> None:
    course = Course(100)
    losses = [2.0, 1.9, math.inf, *[1.0] * LEVEL, *[0.2] * (LEVEL // 2 - 1), *[1.0] * LEVEL]
    for step, loss in enumerate(losses):
        course.note(step, loss)
    assert course.start == min(losses[:FIRST])
    assert course.best == 1.0, "fewer than half of ten losses are not a level"


def test_a_course_continues_from_its_state() -> None:
    course, resumed = Course(16), Course(16)
    for step in range(14):
        course.note(step, 3.0 - step / 10)
    resumed.restore(course.state())
    for each in (course, resumed):
        each.note(14, 0.5)
    assert resumed.state() == course.state()


def test_the_window_and_the_summary_hold_the_loss() -> None:
    net = model()
    optimizer = torch.optim.SGD([{"params": net[0].parameters()}, {"params": net[1].parameters(), "lr": 0.5}], 0.1)
    with Monitor(net, optimizer=optimizer, sinks=[]) as monitor:
        for step in range(5):
            loss = net(torch.randn(8, 3)).mean()
            monitor.step(loss=loss + step - loss.detach())
        window, summary = monitor.window(), monitor.summary()
    assert window is not None
    assert window.facts.losses == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert window.facts.loss_start == 0.0
    assert window.facts.group_rates == (0.1, 0.5)
    assert window.facts.group is not None
    assert window.facts.group.tolist() == [1]
    assert summary.loss == 4.0
    assert summary.learning_rates == (0.1, 0.5)


@pytest.mark.parametrize(
    ("loss", "said"),
    [("2", "must be a number or a tensor with one value, got str"), (True, "got bool"),
     (torch.zeros(2, 3), r"shape \[2, 3\]: pass loss.mean\(\)")],
)  # fmt: skip
def test_what_the_user_passes_as_a_loss_is_checked(loss: Any, said: str) -> None:
    with Monitor(model(), sinks=[]) as monitor, pytest.raises(TypeError, match=said):
        monitor.step(loss=loss)


def test_a_graph_of_a_loss_is_not_kept_alive() -> None:
    net = model()
    with Monitor(net, sinks=[]) as monitor:
        x = torch.randn(8, 3, requires_grad=True)
        monitor.step(loss=net(x).mean())
        state = monitor.state_dict()
    assert all(isinstance(each, int | float) for row in state["watch"]["course"]["kept"] for each in row)


class Regressor(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = model()
        self.losses: list[float] = []

    def training_step(self, batch: Any, _: int) -> Any:
        loss = F.mse_loss(self.net(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return {"loss": loss, "other": 1}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_lightning_passes_its_loss_by_itself(accumulate: int, tmp_path: Any) -> None:
    module, callback = Regressor(), BatchNormMonitor(sinks=[])
    loader = DataLoader(TensorDataset(torch.randn(64, 3), torch.randn(64, 1)), 8)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callback], accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(module, loader)
    window = callback.monitor.window()
    assert window is not None
    micro = torch.tensor(module.losses).view(-1, accumulate)
    expected = dict(enumerate(micro.mean(1).tolist(), start=window.steps[0]))
    assert list(window.facts.losses) == pytest.approx([expected[step] for step in window.steps])
