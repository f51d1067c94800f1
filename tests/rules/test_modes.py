"""Faults of mode and bookkeeping put into real trainings, and the healthy trainings that look like them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bnmonitor import Alert, Monitor, Severity
from bnmonitor.rules.modes.auxiliary_network_updates import AuxiliaryNetworkUpdates
from bnmonitor.testing import make_window
from tests.recording.test_updates import in_eval

MINE = ("BN4", "BN5")


def net(**arguments: Any) -> nn.Sequential:
    """Two layers, at 1 and 4."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8, **arguments),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8, **arguments),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def data(number: int = 32, *, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    y = torch.arange(number) % 2
    return torch.randn(number, 3, 8, 8) + shift + y[:, None, None, None], y


class Trial:
    """A monitored training with steps that a test arranges."""

    def __init__(self, model: Any, optimizer: Any = None, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = model
        given = (p for p in model.parameters() if p.requires_grad) if isinstance(model, nn.Module) else None
        self.optimizer = optimizer or (torch.optim.SGD(given, lr=0.05) if given is not None else None)
        usual = {"sample_every_n_steps": 20, "select": ("all",)}
        self.monitor = Monitor(model, optimizer=self.optimizer, sinks=[], on_alert="log", **{**usual, **settings})

    def steps(self, number: int = 40, forward: Callable[[Tensor], Tensor] | None = None, shift: float = 0.0) -> None:
        for _ in range(number):
            x, y = data(shift=shift)
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy((forward or self.model)(x), y)
            if loss.requires_grad:
                loss.backward()
                self.optimizer.step()
            self.monitor.step()

    def evaluate(self, phase: Any = "validation", *, mode: bool = False, shift: float = 0.0) -> None:
        with self.monitor.evaluation(phase), torch.no_grad():
            self.model.train(mode)
            for _ in range(3):
                self.model(data(shift=shift)[0])
            self.model.train()

    @property
    def reported(self) -> dict[str, Alert]:
        """Warnings and errors of the families of this file, by code."""
        self.monitor.close()
        return {a.code: a for a in self.monitor.alerts if a.code.startswith(MINE) and a.severity > Severity.INFO}


def assert_only(trial: Trial, code: str, layers: tuple[str, ...], severity: Severity, first: int | None = None) -> None:
    reported = trial.reported
    assert list(reported) == [code]
    assert reported[code].layers == layers
    assert reported[code].severity is severity
    assert reported[code].layer == layers[0]
    if first is not None:
        assert reported[code].first_step == first


# -- faults ------------------------------------------------------------------------------------------------------------


def test_bn403_training_and_evaluation_with_different_statistics() -> None:
    model = net()
    trial = Trial(model)
    with trial.monitor:
        trial.steps(50)
        model[1].track_running_stats = False
        trial.steps(30)
        assert_only(trial, "BN403", ("1",), Severity.WARNING, 50)


def test_bn403_is_an_error_where_the_data_has_moved_away() -> None:
    model = net()
    trial = Trial(model)
    with trial.monitor:
        trial.steps(50)
        model[1].track_running_stats = False
        trial.steps(40, shift=5.0)
        assert_only(trial, "BN403", ("1",), Severity.ERROR)


def test_bn404_frozen_on_a_network_that_was_never_trained() -> None:
    model = net()
    for layer in (model[1], model[4]):
        layer.eval().requires_grad_(False)
    trial = Trial(model)
    with trial.monitor:
        trial.steps()
        assert_only(trial, "BN404", ("1", "4"), Severity.ERROR, 0)


class AlwaysEvaluating(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def test_bn404_names_a_forward_of_its_own_that_updates_nothing() -> None:
    model = net()
    model[1], model[4] = AlwaysEvaluating(8), AlwaysEvaluating(8)
    trial = Trial(model)
    with trial.monitor:
        trial.steps(30)
        trial.evaluate()
        trial.steps(20)
    alert = trial.reported["BN404"]
    assert alert.layers == ("1", "4")
    assert "AlwaysEvaluating" in alert.advice
    assert "training=self.training" in alert.advice


def test_bn404_is_not_said_of_a_first_training_step_that_is_told_of_after_the_evaluation() -> None:
    model = net()
    trial = Trial(model)
    with trial.monitor:
        model(data()[0]).square().mean().backward()
        with trial.monitor.evaluation(), in_eval(model):
            model(data()[0])
        trial.monitor.step()
        trial.steps(5)
    assert not [alert for alert in trial.monitor.alerts if alert.code == "BN404"]


def test_bn404_a_copy_without_its_buffers_is_evaluated() -> None:
    model, average = net(), net().eval().requires_grad_(False)
    trial = Trial({"net": model, "average": average}, torch.optim.SGD(model.parameters(), lr=0.05))
    trial.model = model
    with trial.monitor:
        trial.steps(30)
        average.load_state_dict(dict(model.named_parameters()), strict=False)
        with trial.monitor.evaluation():
            average(data()[0])
        trial.steps(1)
        assert_only(trial, "BN404", ("average.1", "average.4"), Severity.ERROR)


def test_bn404_is_not_said_of_an_average_that_is_mostly_its_first_state() -> None:
    """Averaged with its buffers and its counter once in ten steps, as timm does: nine tenths are still 0 and 1."""
    model = net()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    trial = Trial({"net": model, "average": average}, torch.optim.SGD(model.parameters(), lr=0.05))
    trial.model = model
    with trial.monitor:
        trial.steps(10)
        for ours, its in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            ours.copy_(0.9 * ours + 0.1 * its)
        with trial.monitor.evaluation():
            average(data()[0])
        trial.steps(1)
        assert not any(a.code.startswith(MINE) for a in trial.monitor.alerts)


def test_bn405_unfrozen_on_other_data() -> None:
    model = net()
    trial = Trial(model)
    with trial.monitor:
        trial.steps(40)
        model[1].eval().requires_grad_(False)
        trial.steps(20)
        model[1].train().requires_grad_(True)
        trial.steps(20, shift=4.0)
        assert_only(trial, "BN405", ("1",), Severity.WARNING, 60)


@pytest.mark.parametrize("phase", ["validation", "test", "predict", "sanity"])
def test_bn406_evaluation_in_training_mode(phase: Any) -> None:
    trial = Trial(net())
    with trial.monitor:
        trial.steps(20)
        trial.evaluate(phase, mode=True)
        assert_only(trial, "BN406", ("1", "4"), Severity.WARNING, 19)


@pytest.mark.parametrize("counts", [True, False])
def test_bn406_does_not_take_statistics_that_stay_nan_for_updated_ones(counts: bool) -> None:
    model = net()
    if not counts:
        for layer in (model[1], model[4]):
            layer.num_batches_tracked = None
    trial = Trial(model)
    with trial.monitor:
        trial.steps(20)
        model(torch.full((8, 3, 8, 8), torch.nan))
        trial.steps(10)
        for _ in range(2):
            trial.evaluate()
        for layer in (model[1], model[4]):
            layer.running_mean.zero_()
            layer.running_var.fill_(1.0)
        trial.steps(40)
        trial.evaluate()
        trial.steps(20)
    assert "BN406" not in trial.reported


def test_bn406_is_an_error_once_the_statistics_have_moved_far() -> None:
    trial = Trial(net())
    with trial.monitor:
        trial.steps(120)
        with trial.monitor.evaluation("test"), torch.no_grad():
            trial.model(1e3 * torch.rand(1, 3, 8, 8))
        assert_only(trial, "BN406", ("1", "4"), Severity.ERROR)
    assert "the last moved the deviation" in trial.reported["BN406"].message


def test_bn406_is_one_alert_for_a_habit() -> None:
    trial = Trial(net())
    with trial.monitor:
        for round_ in range(6):
            trial.steps(40)
            trial.evaluate(mode=round_ % 2 == 0)
            trial.evaluate("test")
    assert [a.code for a in trial.monitor.alerts].count("BN406") == 1


def test_bn406_sees_updates_that_no_hook_and_no_version_shows() -> None:
    """As a captured graph makes them when it is replayed."""
    model = net()
    trial = Trial(model)
    with trial.monitor:
        trial.steps(30)
        with trial.monitor.evaluation(), torch.no_grad():
            for norm in (model[1], model[4]):
                norm.running_mean.data.lerp_(torch.randn(8), 0.1)
                norm.running_var.data.lerp_(torch.rand(8), 0.1)
                norm.num_batches_tracked.data.add_(1)
        assert_only(trial, "BN406", ("1", "4"), Severity.WARNING)


class AlwaysOnTheBatch(nn.BatchNorm2d):
    """Normalizes with its batch, and updates its statistics, whatever the mode."""

    def forward(self, x: Tensor) -> Tensor:
        given = self.running_mean, self.running_var, self.weight, self.bias
        return nn.functional.batch_norm(x, *given, training=True)


def test_bn406_sees_a_forward_that_updates_in_evaluation_mode() -> None:
    model = net()
    model[1] = AlwaysOnTheBatch(8)
    trial = Trial(model, ignore=("BN303",))
    with trial.monitor:
        trial.steps(40)
        trial.evaluate()
        assert_only(trial, "BN406", ("1",), Severity.WARNING)


def test_bn406_ignores_a_checkpoint_that_is_loaded_for_a_test() -> None:
    model = net()
    trial = Trial(model)
    with trial.monitor:
        trial.steps(40)
        best = copy.deepcopy(model.state_dict())
        trial.steps(40)
        with trial.monitor.evaluation("test"), torch.no_grad():
            model.load_state_dict(best)
            model.eval()(data()[0])
            model.train()
        trial.steps(20)
        assert not trial.reported


def test_bn406_clears_once_it_is_fixed() -> None:
    trial = Trial(net())
    with trial.monitor:
        trial.steps(100)
        trial.evaluate(mode=True)
        assert_only(trial, "BN406", ("1", "4"), Severity.WARNING)
        with trial.monitor:
            for _ in range(5):
                trial.evaluate()
                trial.steps(10)
        assert trial.reported["BN406"].state == "cleared"


def test_bn406_sees_monte_carlo_dropout_by_training_mode() -> None:
    model = net()
    model.insert(8, nn.Dropout(0.2))
    trial = Trial(model)
    with trial.monitor:
        trial.steps(20)
        trial.evaluate("test", mode=True)
        assert "BN406" in trial.reported


def test_bn408_evaluated_without_statistics() -> None:
    trial = Trial(net(track_running_stats=False))
    with trial.monitor:
        trial.steps(20)
        trial.evaluate()
        assert_only(trial, "BN408", ("1", "4"), Severity.WARNING)


@pytest.mark.parametrize("reentrant", [True, False])
def test_bn501_activation_checkpointing(reentrant: bool) -> None:
    model = net()

    def forward(x: Tensor) -> Tensor:
        first: Any = checkpoint(model[:3], x.requires_grad_(), use_reentrant=reentrant)
        result: Tensor = model[3:](first)
        return result

    trial = Trial(model)
    with trial.monitor:
        trial.steps(forward=forward)
        assert_only(trial, "BN501", ("1",), Severity.WARNING, 0)
    assert "momentum 0.1 acts like 0.19" in trial.reported["BN501"].message
    assert "set its momentum to 0.0513" in trial.reported["BN501"].advice


def test_bn506_a_layer_that_nothing_calls() -> None:
    model = net()
    model.spare = nn.BatchNorm2d(4)
    trial = Trial(model)
    with trial.monitor:
        trial.steps(forward=lambda x: model[8](model[:8](x)))
    [alert] = [a for a in trial.monitor.alerts if a.code == "BN506"]
    assert (alert.layers, alert.severity, alert.first_step) == (("spare",), Severity.INFO, 0)


# -- look-alikes -------------------------------------------------------------------------------------------------------


def assert_quiet(trial: Trial) -> None:
    assert {code: str(alert) for code, alert in trial.reported.items()} == {}


def test_an_ordinary_training_with_all_kinds_of_evaluation() -> None:
    trial = Trial(net())
    with trial.monitor:
        trial.evaluate("sanity")
        for _ in range(3):
            trial.steps(30)
            for phase in ("validation", "test", "predict"):
                trial.evaluate(phase)
    assert_quiet(trial)


def test_a_validation_before_training() -> None:
    trial = Trial(net())
    with trial.monitor:
        trial.evaluate()
        trial.steps(30)
    assert_quiet(trial)


def frozen_backbone() -> nn.Sequential:
    """Trained for a while, then frozen as it should be: parameters and mode."""
    model = net()
    for _ in range(30):
        model(data()[0])
    for module in model[:6]:
        module.requires_grad_(False).eval()
    return model


def test_a_deliberately_frozen_batchnorm() -> None:
    trial = Trial(frozen_backbone())
    with trial.monitor:
        trial.steps()
    assert_quiet(trial)


def test_linear_probing_in_evaluation_mode() -> None:
    model = frozen_backbone()
    trial = Trial(model)

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            features = model[:8](x)
        result: Tensor = model[8](features)
        return result

    with trial.monitor:
        trial.steps(forward=forward)
    assert_quiet(trial)


@pytest.mark.parametrize("inside", [True, False])
def test_statistics_estimated_again_for_other_data(inside: bool) -> None:
    model = net()
    trial = Trial(model)
    loader = [data(shift=2.0)[0] for _ in range(10)]
    with trial.monitor:
        trial.steps(40)
        if inside:
            with trial.monitor.evaluation("test"):
                torch.optim.swa_utils.update_bn(loader, model)
                with in_eval(model):
                    model(loader[0])
        else:
            torch.optim.swa_utils.update_bn(loader, model)
        trial.evaluate("test", shift=2.0)
    assert_quiet(trial)


def test_adaptive_batchnorm_with_only_the_layers_in_training_mode() -> None:
    model = net()
    trial = Trial(model)
    with trial.monitor:
        trial.steps(40)
        with trial.monitor.evaluation("test"), in_eval(model), torch.no_grad():
            for layer in (model[1], model[4]):
                layer.train()
            for _ in range(20):
                model(data(shift=2.0)[0])
    assert_quiet(trial)


def test_monte_carlo_dropout_done_right() -> None:
    model = net()
    model.insert(8, nn.Dropout(0.2))
    trial = Trial(model)
    with trial.monitor:
        trial.steps(20)
        with trial.monitor.evaluation("test"), in_eval(model), torch.no_grad():
            model[8].train()
            for _ in range(5):
                model(data()[0])
    assert_quiet(trial)


def test_two_views_ghost_batches_and_accumulation() -> None:
    def views(x: Tensor) -> Tensor:
        return (model(x) + model(x + 0.1 * torch.randn_like(x))) / 2

    def ghosts(x: Tensor) -> Tensor:
        return torch.cat([model(part) for part in x.chunk(2)])

    for forward in (views, ghosts):
        model = net()
        trial = Trial(model, accumulate_grad_batches=2)
        with trial.monitor:
            trial.steps(40, forward)
            trial.evaluate()
        assert_quiet(trial)


def test_gradual_unfreezing_on_the_same_data() -> None:
    model = frozen_backbone()
    trial = Trial(model, torch.optim.SGD(model.parameters(), lr=0.01))
    with trial.monitor:
        trial.steps(20)
        for module in model:
            module.requires_grad_(True).train()
        trial.steps(20)
    assert_quiet(trial)


def test_checkpointing_in_which_only_one_pass_tracks() -> None:
    model = net()

    def part(x: Tensor) -> Tensor:
        model[1].track_running_stats = torch._C._current_graph_task_id() == -1
        result: Tensor = model[:3](x)
        model[1].track_running_stats = True
        return result

    trial = Trial(model)
    with trial.monitor:
        trial.steps(forward=lambda x: model[3:](checkpoint(part, x.requires_grad_(), use_reentrant=True)))
    assert_quiet(trial)


def test_test_time_augmentation_and_adaptation_on_the_batch() -> None:
    model = net()
    trial = Trial(model)
    with trial.monitor:
        trial.steps(40)
        with trial.monitor.evaluation("test"), in_eval(model), torch.no_grad():
            x = data()[0]
            (model(x) + model(x.flip(-1))) / 2
    assert_quiet(trial)


def test_an_average_of_the_weights_with_averaged_buffers() -> None:
    model = net()
    ema = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trial = Trial({"net": model, "ema": ema}, optimizer)
    with trial.monitor:
        for _ in range(40):
            x, y = data()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            ema.update_parameters(model)
            trial.monitor.step()
        with trial.monitor.evaluation(), in_eval(ema), torch.no_grad():
            ema(data()[0])
    assert_quiet(trial)


def test_a_generator_and_its_critic() -> None:
    generator = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))
    critic = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (generator, critic)]
    trial = Trial({"generator": generator, "critic": critic}, optimizers)
    bce = nn.functional.binary_cross_entropy_with_logits
    with trial.monitor:
        for _ in range(60):
            real, fake = torch.randn(64, 8) * 2 + 3, generator(torch.randn(64, 4))
            critic.requires_grad_(True)
            loss = bce(critic(real), torch.ones(64, 1)) + bce(critic(fake.detach()), torch.zeros(64, 1))
            optimizers[1].zero_grad()
            loss.backward()
            optimizers[1].step()
            critic.requires_grad_(False)
            optimizers[0].zero_grad()
            bce(critic(fake), torch.ones(64, 1)).backward()
            optimizers[0].step()
            trial.monitor.step()
        with trial.monitor.evaluation(), torch.no_grad():
            generator.eval()(torch.randn(16, 4))
            generator.train()
    assert_quiet(trial)


# -- auxiliary networks, layers that no model has, calls that differ --------------------------------------------------


class Distilled(nn.Module):
    """A network and its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = net(), net()
        self.teacher.load_state_dict(self.student.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(x)
        result: Tensor = self.student(x) + 0.01 * target
        return result

    def follow(self) -> None:
        """Let the teacher's parameters, but not its buffers, follow."""
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)


def distill(model: Distilled, steps: int = 40) -> Trial:
    trial = Trial(model, torch.optim.SGD(model.student.parameters(), lr=0.05))
    with trial.monitor:
        for _ in range(steps):
            trial.steps(1)
            model.follow()
    return trial


def test_bn407_a_teacher_with_followed_parameters_and_its_own_statistics() -> None:
    trial = distill(Distilled())
    assert not trial.reported
    [alert] = [a for a in trial.monitor.alerts if a.code == "BN407"]
    assert alert.severity is Severity.INFO
    assert alert.layers == ("teacher.1", "teacher.4")
    assert "'teacher'" in alert.message


def test_bn407_such_a_teacher_is_a_warning_once_it_is_evaluated() -> None:
    following = [[1 + 0.01 * step] * 3 for step in range(64)]
    facts = {"auxiliary": ("teacher",)}
    for evaluated, severity in ((False, Severity.INFO), (True, Severity.WARNING)):
        window = make_window(facts=facts, gamma=following, ledger={"evaluated": {"validation": evaluated}})
        [finding] = AuxiliaryNetworkUpdates().check(window)
        assert finding.severity is severity


def test_bn402_says_that_no_optimizer_has_any_parameter_of_the_model() -> None:
    """The model was copied after the optimizer had been made; a head alone in the optimizer is another matter."""
    old = net()
    model = copy.deepcopy(old)
    for optimizer, what in (
        (torch.optim.SGD(old.parameters(), lr=0.05), "no optimizer has any parameter of the model"),
        (torch.optim.SGD(model[8].parameters(), lr=0.05), "gamma and beta are frozen"),
    ):
        trial = Trial(model, optimizer)
        with trial.monitor:
            trial.steps(40)
        alert = trial.reported["BN402"]
        assert alert.message.startswith(what)
        assert ("parameters() after it was copied" in alert.advice) is (what.startswith("no optimizer"))
        [incident] = trial.monitor.incidents
        assert ("no optimizer trains the model" in incident.title) is (what.startswith("no optimizer"))


def test_bn407_leaves_a_teacher_with_constant_parameters_to_bn402() -> None:
    model = Distilled()
    trial = Trial(model, torch.optim.SGD(model.student.parameters(), lr=0.05))
    with trial.monitor:
        trial.steps(40)
    reported = trial.reported
    assert list(reported) == ["BN402"]
    assert reported["BN402"].layers == ("teacher.1", "teacher.4")


def test_a_teacher_in_evaluation_mode() -> None:
    model = Distilled()
    for _ in range(20):
        model.teacher(data()[0])
    model.teacher.eval()
    assert_quiet(distill(model))


class Stray(nn.Module):
    """Its second normalization is in a plain list, or made in every forward."""

    def __init__(self, made: str, **arguments: Any) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.deep, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 2)
        self.made, self.listed = made, [nn.BatchNorm2d(8, **arguments)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.bn(self.conv(x)).relu())
        if self.made == "forward":
            x = nn.BatchNorm2d(8)(x)
        elif self.made == "listed":
            x = self.listed[0](x)
        result: Tensor = self.head(x.relu().mean((2, 3)))
        return result


@pytest.mark.parametrize("made", ["forward", "listed"])
def test_bn507_a_layer_that_the_model_does_not_know(made: str) -> None:
    trial = Trial(Stray(made))
    with trial.monitor:
        trial.steps()
    reported = trial.reported
    assert list(reported) == ["BN507"]
    assert (reported["BN507"].severity, reported["BN507"].layer, reported["BN507"].first_step) == (
        Severity.ERROR,
        None,
        0,
    )
    assert reported["BN507"].message.endswith(": 8 channels, behind deep")


def test_functional_normalizations_and_a_second_network_are_not_unregistered() -> None:
    other = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model = Stray("nowhere")
    perceptual = [net().eval()]

    def forward(x: Tensor) -> Tensor:
        x = nn.functional.instance_norm(other(x)) + nn.functional.batch_norm(x, None, None, training=True)
        result: Tensor = model(x) + 0 * perceptual[0](x)
        return result

    trial = Trial(model, torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.05))
    with trial.monitor:
        for _ in range(20):
            x, y = data()
            loss = nn.functional.cross_entropy(forward(x), y)
            trial.monitor.saw_loss(loss)
            loss.backward()
            trial.monitor.step()
    assert_quiet(trial)


@pytest.mark.parametrize(("shift", "severity"), [(1.0, Severity.WARNING), (6.0, Severity.ERROR)])
def test_bn502_two_domains_in_two_calls(shift: float, severity: Severity) -> None:
    torch.manual_seed(1)
    model = net()
    trial = Trial(model)
    with trial.monitor:
        trial.steps(40, lambda x: (model(x) + model(x + shift)) / 2)
        assert_only(trial, "BN502", ("1",), severity, 0)


def test_bn502_two_scales_in_two_calls() -> None:
    model = net()
    trial = Trial(model)
    with trial.monitor:
        trial.steps(40, lambda x: (model(x) + model(x * 3)) / 2)
        assert_only(trial, "BN502", ("1",), Severity.ERROR, 0)


@pytest.mark.parametrize(("contrast", "number", "says"), [(0.0, 32, True), (0.7, 32, False), (0.0, 8, False)])
def test_bn502_compares_scales_only_if_the_samples_of_a_call_are_alike(
    contrast: float, number: int, says: bool
) -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        x = x[:number] * torch.exp(contrast * torch.randn(number, 1, 1, 1))
        result: Tensor = (model(x) + model(1.5 * x.roll(1, 0))) / 2
        return result.repeat(32 // number, 1)

    trial = Trial(net(), ignore=("small-batch",))
    with trial.monitor:
        trial.steps(40, lambda x: forward(trial.model, x))
    assert ("BN502" in trial.reported) is says


def test_bn502_is_quiet_where_single_samples_dominate_the_variance() -> None:
    trial = Trial(net(), sample_every_n_steps=5)
    with trial.monitor:
        for _ in range(120):
            scales = torch.exp(0.7 * torch.randn(2, 32, 1, 1, 1))
            trial.steps(1, lambda x, s=scales: (trial.model(x * s[0]) + trial.model(x.roll(1, 0) * s[1])) / 2)
    assert "BN502" not in trial.reported


def test_bn502_is_an_info_for_a_critic_and_a_warning_once_it_is_evaluated() -> None:
    critic = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 1))
    generator = nn.Linear(4, 8)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-4) for m in (generator, critic)]
    monitor = Monitor({"generator": generator, "critic": critic}, optimizer=optimizers, sinks=[], on_alert="log")
    with monitor:
        for _ in range(30):
            fake, real = critic(generator(torch.randn(64, 4))), critic(torch.randn(64, 8) + 4)
            (fake.mean() - real.mean()).backward()
            monitor.step()
        [alert] = [a for a in monitor.alerts if a.code == "BN502"]
        assert (alert.layer, alert.severity) == ("critic.0", Severity.INFO)
        with monitor.evaluation(), in_eval(critic):
            critic(torch.randn(64, 8))
    assert next(a for a in monitor.alerts if a.code == "BN502").severity is Severity.ERROR


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("build", [net, lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6))])
def test_many_small_calls_with_one_distribution(build: Callable[[], nn.Sequential], size: int) -> None:
    for seed in range(3):
        model = build()
        trial = Trial(model, sample_every_n_steps=2)
        torch.manual_seed(seed)
        with trial.monitor:
            for _ in range(15):
                x, _ = data(8 * size)
                torch.stack([model(part).square().mean() for part in x.split(size)]).mean().backward()
                trial.monitor.step()
        assert_quiet(trial)


# -- averaged weights, and conversions ---------------------------------------------------------------------------------


def average(model: nn.Module, *, use_buffers: bool, refresh: bool = False, steps: int = 40) -> Trial:
    """Train with an exponential average that is evaluated at the end."""
    swa = torch.optim.swa_utils
    ema = swa.AveragedModel(model, multi_avg_fn=swa.get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trial = Trial({"net": model, "ema": ema}, optimizer)
    with trial.monitor:
        for _ in range(steps):
            x, y = data()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            ema.update_parameters(model)
            trial.monitor.step()
        if refresh:
            swa.update_bn([data()[0] for _ in range(10)], ema)
        with trial.monitor.evaluation(), in_eval(ema), torch.no_grad():
            ema(data()[0])
    return trial


def test_bn505_averaged_weights_with_the_statistics_of_the_trained_ones() -> None:
    trial = average(net(), use_buffers=False)
    assert_only(trial, "BN505", ("ema.module.1", "ema.module.4"), Severity.WARNING)


def test_averaged_weights_with_estimated_statistics() -> None:
    assert_quiet(average(net(), use_buffers=False, refresh=True))


def test_bn505_a_copy_that_follows_without_its_buffers() -> None:
    model = net()
    for _ in range(20):
        model(data()[0])
    follower = copy.deepcopy(model).eval().requires_grad_(False)
    trial = Trial({"net": model, "copy": follower}, torch.optim.SGD(model.parameters(), lr=0.2))
    trial.model = model
    with trial.monitor:
        for _ in range(40):
            trial.steps(1)
            with torch.no_grad():
                for mine, theirs in zip(follower.parameters(), model.parameters(), strict=True):
                    mine.lerp_(theirs, 0.1)
        with trial.monitor.evaluation(), torch.no_grad():
            follower(data()[0])
    assert_only(trial, "BN505", ("copy.1", "copy.4"), Severity.ERROR)


class Fused(nn.BatchNorm2d):
    """Applies a ReLU in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Renamed(nn.BatchNorm2d):
    """Has only another default."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.2)


@pytest.mark.parametrize("kind", [Fused, Renamed])
def test_bn504_a_conversion_that_drops_a_forward(kind: Any) -> None:
    model = net()
    model[4] = kind(8)
    trial = Trial(model)
    with trial.monitor:
        trial.steps(5)
        trial.model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        trial.steps(20)
        if kind is Renamed:
            return assert_quiet(trial)
        assert_only(trial, "BN504", ("4",), Severity.ERROR)
    assert "a Fused, which has a forward of its own, has been replaced" in trial.reported["BN504"].message
    return None
