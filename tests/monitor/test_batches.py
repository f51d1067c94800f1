"""``on_alert="save-batch"``: the batch at which an error began is in a file that anybody can read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor, Monitor
from bnmonitor.monitor.batches import MOST_BATCHES, plain

ILL = 77
"""The sample of the data set with an infinity."""


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
    )


def data(ill: bool = True) -> TensorDataset:
    x = torch.randn(320, 4, generator=torch.Generator().manual_seed(3))
    if ill:
        x[ILL, 2] = torch.inf
    return TensorDataset(x, torch.arange(320))


def shuffled(ill: bool = True, **more: Any) -> DataLoader[Any]:
    return DataLoader(data(ill), 32, shuffle=True, generator=torch.Generator().manual_seed(5), **more)


def fit(path: Path, loader: DataLoader[Any], epochs: int = 2, **more: Any) -> tuple[Monitor, list[Tensor]]:
    """Train in plain PyTorch; return the monitor and the targets of each batch, which are the samples' indices."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    # A validation after ten steps is too early, which is another fault.
    given = {
        "ignore": ["BN303"],
        "on_alert": {"error": ["log", "save-batch"]},
        "sinks": [],
        "train_loader": loader,
        "log_dir": path,
    }
    drawn = []
    with Monitor(model, optimizer=optimizer, **{**given, **more}) as monitor:
        for _ in range(epochs):
            for x, y in loader:
                drawn.append(y)
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
                monitor.step()
            model.eval()
            with monitor.evaluation(), torch.no_grad():
                model(torch.randn(7, 4))
            model.train()
    return monitor, drawn


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batch_of_the_first_infinity_is_saved_with_its_samples(tmp_path: Path, workers: int) -> None:
    more = {"num_workers": workers, "persistent_workers": True} if workers else {}
    monitor, drawn = fit(tmp_path, shuffled(**more))
    (incident,) = [i for i in monitor.incidents if i.code == "BN101"]
    step = next(i for i, y in enumerate(drawn) if ILL in y)
    assert incident.first_step == step
    path = monitor.saved_batches[0]
    assert path.parent == monitor.black_boxes[0].parent
    saved = read(path)
    assert saved["step"] == step
    assert saved["indices"] == drawn[step].tolist()
    (call,) = saved["batch"]
    (x,) = call["args"]
    assert x.isinf().any(1).nonzero().flatten().tolist() == [saved["indices"].index(ILL)]
    assert saved["alert"]["code"] == "BN101"


def test_the_sampler_is_the_loaders_own_again_and_drew_the_same(tmp_path: Path) -> None:
    loader = shuffled()
    sampler = loader.batch_sampler.sampler  # type: ignore[union-attr]
    _, drawn = fit(tmp_path / "a", loader)
    assert loader.batch_sampler.sampler is sampler  # type: ignore[union-attr]
    _, without = fit(tmp_path / "b", shuffled(), on_alert="log")
    assert all(map(torch.equal, drawn, without))


def test_a_loader_whose_batches_are_its_own_business_gives_no_indices(tmp_path: Path) -> None:
    batches = [list(range(i, i + 32)) for i in range(64, 192, 32)] * 4
    monitor, _ = fit(tmp_path, DataLoader(data(), batch_sampler=batches))
    assert read(monitor.saved_batches[0])["indices"] is None


def test_without_the_word_no_batch_is_kept_and_no_hook_is_set(tmp_path: Path) -> None:
    model = net()
    with Monitor(model, sinks=[], log_dir=tmp_path) as monitor:
        assert not model._forward_pre_hooks
        monitor.saw_batch(torch.ones(3))
    assert monitor.saved_batches == ()
    with pytest.raises(ValueError, match="needs log_dir="):
        Monitor(model, sinks=[], on_alert="save-batch")


def test_hooks_are_gone_after_the_end_and_nothing_is_saved_of_a_sound_training(tmp_path: Path) -> None:
    monitor, _ = fit(tmp_path, shuffled(ill=False))
    assert monitor.saved_batches == ()
    assert list(tmp_path.rglob("*.pt")) == []
    assert monitor._keeper is not None
    assert monitor._keeper._hooks == []
    assert not monitor._keeper._kept


def test_no_more_than_a_few_batches_are_saved(tmp_path: Path) -> None:
    monitor, _ = fit(tmp_path, shuffled())
    keeper = monitor._keeper
    assert keeper is not None
    before = len(keeper.files)
    for step in range(1000, 1020):
        keeper.saw(torch.ones(3))
        keeper.step(step)
        keeper(monitor.alerts[0])
        keeper._kept.clear()
    assert before >= 1
    assert len(keeper.files) == MOST_BATCHES
    assert len(list(tmp_path.rglob("batch-*.pt"))) == MOST_BATCHES


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        loss: Tensor = self.net(batch["x"]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@dataclass
class Rows:
    """A data set of mappings."""

    rows: TensorDataset

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.rows[i][0], "name": f"row{i}"}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    seed_everything(0, verbose=False)
    return


def test_lightning_saves_what_the_training_step_got(tmp_path: Path, quiet: None) -> None:
    callback = BatchNormMonitor(on_alert={"error": "save-batch"}, sinks=[])
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[callback], logger=CSVLogger(tmp_path), log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(Rows(data()), 32, shuffle=True))
    (path, *_) = callback.monitor.saved_batches
    saved = read(path)
    assert sorted(saved["batch"]) == ["name", "x"]
    assert saved["batch"]["name"] == [f"row{i}" for i in saved["indices"]]
    assert ILL in saved["indices"]
    assert path.is_relative_to(Path(str(trainer.log_dir)))


def test_a_batch_of_any_class_becomes_what_torch_loads_without_pickle(tmp_path: Path) -> None:
    class Graph:
        def __init__(self) -> None:
            self.x, self.edges, self.note = torch.ones(2, requires_grad=True), [torch.zeros(1)], object()

    torch.save(plain([Graph(), nn.Parameter(torch.ones(1)), {1: (None, 2.5, True, "a")}]), tmp_path / "b.pt")
    graph, parameter, rest = torch.load(tmp_path / "b.pt", weights_only=True)
    assert torch.equal(graph["x"], torch.ones(2))
    assert graph["note"] == "<object>"
    assert type(parameter) is Tensor
    assert rest == {1: (None, 2.5, True, "a")}
