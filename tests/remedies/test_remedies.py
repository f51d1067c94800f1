"""Freezing, momentum, weight decay, restoring, synchronizing: what each does, and that the alert it answers clears."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bnmonitor import Alert, BatchNormWarning, Monitor
from bnmonitor.remedies.freezing import freeze, thaw
from bnmonitor.remedies.parameters import parameter_groups, set_momentum
from bnmonitor.remedies.recalibration import recalibrate
from bnmonitor.remedies.restoring import restore_last_finite
from bnmonitor.remedies.syncing import convert_sync
from bnmonitor.rules.sample_size.small_batch import SmallBatch
from bnmonitor.testing import make_window


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def a_model(momentum: float = 0.1) -> nn.Sequential:
    def block(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b, momentum=momentum), nn.ReLU())

    return nn.Sequential(block(6, 16), block(16, 8), nn.Linear(8, 2))


def train(monitor: Monitor, model: nn.Module, steps: int, x: Tensor | None = None, lr: float = 0.01) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(64, 6) if x is None else x).square().mean().backward()
        optimizer.step()
        monitor.step()


def watching(model: nn.Module, **more: Any) -> Monitor:
    given: dict[str, Any] = {"sinks": [], "on_alert": "log", "window": 32, "sample_every_n_steps": 0}
    return Monitor(model, **given | more)


def told(monitor: Monitor, code: str) -> list[Alert]:
    return [a for a in monitor.alerts if a.code == code]


# -- freeze and thaw ---------------------------------------------------------------------------------------------------


def running(model: nn.Module) -> list[Tensor]:
    return [m.running_mean.clone() for m in model.modules() if isinstance(m, nn.BatchNorm1d)]


def test_frozen_stays_frozen_through_train_and_only_what_was_asked_for() -> None:
    model = a_model()
    keys = list(model.state_dict())
    assert freeze(model, include=["0.*"]) == ("0.1",)
    for _ in range(2):
        model.train()
        before = running(model)
        model(torch.randn(8, 6)).sum().backward()
        after = running(model)
        assert torch.equal(before[0], after[0])
        assert not torch.equal(before[1], after[1])
    assert model[0][1].weight.grad is None
    assert model[0][0].weight.grad is not None
    assert list(model.state_dict()) == keys


def test_thaw_undoes_all_of_it() -> None:
    model = a_model()
    model[0][1].bias.requires_grad_(False)
    freeze(model)
    freeze(model)
    assert thaw(model, include=["0.*"]) == ("0.1",)
    assert thaw(model) == ("1.1",)
    assert thaw(model) == ()
    assert [p.requires_grad for p in model[0][1].parameters()] == [True, False], "as it was before"
    assert all(p.requires_grad for p in model[1][1].parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model[0][1].training
    model.eval()
    freeze(model)
    thaw(model)
    assert not model[0][1].training


def test_freeze_may_leave_gamma_and_beta_trained() -> None:
    model = a_model()
    freeze(model, affine=False)
    model.train()(torch.randn(8, 6)).sum().backward()
    assert model[0][1].weight.grad is not None


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_frozen_on_their_own(how: str) -> None:
    model = a_model()
    freeze(model)
    if how == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    thaw(model)
    before = running(other)
    other.train()(torch.randn(8, 6))
    assert all(map(torch.equal, before, running(other)))
    assert thaw(other) == ("0.1", "1.1")
    assert other[0][1].weight.requires_grad


def test_frozen_layers_stay_frozen_under_compile() -> None:
    model = a_model()
    freeze(model)
    compiled = torch.compile(model, backend="eager")
    before = running(model)
    for _ in range(2):
        model.train()
        compiled(torch.randn(8, 6))
    assert all(map(torch.equal, before, running(model)))


@pytest.mark.parametrize("remedy", [freeze, thaw, lambda m, **k: set_momentum(m, 0.1, **k)])
def test_patterns_that_match_nothing_and_models_without_a_layer_are_refused(remedy: Any) -> None:
    with pytest.raises(ValueError, match="include='backbne' matches no BatchNorm layer"):
        remedy(a_model(), include=["backbne"])
    with pytest.raises(ValueError, match="layer to treat"):
        remedy(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"pass \('0.1',\)"):
        remedy(a_model(), include="0.1")
    with pytest.raises(TypeError, match="got int"):
        remedy(3)


def test_leaking_freeze_is_cleared_by_it() -> None:
    model = a_model()
    for p in model[0].parameters():
        p.requires_grad_(False)
    with watching(model, optimizer=torch.optim.SGD(model[1].parameters(), lr=0.0)) as monitor:
        train(monitor, model, 60, torch.randn(64, 6) * 3 + 4)
        [alert] = told(monitor, "BN402")
        assert alert.state == "open"
        assert "bnmonitor.remedies.freeze(" in alert.advice
        freeze(model, include=["0.*"])
        model.train()
        train(monitor, model, 120, torch.randn(64, 6) * 3 + 4)
        assert told(monitor, "BN402")[0].state == "cleared"


@pytest.mark.parametrize("remedy", [lambda model: freeze(model, include=["0.1"]), nn.Module.train])
def test_evaluation_mode_in_training_is_cleared_by_meaning_it_or_by_train(
    remedy: Callable[[nn.Module], object],
) -> None:
    model = a_model()
    with watching(model) as monitor:
        train(monitor, model, 20)
        model[0][1].eval()
        train(monitor, model, 20)
        [alert] = told(monitor, "BN401")
        assert (alert.layer, alert.state) == ("0.1", "open")
        assert "bnmonitor.remedies.freeze(" in alert.advice
        assert "model.train()" in alert.advice
        remedy(model)
        train(monitor, model, 60)
        assert told(monitor, "BN401")[0].state == "cleared"
        assert not told(monitor, "BN402")


def test_callback_freezes_for_the_first_epochs_and_leaves_everything_as_it_was() -> None:
    import lightning.pytorch as pl

    from bnmonitor.remedies.callbacks import Freeze

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = a_model()
            self.seen: list[list[Tensor]] = []

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.net(batch).square().mean()  # type: ignore[no-any-return]

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.net(batch)

        def on_train_epoch_end(self) -> None:
            self.seen.append(running(self.net))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def fit(callback: Any, **more: Any) -> Module:
        module = Module()
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=3, logger=False, callbacks=[callback], enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, **more,
        )  # fmt: skip
        trainer.fit(module, DataLoader(torch.randn(48, 6), 16))  # type: ignore[arg-type]
        fit_of.append(trainer)
        return module

    fit_of: list[Any] = []

    start = running(Module().net)
    for more in ({}, {"sync_batchnorm": True}):
        module = fit(Freeze(include=["net.0.*"], until_epoch=2), **more)
        first = [epoch[0] for epoch in module.seen] if not more else []
        if first:
            assert torch.equal(first[0], start[0])
            assert torch.equal(first[1], start[0])
            assert not torch.equal(first[2], start[0])
            assert not torch.equal(module.seen[0][1], start[1])
        assert all(p.requires_grad for p in module.parameters())
        assert not any(m._forward_pre_hooks for m in module.modules())
        trainer = fit_of[-1]
        trainer.validate(module, DataLoader(torch.randn(16, 6), 16), verbose=False)  # type: ignore[arg-type]
        assert not any(m._forward_pre_hooks for m in module.modules()), "an evaluation freezes nothing"
    with pytest.raises(ValueError, match="until_epoch='two'"):
        Freeze(until_epoch="two")  # type: ignore[arg-type]


# -- momentum ----------------------------------------------------------------------------------------------------------


def test_set_momentum_returns_what_puts_it_back() -> None:
    model = a_model()
    model[1][1].momentum = None
    before = set_momentum(model, 0.01)
    assert before == {"0.1": 0.1, "1.1": None}
    assert (model[0][1].momentum, model[1][1].momentum) == (0.01, 0.01)
    set_momentum(model, before)
    assert (model[0][1].momentum, model[1][1].momentum) == (0.1, None)
    set_momentum(model, None, include=["0.*"])
    assert (model[0][1].momentum, model[1][1].momentum) == (None, None)


@pytest.mark.parametrize("momentum", [1.5, -0.1, math.nan, "0.1", True])
def test_momentum_that_is_none_is_refused_and_nothing_set(momentum: Any) -> None:
    model = a_model()
    with pytest.raises(ValueError, match="between 0 and 1"):
        set_momentum(model, momentum)
    with pytest.raises(ValueError, match=r"no BatchNorm layer '0\.7' to set"):
        set_momentum(model, {"0.1": 0.3, "0.7": 0.1})
    assert model[0][1].momentum == 0.1


def test_inverted_momentum_is_cleared_by_it() -> None:
    model = a_model(momentum=0.99)
    with watching(model) as monitor:
        train(monitor, model, 20)
        [alert] = told(monitor, "BN301")
        assert "bnmonitor.remedies.set_momentum(model, momentum=0.01)" in alert.advice
        set_momentum(model, 0.01)
        train(monitor, model, 80)
        assert told(monitor, "BN301")[0].state == "cleared"


# -- weight decay ------------------------------------------------------------------------------------------------------


class Shares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.out.weight = self.embed.weight
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True)])
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


@pytest.mark.parametrize("biases", [True, False])
def test_gamma_and_beta_are_not_decayed_and_every_trained_parameter_is_there_once(biases: bool) -> None:
    model = nn.ModuleList([a_model(), Shares()])
    decayed, spared = parameter_groups(model, 0.3, biases=biases, lr=0.5)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert decayed["lr"] == spared["lr"] == 0.5
    both = [*decayed["params"], *spared["params"]]
    assert {id(p) for p in both} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len({id(p) for p in both}) == len(both)
    names = {id(p): n for n, p in model.named_parameters()}
    spare = {names[id(p)] for p in spared["params"]}
    norms = {f"0.{i}.1.{k}" for i in (0, 1) for k in ("weight", "bias")}
    norms |= {f"1.norms.{i}.{k}" for i in range(3) for k in ("weight", "bias")}
    linear = {"0.0.0.bias", "0.1.0.bias", "0.2.bias", "1.out.bias"}
    assert spare == norms | (set() if biases else linear)
    torch.optim.AdamW([decayed, spared])


def test_decay_by_groups_leaves_gamma_alone() -> None:
    model = a_model()
    optimizer = torch.optim.SGD(parameter_groups(model, 0.5), lr=0.1)
    before = {n: p.clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    same = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert "0.1.weight" in same
    assert "0.0.weight" not in same


def test_decay_of_gamma_is_cleared_by_groups() -> None:
    model = a_model()
    with watching(model, optimizer=torch.optim.AdamW(model.parameters(), weight_decay=0.01), select=["all"]) as monitor:
        train(monitor, model, 20)
        [alert] = told(monitor, "BN703")
        assert alert.state == "open"
        assert "bnmonitor.remedies.parameter_groups(" in alert.advice
        monitor.watch_optimizers(torch.optim.AdamW(parameter_groups(model, weight_decay=0.01)))
        train(monitor, model, 60)
        assert told(monitor, "BN703")[0].state == "cleared"


@pytest.mark.parametrize("grouped", [False, True])
def test_channels_without_a_gradient_die_of_decay_and_live_with_groups(grouped: bool) -> None:
    """What is dead gets no gradient to come back: the groups keep it from dying, which is what there is to show."""
    model = a_model()
    decay = 0.5
    optimizer = torch.optim.SGD(
        parameter_groups(model[0], decay) if grouped else model[0].parameters(),
        lr=0.1,
        **({} if grouped else {"weight_decay": decay}),
    )
    with watching(model, optimizer=optimizer, sample_every_n_steps=10) as monitor:
        for _ in range(160):
            optimizer.zero_grad()
            # Nothing downstream of the first block uses the first half of its channels.
            model[0](torch.randn(64, 6))[:, 8:].square().mean().backward()
            optimizer.step()
            monitor.step()
        assert bool(told(monitor, "BN701")) is not grouped


def test_groups_that_would_be_empty_are_left_out_or_refused() -> None:
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        parameter_groups(a_model().requires_grad_(False), 0.1)
    for wrong in (-1, "much", math.nan):
        with pytest.raises(ValueError, match="weight_decay="):
            parameter_groups(a_model(), wrong)  # type: ignore[arg-type]


# -- the last finite state ---------------------------------------------------------------------------------------------


def poisoned(model: nn.Module, monitor: Monitor) -> None:
    bad = torch.randn(64, 6)
    bad[3, 2] = math.inf
    with torch.no_grad():
        model(bad)
    monitor.step()


def test_non_finite_statistics_are_cleared_by_the_last_finite_ones() -> None:
    model = a_model()
    with watching(model) as monitor:
        train(monitor, model, 30)
        want = [m.clone() for m in running(model)]
        last = monitor.steps[-1]
        poisoned(model, monitor)
        assert not running(model)[0].isfinite().all()
        with torch.no_grad():
            monitor.end_epoch()
        [alert] = told(monitor, "BN101")
        assert "restore_last_finite(model, monitor)" in alert.advice.replace("\n", " ")
        assert restore_last_finite(model, monitor) == {"0.1": last, "1.1": last}
        assert all(map(torch.equal, running(model), want))
        assert restore_last_finite(model, monitor) == {}, "what is well stays as it is"
        train(monitor, model, 120)
        assert told(monitor, "BN101")[0].state == "cleared"


def test_black_box_knows_what_the_window_has_lost(tmp_path: Path) -> None:
    model = a_model()
    with watching(model, log_dir=tmp_path) as monitor:
        train(monitor, model, 30)
        want = [m.clone() for m in running(model)]
        poisoned(model, monitor)
        for _ in range(100):
            with torch.no_grad():
                model(torch.randn(64, 6))
            monitor.step()
        assert not monitor.history("0.1", "running_mean").isfinite().any(1).all()
    assert restore_last_finite(copy.deepcopy(model), monitor) == {"0.1": 29, "1.1": 29}
    assert restore_last_finite(model, monitor.black_boxes[0]) == {"0.1": 29, "1.1": 29}
    assert all(map(torch.equal, running(model), want))


def test_negative_variance_and_gamma_count_as_well() -> None:
    model = a_model()
    with watching(model) as monitor:
        train(monitor, model, 5)
        gamma = model[1][1].weight.detach().clone()
        with torch.no_grad():
            model[0][1].running_var[2] = -1.0
            model[1][1].weight[0] = math.nan
        assert list(restore_last_finite(model, monitor)) == ["0.1", "1.1"]
    assert (model[0][1].running_var >= 0).all()
    assert torch.equal(model[1][1].weight, gamma)


def test_without_a_finite_record_nothing_is_changed_and_it_says_so() -> None:
    model = a_model()
    monitor = watching(model)
    model[0][1].running_mean.fill_(math.nan)
    with pytest.raises(ValueError, match=r"no finite record of 0\.1: go back to a checkpoint"):
        restore_last_finite(model, monitor)
    with pytest.raises(TypeError, match="Monitor or the path of a black box, got int"):
        restore_last_finite(model, 3)  # type: ignore[arg-type]


def test_a_record_of_another_model_has_nothing_for_a_layer(tmp_path: Path) -> None:
    other = a_model()
    broken = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    broken[1].running_mean.fill_(math.nan)
    with watching(other, log_dir=tmp_path) as monitor:
        train(monitor, other, 5)
        poisoned(other, monitor)
    for source in (monitor, *monitor.black_boxes):
        with pytest.raises(ValueError, match=r"no finite record of 1: go back to a checkpoint"):
            restore_last_finite(broken, source)
    assert monitor.black_boxes


def ruined(model: nn.Sequential, monitor: Monitor) -> None:
    """A batch with an infinity, and the step of the optimizer that it leads to."""
    poisoned(model, monitor)
    with torch.no_grad():
        model[0][0].weight.fill_(math.nan)


def save(model: nn.Module, path: Path, age: int, **more: Any) -> None:
    """Save a checkpoint as Lightning does, some time ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {f"net.{n}": t for n, t in model.state_dict().items()}, **more}, path)
    os.utime(path, (1e9 - age, 1e9 - age))


def test_weights_that_are_nan_too_are_named_with_the_newest_checkpoint_that_is_finite(tmp_path: Path) -> None:
    model = a_model()
    with watching(model, log_dir=tmp_path) as monitor:
        train(monitor, model, 30)
        save(model, tmp_path / "checkpoints/old.ckpt", age=3)
        save(model, tmp_path / "checkpoints/good.ckpt", age=2, callbacks={"window": torch.tensor([math.nan])})
        torch.save({"state_dict": {"else": torch.ones(2)}}, tmp_path / "another-model.pt")
        (tmp_path / "no-checkpoint.pt").write_bytes(b"nothing")
        ruined(model, monitor)
        save(model, tmp_path / "checkpoints/last.ckpt", age=1)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match="running statistics alone do not repair the model") as raised:
            restore_last_finite(model, monitor)
    good = tmp_path / "checkpoints/good.ckpt"
    assert str(raised.value) == (
        "1 tensor outside the normalization layers (0.0.weight) holds NaN or infinity too, so running statistics alone "
        f"do not repair the model: load {good}, the newest checkpoint that is finite (1 newer one is not)"
    )
    assert all(torch.equal(t.nan_to_num(), before[n].nan_to_num()) for n, t in model.state_dict().items())


def test_without_a_finite_checkpoint_it_says_where_it_looked(tmp_path: Path) -> None:
    model = a_model()
    monitor = watching(model)
    model[0][0].weight.data.fill_(math.nan)
    save(model, tmp_path / "a/last.ckpt", age=1)
    save(model, tmp_path / "a/before.ckpt", age=2)
    with pytest.raises(ValueError, match="go back to a checkpoint from before"):
        restore_last_finite(model, monitor)
    says = f"no checkpoint in {tmp_path} is finite; 2 checkpoints there hold what is not finite: start again"
    with pytest.raises(ValueError, match=re.escape(says)):
        restore_last_finite(model, monitor, checkpoints=tmp_path)
    with pytest.raises(TypeError, match="must be a path or a ModelCheckpoint, got int"):
        restore_last_finite(model, monitor, checkpoints=3)


def test_checkpoints_come_from_files_and_from_lightnings_callback(tmp_path: Path) -> None:
    model = a_model()
    monitor = watching(model)
    save(model, tmp_path / "good.ckpt", age=2)
    save_file(model.state_dict(), tmp_path / "newer.safetensors")
    model[0][0].weight.data.fill_(math.nan)
    given: list[tuple[Any, str]] = [
        (ModelCheckpoint(dirpath=tmp_path), "newer.safetensors"),
        ([tmp_path / "good.ckpt", tmp_path / "newer.safetensors"], "newer.safetensors"),
        (str(tmp_path / "good.ckpt"), "good.ckpt"),
    ]
    for checkpoints, name in given:
        with pytest.raises(ValueError, match=re.escape(f"load {tmp_path / name}, the newest checkpoint")):
            restore_last_finite(model, monitor, checkpoints=checkpoints)


def test_an_infinite_buffer_by_design_is_no_fault(tmp_path: Path) -> None:
    model = a_model()
    model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    with watching(model, log_dir=tmp_path) as monitor:
        train(monitor, model, 30)
        poisoned(model, monitor)
        assert list(restore_last_finite(model, monitor)) == ["0.1", "1.1"]


# -- what a remedy says ------------------------------------------------------------------------------------------------


def test_remedies_check_what_they_did_and_say_it_in_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bnmonitor")
    model = a_model()
    said = [
        str(freeze(model)),
        str(set_momentum(model, 0.01)),
        str(thaw(model)),
        str(set_momentum(model, {"0.1": 0.1, "1.1": None})),
    ]
    assert said == [
        "2 layers frozen in evaluation mode: running statistics, gamma and beta stay",
        "momentum 0.01 in 2 layers (was 0.1); no effect in 0.1, 1.1 while it is frozen",
        "2 layers thawed, now in training mode as the model is",
        "momentum 0.1, None in 2 layers (was 0.01)",
    ]
    monitor = watching(model)
    said.append(str(restore_last_finite(model, monitor)))
    assert said[-1] == "every layer and every weight is finite: nothing to restore"
    with monitor:
        train(monitor, model, 30)
        poisoned(model, monitor)
        said.append(str(restore_last_finite(model, monitor)))
    assert said[-1] == "2 layers restored to step 29; every weight of the model is finite"
    said.append(str(recalibrate(model, [torch.randn(64, 6)] * 3)))
    assert said[-1].startswith("recalibrated 2 layers over 3 batches, all statistics finite; ")
    convert_sync(model)
    said.append("2 of 2 normalization layers share their statistics once the processes are connected")
    assert [record.message for record in caplog.records if record.levelname == "INFO"] == said


def test_what_a_remedy_returns_is_a_plain_tuple_or_dict_in_a_pickle() -> None:
    model = a_model()
    names, momenta = freeze(model), set_momentum(model, 0.1)
    assert (names, momenta) == (("0.1", "1.1"), {"0.1": 0.1, "1.1": 0.1})
    for value in (names, momenta):
        copied = pickle.loads(pickle.dumps(value))
        assert copied == value
        assert type(copied) in (tuple, dict)


def test_a_layer_that_refuses_to_be_frozen_is_named() -> None:
    class Restless(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(True)

    with pytest.raises(RuntimeError, match=r"0: a method of its own keeps the layer from being frozen"):
        freeze(nn.Sequential(Restless(3)))


# -- SyncBatchNorm -----------------------------------------------------------------------------------------------------


class WithRelu(nn.BatchNorm2d):
    """As timm and many others do it: the activation is part of the layer."""

    def __init__(self, channels: int, slope: float = 0.3) -> None:
        super().__init__(channels)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(super().forward(x), self.slope)


class Deeper(WithRelu):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class ByItself(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, True)


def a_sync_model() -> nn.Sequential:
    shared = nn.BatchNorm2d(3)
    return nn.Sequential(shared, WithRelu(3), Deeper(3), shared, nn.Sequential(nn.BatchNorm2d(3)))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        convert_sync([nn.BatchNorm1d(3)])  # type: ignore[arg-type]


def test_subclasses_keep_their_forward_and_torchs_own_conversion_loses_it() -> None:
    x = torch.randn(4, 3, 5, 5)
    model = a_sync_model()
    expected = copy.deepcopy(model)(x)
    lossy = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert not torch.allclose(lossy(x), expected)
    hook = model[1].register_forward_hook(lambda *_: None)
    done = convert_sync(model)
    assert done is model
    assert torch.equal(done(x), expected)
    assert all(isinstance(m, nn.SyncBatchNorm) for m in (*model[:4], model[4][0]))
    assert isinstance(model[1], WithRelu)
    assert isinstance(model[2], Deeper)
    assert model[0] is model[3]
    assert model[1].slope == 0.3
    assert hook.id in model[1]._forward_hooks
    assert list(model.state_dict()) == list(a_sync_model().state_dict())
    assert convert_sync(model) is model, "a second time changes nothing"
    assert convert_sync(nn.BatchNorm2d(3)).__class__ is nn.SyncBatchNorm


def test_small_batch_is_no_alert_any_more_where_all_processes_share_it() -> None:
    """On CPUs SyncBatchNorm does not train, so the rule looks at the converted layers in a window made to order."""
    model = nn.Sequential(nn.BatchNorm2d(3), WithRelu(3), Deeper(3))
    found = []
    for layers in (Monitor(model, sinks=[]).layers, Monitor(convert_sync(model), sinks=[]).layers):
        window = make_window(channels=(3, 3, 3), sizes=8)
        window = replace(window, layers=layers, facts=replace(window.facts, world_size=4))
        found.append([finding.layers for finding in SmallBatch().check(window)])
    assert found == [[(0, 1, 2)], []]


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_converted_subclass_can_be_copied_and_saved(how: str) -> None:
    model, x = convert_sync(a_sync_model()), torch.randn(4, 3, 5, 5)
    if how == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert isinstance(other[1], WithRelu)
    assert isinstance(other[1], nn.SyncBatchNorm)
    assert torch.equal(other.eval()(x), model.eval()(x))
    with torch.no_grad():
        other[1].weight.fill_(7)
    assert float(model[1].weight[0].detach()) == 1.0


def test_subclass_that_normalizes_by_itself_is_left_and_named() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), ByItself(3))
    with pytest.warns(BatchNormWarning, match="^1: normalizes in a forward of its own"):
        convert_sync(model)
    assert type(model[1]) is ByItself
    assert type(model[0]) is nn.SyncBatchNorm


def _worker(rank: int, out: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{out}/store", rank=rank, world_size=2)
    said = []
    for layer in (WithRelu(3), Deeper(3)):
        try:
            convert_sync(nn.Sequential(layer))(torch.randn(4, 3, 5, 5))
        except ValueError as error:
            said.append(str(error))
    Path(out, str(rank)).write_text("\n".join(said))
    torch.distributed.destroy_process_group()


def test_the_forward_between_processes_is_syncbatchnorms(tmp_path: Path) -> None:
    """SyncBatchNorm trains on GPUs only; that it says so here shows that it is the one that is called."""
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    for rank in "01":
        said = (tmp_path / rank).read_text()
        assert said.count("SyncBatchNorm expected input tensor to be on") == 2, said
