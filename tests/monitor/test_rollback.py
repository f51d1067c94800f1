"""``on_alert="rollback"``: trainings that diverge and are rescued, and sound ones that are never touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, Optimizer, lr_scheduler

from bnmonitor import Alert, BatchNormMonitor, BatchNormWarning, Monitor
from bnmonitor import open as open_runs
from bnmonitor.cli import main
from bnmonitor.monitor.rollback import MOST, Plan, _lower
from bnmonitor.monitor.snapshots import restore, scale_rates, take
from bnmonitor.sinks import Console, TensorBoard
from tests.histories import an_alert

pytestmark = pytest.mark.filterwarnings("ignore::bnmonitor.BatchNormWarning")  # of what no sink shows

RAISED = 100
"""The step at which a schedule raises the rate."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 4))


def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(64, 8, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0).long()


class Training:
    """A plain loop, in which a schedule may raise the rate, or a batch hold a NaN."""

    def __init__(
        self,
        rate: float,
        action: Any,
        *,
        steps: int = 150,
        factor: float = 1.0,
        nan_at: int = -1,
        each: Callable[[Training, int], None] = lambda training, step: None,
        **more: Any,
    ) -> None:
        self.model, self.losses, generator = network(), [], torch.Generator().manual_seed(1)
        self.optimizer = SGD(self.model.parameters(), lr=rate, momentum=0.9)
        schedule = lr_scheduler.MultiStepLR(self.optimizer, [RAISED], factor)
        options = {"sinks": [], "on_alert": action, **more}
        with Monitor(self.model, optimizer=self.optimizer, **options) as self.monitor:
            for step in range(steps):
                x, y = batch(generator)
                if step == nan_at:
                    x[3, 3] = torch.nan
                loss = nn.functional.cross_entropy(self.model(x), y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.monitor.step(loss=loss)
                schedule.step()
                self.losses.append(float(loss.detach()))
                each(self, step)

    def state(self) -> list[torch.Tensor]:
        momenta = [s["momentum_buffer"] for s in self.optimizer.state_dict()["state"].values()]
        return [t.clone() for t in (*self.model.state_dict().values(), *momenta)]

    @property
    def rate(self) -> float:
        found: float = self.optimizer.param_groups[0]["lr"]
        return found

    @property
    def notes(self) -> list[str]:
        return [alert.message for alert in self.monitor.alerts if alert.code == "BN003"]

    @property
    def end(self) -> float:
        return sum(self.losses[-20:]) / 20


def test_a_rate_that_is_too_high_from_the_first_step_goes_back_to_the_beginning() -> None:
    rescued = Training(50.0, "rollback", steps=120)
    assert rescued.end < 0.8 < 1.3 < rescued.losses[8]
    (incident,) = rescued.monitor.incidents
    assert (incident.cause, incident.state) == ("learning-rate-too-high", "resolved")
    assert rescued.rate == 0.5
    assert rescued.notes == [
        "weights, optimizer and statistics are those before the first step again, learning rate 50 → 0.5 (1 of at most "
        f"{MOST}), because of learning-rate-too-high since step 0"
    ]
    assert rescued.monitor.failure == ""


def test_a_raised_rate_goes_back_to_the_state_before_bit_for_bit_and_its_schedule_goes_on_lower() -> None:
    seen: dict[int, list[torch.Tensor]] = {}

    def keep(training: Training, step: int) -> None:
        seen[step] = training.state()

    back: list[int] = []

    def look(training: Training, step: int) -> None:
        if training.notes and not back:
            back.append(step)
            assert all(map(torch.equal, training.state(), seen[63]))

    Training(0.05, "log", steps=70, each=keep)
    rescued = Training(0.05, "rollback", factor=200.0, each=look)
    (incident,) = rescued.monitor.incidents
    assert back
    assert RAISED - 1 <= incident.first_step <= RAISED + 1
    assert rescued.rate == pytest.approx(0.05)
    assert rescued.end < 0.6
    assert "those after step 63 again, learning rate 10 → 0.05 (1 of at most 3)" in rescued.notes[0]


def test_a_batch_with_a_nan_goes_back_and_keeps_the_rate() -> None:
    rescued = Training(0.05, "rollback", steps=130, nan_at=90)
    (incident,) = rescued.monitor.incidents
    assert (incident.cause, incident.state) == ("non-finite-input", "resolved")
    assert rescued.rate == 0.05
    assert rescued.end < 0.6
    assert "learning rate" not in rescued.notes[0]


def test_a_sound_training_is_never_touched() -> None:
    plain, watched = (Training(0.05, action, steps=50, window=16) for action in ("log", "rollback"))
    assert all(map(torch.equal, plain.state(), watched.state()))
    assert plain.losses == watched.losses
    assert watched.notes == []


def test_a_fault_that_comes_back_is_rolled_back_so_often_and_no_more() -> None:
    def insist(training: Training, step: int) -> None:
        training.optimizer.param_groups[0]["lr"] = 50.0

    found = Training(50.0, "rollback", steps=140, window=32, each=insist)
    assert sum(f"of at most {MOST})" in note for note in found.notes) == MOST
    assert found.notes[-1] == f"went back {MOST} times, which is the most: the training goes on as it is"
    state = found.monitor.state_dict()
    assert sum(state["rollbacks"].values()) == MOST
    again = Monitor(found.model, optimizer=found.optimizer, sinks=[], on_alert="rollback")
    again.load_state_dict(state)
    assert again.rollback is not None
    assert sum(again.rollback.done.values()) == MOST


def test_what_going_back_does_not_undo_is_only_said() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4, momentum=0.99))
    optimizer = SGD(model.parameters(), lr=0.01)

    def train() -> Monitor:
        with Monitor(model, optimizer=optimizer, sinks=[], on_alert="rollback") as monitor:
            for _ in range(30):
                model(torch.randn(64, 8)).square().mean().backward()
                optimizer.step()
                monitor.step()
        return monitor

    with pytest.warns(BatchNormWarning, match="momentum"):
        monitor = train()
    assert monitor.incidents
    assert "BN003" not in {alert.code for alert in monitor.alerts}


def test_it_needs_the_optimizer() -> None:
    with pytest.raises(ValueError, match=r'on_alert="rollback" needs optimizer=, whose state and learning rate'):
        Monitor(network(), sinks=[], on_alert="rollback")


def test_the_terminal_the_history_and_the_report_have_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sinks = [Console(), TensorBoard(tmp_path)]
    Training(50.0, "rollback", steps=60, log_dir=tmp_path, log_every_n_steps=5, sinks=sinks)
    line = "· rolled back: weights, optimizer and statistics are those before the first step again"
    assert line in " ".join(capsys.readouterr().out.split())
    assert main(["report", str(tmp_path)]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
    run = open_runs(tmp_path)["."]
    assert [alert.rule for alert in run.alerts if alert.code == "BN003"] == ["rolled-back"]
    suggested = run.suggest_lr()
    assert suggested is not None
    assert suggested.advised == 0.5


def test_an_incident_that_another_cause_explains_later_is_rolled_back_then() -> None:
    model = network()
    with Monitor(model, optimizer=SGD(model.parameters(), lr=3.0), sinks=[], on_alert="rollback") as monitor:
        rollback, diagnosis = monitor.rollback, monitor._session.diagnosis
        assert rollback is not None
        alert = Alert.from_dict(an_alert("1", 5, code="BN304", rule="stale-statistics"))
        diagnosis.update([alert])
        (incident,) = diagnosis.incidents
        rollback(replace(alert, incident=incident))
        rollback.automatic = False
        rollback.step(9, 9)
        assert not rollback.wanted
        diagnosis._records[0].incident = replace(incident, cause="learning-rate-too-high")
        rollback.step(10, 10)
        assert rollback.wanted
        plan = rollback.plan()
        assert plan is not None
        assert (plan.step, plan.factor) == (-1, pytest.approx(1 / 3))


def test_an_incident_whose_fix_is_a_lower_rate_lowers_it_at_the_first_time() -> None:
    model = network()
    for rule, code in (("dead-channels", "BN701"), ("gamma-explosion", "BN702"), ("variance-explosion", "BN106")):
        with Monitor(model, optimizer=SGD(model.parameters(), lr=3.0), sinks=[], on_alert="rollback") as monitor:
            rollback, diagnosis = monitor.rollback, monitor._session.diagnosis
            assert rollback is not None
            alert = Alert.from_dict(an_alert("1", 5, rule=rule, code=code))
            diagnosis.update([alert])
            rollback(replace(alert, incident=diagnosis.incidents[0]))
            rollback.automatic = False
            plan = rollback.plan()
            assert plan is not None, rule
            assert plan.factor == pytest.approx(1 / 3), rule


# -- the parts ---------------------------------------------------------------------------------------------------------


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "steps": lambda o: lr_scheduler.StepLR(o, 7),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 40, eta_min=0.01),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 9, eta_min=0.01),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=50, cycle_momentum=False),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.3, step_size_up=6, cycle_momentum=False),
    "warm-up": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=15), lr_scheduler.ExponentialLR(o, 0.9)], [15]
    ),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_in_proportion(name: str) -> None:
    courses = []
    for factor in (1.0, 0.125):
        optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.2)
        schedule, course = SCHEDULES[name](optimizer), []
        for step in range(40):
            if step == 10 and factor < 1:
                scale_rates([optimizer], factor)
            course.append(optimizer.param_groups[0]["lr"] / (factor if step >= 10 else 1.0))
            optimizer.step()
            schedule.step()
        courses.append(course)
    assert courses[0] == pytest.approx(courses[1])


def test_a_plateau_ends_in_proportion_too_and_a_rate_in_a_tensor_stays_that_tensor() -> None:
    rate = torch.tensor(0.5)
    optimizer = Adam([nn.Parameter(torch.ones(1))], lr=rate)
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=0.1)
    scale_rates([optimizer], 0.5)
    assert schedule.min_lrs == [0.05]
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25


def test_a_model_that_has_changed_is_left_as_it_is() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    kept = take(3, [model], [optimizer], None, {})
    assert kept.is_finite
    model[6] = nn.Linear(16, 5)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="the model has changed since"):
        restore(kept, [model], [optimizer], None)
    assert all(map(torch.equal, before, model.parameters()))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    assert not take(4, [model], [optimizer], None, {}).is_finite


def test_only_what_is_learned_must_be_finite_and_only_what_can_be_written_is_kept() -> None:
    model = network()
    model.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    model.register_buffer("wide", torch.ones(1).expand(8))
    model.register_buffer("links", torch.eye(3).to_sparse())
    model.register_buffer("elsewhere", torch.empty(2, device="meta"))
    optimizer = SGD(model.parameters(), lr=0.1)
    kept = take(3, [model], [optimizer], None, {})
    assert kept.is_finite
    with torch.no_grad():
        model[0].weight.zero_()
        model.links.mul_(2.0)
    restore(kept, [model], [optimizer], None)
    assert bool(model[0].weight.any())
    assert torch.equal(model.links.to_dense(), torch.eye(3))
    for tensor, value in ((model[1].running_var, torch.inf), (model.mask, torch.nan)):
        before = tensor.clone()
        tensor[0] = value
        assert not take(4, [model], [optimizer], None, {}).is_finite
        tensor.copy_(before)


def test_an_optimizer_with_lists_and_a_scaler_go_back_whole() -> None:
    """LBFGS keeps lists of tensors, numbers and None."""
    model, scaler = network(), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def train(seed: int) -> None:
        x, y = batch(torch.Generator().manual_seed(seed))

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)

    def state() -> list[Any]:
        held = optimizer.state_dict()["state"][0]
        return [
            *map(torch.Tensor.tolist, model.parameters()),
            held["func_evals"],
            *map(torch.Tensor.tolist, held["old_dirs"]),
        ]

    train(0)
    scaler.scale(torch.ones(()))
    before = state()
    kept = take(3, [model], [optimizer], scaler, {})
    train(1)
    scaler.update(2.0)
    assert state() != before
    restore(kept, [model], [optimizer], scaler)
    assert state() == before
    assert scaler.get_scale() == 8.0


def test_a_state_that_is_not_kept_is_not_gone_back_to() -> None:
    """Of several processes each keeps its own states; an alert of bnmonitor itself belongs to no incident."""
    model = network()
    with Monitor(model, optimizer=SGD(model.parameters(), lr=0.1), sinks=[], on_alert="rollback") as monitor:
        model(batch(torch.Generator().manual_seed(0))[0]).square().mean().backward()
        monitor.step()
        rollback, before = monitor.rollback, [p.clone() for p in model.parameters()]
        assert rollback is not None
        rollback(Alert.from_dict(an_alert(None, 0)))
        assert not rollback.wanted
        assert rollback.plan() is None
        assert not rollback.go(Plan(0, "learning-rate-too-high", 77, 0.5, "gone back", "lower it"))
        assert all(map(torch.equal, before, model.parameters()))
        assert not rollback.done


def test_groups_stay_the_same_objects_and_a_rate_that_they_share_is_lowered_once() -> None:
    rate, model = torch.tensor(0.4), network()
    optimizer = SGD([{"params": part.parameters()} for part in (model[0], model[3])], lr=rate)
    groups = list(optimizer.param_groups)
    restore(take(0, [model], [optimizer], None, {}), [model], [optimizer], None)
    scale_rates([optimizer], 0.5)
    assert all(now is then and now["lr"] is rate for now, then in zip(optimizer.param_groups, groups, strict=True))
    assert float(rate) == pytest.approx(0.2)


def test_lazy_layers_are_kept_once_they_have_their_shapes() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    optimizer = SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer=optimizer, sinks=[], on_alert="rollback") as monitor:
        for _ in range(3):
            model(torch.randn(16, 3)).square().mean().backward()
            optimizer.step()
            monitor.step()
        assert monitor.rollback is not None
        assert [(each.step, each.complete) for each in monitor.rollback._kept] == [(0, True)]
        monitor.load_state_dict(monitor.state_dict())
        assert [each.step for each in monitor.rollback._kept] == [2]


def test_an_optimizer_at_a_sound_rate_keeps_it() -> None:
    fast, slow = (SGD([nn.Parameter(torch.ones(1))], lr=rate) for rate in (10.0, 0.01))
    _lower([fast, slow], 0.01)
    assert [o.param_groups[0]["lr"] for o in (fast, slow)] == pytest.approx([0.1, 0.01])


# -- Lightning ---------------------------------------------------------------------------------------------------------


def test_lightning_is_rescued_and_resumes_from_where_it_went_on(tmp_path: Path) -> None:
    import lightning.pytorch as pl

    generator = torch.Generator().manual_seed(1)
    x, y = (torch.cat(parts) for parts in zip(*(batch(generator) for _ in range(80)), strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 64)

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.net, self.rate = network(), rate

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=self.rate, momentum=0.9)
            return [optimizer], [{"scheduler": lr_scheduler.StepLR(optimizer, 1000), "interval": "step"}]

    def fit(epochs: int, checkpoint: str | None = None) -> tuple[Any, BatchNormMonitor]:
        callback = BatchNormMonitor(sinks=[], on_alert="rollback")
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            callbacks=[callback],
            **quiet,
        )
        trainer.fit(Module(50.0), loader, ckpt_path=checkpoint)
        return trainer, callback

    trainer, callback = fit(1)
    (incident,) = callback.incidents
    assert (incident.cause, incident.state) == ("learning-rate-too-high", "resolved")
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5
    (saved,) = (tmp_path / "checkpoints").iterdir()
    again, resumed = fit(2, str(saved))
    assert again.global_step == 160
    assert again.optimizers[0].param_groups[0]["lr"] == 0.5
    assert resumed.monitor.rollback is not None
    assert dict(resumed.monitor.rollback.done) == {"learning-rate-too-high": 1}
    assert [each.state for each in resumed.incidents] == ["resolved"]
