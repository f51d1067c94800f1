"""The rules of the running average, on windows made by hand and on trainings where the fault is planted."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader

from bnmonitor import Alert, Monitor, Severity
from bnmonitor.alerts import AlertBook
from bnmonitor.rules import Finding, find
from bnmonitor.testing import make_sample, make_window
from bnmonitor.window import Recovery, Window

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR


def findings(code: str, window: Window) -> list[Finding]:
    return find(code).check(window)


def a_net(momentum: float | None = 0.1, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    )
    with torch.no_grad():
        net[0].weight.mul_(scale)
    return net


def train(
    net: nn.Module, steps: int, *, phase: str | None = "validation", before: object = None, **options: object
) -> tuple[Alert, ...]:
    """Train for some steps, call a function if there is one, and let an evaluation begin."""
    batches = [torch.randn(16, 1, 6, 6) for _ in range(8)]
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    monitor = Monitor(net, optimizer=optimizer, sinks=[], **options)  # type: ignore[arg-type]
    with monitor:
        for step in range(steps):
            optimizer.zero_grad()
            net(batches[step % 8]).square().mean().backward()
            optimizer.step()
            monitor.step()
        if callable(before):
            before(batches)
        if phase:
            with monitor.evaluation(phase):  # type: ignore[arg-type]
                net.eval()(batches[0])
            net.train()
    return monitor.alerts


def of(code: str, alerts: tuple[Alert, ...]) -> list[Alert]:
    return [alert for alert in alerts if alert.code == code]


# -- BN302 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum", "severity"), [(0.0, ERROR), (1.0, WARNING), (1e-4, None), (0.999, None), (None, INFO)]
)
def test_bn302_judges_the_momentum_itself(momentum: float | None, severity: Severity | None) -> None:
    found = findings("BN302", make_window(channels=(2, 1), momentum=momentum))
    assert [(f.severity, f.layer, f.layers) for f in found] == ([] if severity is None else [(severity, 0, (0, 1))])


def test_bn302_reports_momentum_none_only_beyond_an_epoch() -> None:
    for seen, epoch_steps, reports in ((100, 0, False), (101, 0, True), (500, 500, False), (501, 500, True)):
        window = make_window(momentum=None, seen=seen)
        window = replace(window, facts=replace(window.facts, epoch_steps=epoch_steps))
        assert bool(findings("BN302", window)) == reports


def test_bn302_ignores_a_layer_that_is_frozen_or_not_called() -> None:
    assert not findings("BN302", make_window(momentum=0.0, training=False))
    assert not findings("BN302", make_window(momentum=0.0, updates=0))


@pytest.mark.parametrize(("momentum", "severity"), [(0.0, ERROR), (1.0, WARNING)])
def test_bn302_finds_a_planted_momentum_at_the_first_check(momentum: float, severity: Severity) -> None:
    [alert] = of("BN302", train(a_net(momentum), 3))
    assert (alert.severity, alert.layer, alert.first_step) == (severity, "1", 0)
    assert not of("BN301", train(a_net(momentum), 3))


def test_bn302_learns_the_length_of_an_epoch_from_the_loader() -> None:
    assert not of("BN302", train(a_net(None), 60, train_loader=DataLoader(range(800), batch_size=10)))
    [alert] = of("BN302", train(a_net(None), 60, train_loader=DataLoader(range(200), batch_size=10)))
    assert alert.severity is INFO


def test_bn302_is_quiet_over_a_second_pass_with_momentum_0() -> None:
    """As sharpness-aware minimization makes it: in the same step, or in a step of its own."""
    window = make_window()
    momentum = window.momentum.clone()
    momentum[1::2] = 0.0
    assert not findings("BN302", replace(window, momentum=momentum))
    momentum[-6:] = 0.0
    assert findings("BN302", replace(window, momentum=momentum))
    moved = torch.full_like(window.recovery, int(Recovery.MOMENTUM_CHANGED))
    assert not findings("BN302", replace(window, momentum=torch.zeros_like(momentum), recovery=moved))


# -- BN303 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum", "seen", "variance", "severity"),
    [
        (0.1, 29, 0.1, None),
        (0.1, 28, 0.05, WARNING),
        (0.1, 28, 1.0, INFO),
        (0.1, 12, 1.0, WARNING),
        (0.1, 11, 1.0, ERROR),
        (0.01, 299, 0.1, None),
        (0.01, 298, 0.05, WARNING),
        (0.01, 119, 1.0, ERROR),
        (None, 1, 0.1, None),
    ],
)
def test_bn303_judges_the_weight_of_the_initial_statistics_and_what_it_does(
    momentum: float | None, seen: int, variance: float, severity: Severity | None
) -> None:
    weight = 0.0 if momentum is None else (1 - momentum) ** seen
    mean = 1.0 if seen == 12 else 0.0  # moves the median channel by more than a tenth of a standard deviation
    window = make_window(
        channels=(2, 1),
        momentum=momentum,
        seen=seen,
        running_mean=mean,
        running_var=(1 - weight) * variance + weight,
        evaluation="test",
    )
    found = findings("BN303", window)
    assert [f.severity for f in found] == ([] if severity is None else [severity])
    for finding in found:
        assert (finding.layer, finding.layers, finding.first_step) == (0, (0, 1), window.steps[-1])
        assert math.isclose(finding.value, weight, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("phase", "ledger", "facts", "severity"),
    [
        ("", {}, {}, None),
        ("sanity", {}, {}, None),
        ("validation", {}, {}, INFO),
        ("validation", {"times": 2}, {}, INFO),
        ("validation", {"times": 3}, {}, ERROR),
        ("validation", {}, {"ending": True}, ERROR),
        ("test", {}, {}, ERROR),
        ("predict", {}, {}, ERROR),
        ("test", {"initial": True}, {}, None),  # BN404's
    ],
)
def test_bn303_warns_of_an_evaluation_that_people_act_on(
    phase: str, ledger: dict[str, int], facts: dict[str, bool], severity: Severity | None
) -> None:
    window = make_window(momentum=0.01, seen=50, evaluation=phase, ledger=ledger, facts=facts)
    assert [f.severity for f in findings("BN303", window)] == ([] if severity is None else [severity])


def test_bn303_is_an_info_where_the_next_evaluation_is_warm() -> None:
    net = a_net()
    monitor = Monitor(net, optimizer=torch.optim.SGD(net.parameters(), 0.01), sinks=[])
    with monitor:
        for _ in range(4):
            for _ in range(15):
                net.train()(torch.randn(16, 1, 6, 6)).square().mean().backward()
                monitor.step()
            with monitor.evaluation():
                net.eval()(torch.randn(16, 1, 6, 6))
    [alert] = of("BN303", monitor.alerts)
    assert (alert.severity, alert.state, alert.first_step) == (INFO, "cleared", 14)


def test_bn303_tells_how_often_the_layer_had_been_updated_when_it_was_evaluated() -> None:
    [finding] = findings("BN303", make_window(seen=26, evaluation="test", ledger={"cold": 0.9**20}))
    assert finding.message.startswith("evaluated after 20 updates at momentum 0.1: the initial mean 0 and variance 1 ")


@pytest.mark.parametrize(("decay", "steps", "says"), [(0.99, 60, True), (0.9, 80, False)])
def test_bn303_counts_the_memory_of_an_average(decay: float, steps: int, says: bool) -> None:
    net = a_net(scale=3.0)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    monitor = Monitor({"net": net, "average": average}, sinks=[], optimizer=torch.optim.SGD(net.parameters(), 1e-3))
    weight = 0.0
    with monitor:
        for step in range(steps):
            net.train()(torch.randn(16, 1, 6, 6)).square().mean().backward()
            average.update_parameters(net)
            live = 0.9 ** (step + 1)
            weight = live if step == 0 else decay * weight + (1 - decay) * live
            monitor.step()
        with monitor.evaluation("test"):
            average.eval()(torch.randn(16, 1, 6, 6))
    alerts = of("BN303", monitor.alerts)
    assert [a.layers for a in alerts] == ([("average.module.1",)] if says else [])
    for alert in alerts:
        assert math.isclose(alert.value, weight, rel_tol=1e-4)


def test_bn303_judges_only_what_is_evaluated() -> None:
    net, other = a_net(0.01), a_net(0.1)
    both = nn.ModuleDict({"cold": net, "warm": other})
    monitor = Monitor(both, sinks=[])
    with monitor:
        for _ in range(50):
            for part in (net, other):
                part(torch.randn(16, 1, 6, 6)).square().mean().backward()
            monitor.step()
        with monitor.evaluation("test"):
            other.eval()(torch.randn(16, 1, 6, 6))
        assert not of("BN303", monitor.alerts)
        with monitor.evaluation("test"):
            net.eval()(torch.randn(16, 1, 6, 6))
    [alert] = of("BN303", monitor.alerts)
    assert alert.layers == ("cold.1",)


def test_bn303_finds_a_cold_evaluation_at_its_beginning_even_right_after_a_check() -> None:
    for steps in (40, 43):
        [alert] = of("BN303", train(a_net(0.01), steps))
        assert (alert.severity, alert.layer, alert.first_step) == (ERROR, "1", steps - 1)
        assert math.isclose(alert.value, 0.99**steps, rel_tol=1e-6)


def test_bn303_is_quiet_when_warm_before_training_or_without_an_evaluation() -> None:
    assert not of("BN303", train(a_net(0.1), 40))
    assert not of("BN303", train(a_net(0.01), 40, phase="sanity"))
    assert not of("BN303", train(a_net(0.01), 40, phase=None))
    assert not of("BN303", train(a_net(0.01), 0))


def test_bn303_recognizes_statistics_that_were_loaded_or_estimated_again() -> None:
    loaded = a_net(0.01)
    with torch.no_grad():
        loaded[1].running_var.fill_(0.4)
    assert not of("BN303", train(loaded, 20))
    net = a_net(0.01)
    assert not of("BN303", train(net, 20, before=lambda batches: update_bn(batches, net)))


def test_bn303_counts_the_forward_that_came_before_the_monitor() -> None:
    net = a_net(0.01)
    net(torch.randn(16, 1, 6, 6))
    [alert] = of("BN303", train(net, 20))
    assert math.isclose(alert.value, 0.99**21, rel_tol=1e-5)


def test_bn303_stays_quiet_after_statistics_were_estimated_in_an_earlier_evaluation() -> None:
    net = a_net(0.01)
    batches = [torch.randn(16, 1, 6, 6) for _ in range(8)]
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    monitor = Monitor(net, optimizer=optimizer, sinks=[])
    with monitor:
        for epoch in range(3):
            for batch in batches:
                net(batch).square().mean().backward()
                optimizer.step()
                monitor.step()
            if epoch == 0:
                update_bn(batches, net)
            with monitor.evaluation():
                net.eval()(batches[0])
            net.train()
    assert not of("BN303", monitor.alerts)


def test_bn404_finds_a_layer_that_training_never_updates() -> None:
    net = a_net()
    norm = net[1]
    norm.forward = lambda x: F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)  # type: ignore[method-assign]
    alerts = train(net, 40)
    [alert] = of("BN404", alerts)
    assert alert.severity is ERROR
    assert not of("BN303", alerts), "one fault, told once"


# -- BN304 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum", "lag", "severity"),
    [(0.1, 0.09, None), (0.1, 0.11, WARNING), (0.1, 0.26, ERROR), (None, 0.24, None), (None, 0.26, ERROR)],
)
def test_bn304_accepts_the_lag_of_a_cumulative_average_until_it_does_harm(
    momentum: float | None, lag: float, severity: Severity | None
) -> None:
    found = findings("BN304", make_window(batch_mean=lag, momentum=momentum))
    assert [f.severity for f in found] == ([] if severity is None else [severity])


def test_the_layer_that_is_named_is_the_one_whose_number_is_given() -> None:
    window = make_window(channels=(4, 4))
    momentum = torch.full_like(window.momentum, 0.9)
    momentum[:, 1] = 0.99
    [finding] = findings("BN301", replace(window, momentum=momentum))
    assert (finding.layer, finding.layers, round(finding.value, 6)) == (1, (1, 0), 0.99)


def test_cold_statistics_name_the_first_layer_with_its_own_number_and_the_coldest() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.BatchNorm1d(4), nn.BatchNorm1d(4)])
    monitor = Monitor(model, sinks=[], on_alert="log")
    with monitor:
        for step in range(24):
            x = torch.randn(32, 4) * 3 + 2
            model[0](x)
            if step % 3 == 0:
                model[1](x)
            monitor.step()
        with monitor.evaluation("test"):
            model.eval()
            model[0](x)
            model[1](x)
            model.train()
    (alert,) = [alert for alert in monitor.alerts if alert.code == "BN303"]
    assert (alert.layer, alert.layers, alert.severity) == ("0", ("0", "1"), ERROR)
    assert "after 24 updates at momentum 0.1: the initial mean 0 and variance 1 still weigh 7.98 %" in alert.message
    assert "and 43 % in those of 1, after 8 updates; in the median channel of 1 the mean is off by " in alert.message
    assert math.isclose(alert.value, 0.9**8, rel_tol=1e-6)
    assert alert.advice.startswith("evaluate after 34 updates or more")


def handwritten(momentum: float, *, first: int = 100, sampled: int = 110, seen: float = 1.0, seed: int = 0) -> Window:
    """Averages that are written by other code; the weights swing, so that their movement shows no short memory.

    Args:
        momentum: The weight of a new batch.
        first: The number of the first step.
        sampled: The step of which the batch is known.
        seen: The part of that batch that was sampled: the mean of less is off by more.
    """
    generator = torch.Generator().manual_seed(seed)
    swing = torch.sin(torch.arange(64.0)[:, None] / 4 + torch.rand(8, generator=generator) * 6)
    batches = swing + 0.1 * torch.randn(64, 8, generator=generator)
    rows, mean = [], torch.zeros(8)
    for batch in batches:
        mean = torch.lerp(mean, batch, momentum)
        rows.append(mean)
    window = replace(make_window(running_mean=torch.stack(rows)), steps=tuple(range(first, first + 64)))
    noise = 0.3 * (1 / seen - 1) ** 0.5 * torch.randn(8, generator=generator)
    sample = make_sample(window.layers, step=sampled, input={"mean": batches[sampled - first] + noise})
    return replace(window, recovery=torch.full((64, 1), int(Recovery.FOREIGN)), sample=sample)


def test_bn306_takes_the_batch_of_one_step_where_the_movement_shows_nothing() -> None:
    [finding] = findings("BN306", handwritten(0.9))
    assert (finding.severity, round(finding.value, 2)) == (Severity.WARNING, 0.9)
    assert "momentum of about 0.9 by the batch of a sampled step" in finding.message


@pytest.mark.parametrize("seen", [1.0, 0.1])
def test_bn306_is_an_info_where_much_of_the_past_is_kept(seen: float) -> None:
    for seed in range(20):
        [finding] = findings("BN306", handwritten(0.1, seen=seen, seed=seed))
        assert finding.severity is Severity.INFO, seed


def test_bn306_allows_code_to_copy_its_first_batches() -> None:
    [finding] = findings("BN306", handwritten(0.9, first=0, sampled=10))
    assert finding.severity is Severity.INFO


def test_a_slight_lag_must_last_longer() -> None:
    def opened(lag: float, log: float = 0.0) -> int:
        book = AlertBook([find("BN304")])
        for step in range(0, 500, 10):
            window = make_window(batch_mean=lag, batch_var=math.exp(2 * log), running_var=1.0)
            window = replace(window, steps=tuple(range(step - 54, step + 10)), fresh=10)
            if book.check(window, {}):
                return step
        return -1

    assert opened(0.55) < 100
    assert opened(0.12, 0.25) < 100
    assert 120 <= opened(0.3) < 200
    for log in (0.13, 0.19):
        assert 120 <= opened(0.0, log) < 200
        assert 120 <= opened(0.12, log) < 200, "the mean lags slightly as well"
    assert opened(0.0, 0.11) == -1
    for lag in (0.12, 0.24):
        assert 250 <= opened(lag) < 300


@pytest.mark.parametrize(
    ("weight", "variance", "mean", "severity"),
    [
        (0.04, 0.1, 0.0, None),
        (0.04, 0.03, 0.0, WARNING),
        (0.01, 0.01, 0.0, WARNING),
        (0.04, 0.01, 0.0, ERROR),
        (0.002, 1e-4, 0.0, ERROR),
        (0.04, 0.0, 0.0, None),  # channels that never vary put out their mean, whatever the variance is
        (0.04, 1.0, 2.0, None),
        (0.04, 1.0, 4.0, WARNING),
        (0.04, 1.0, 16.0, ERROR),
    ],
)
def test_bn303_judges_a_small_weight_by_what_it_moves(
    weight: float, variance: float, mean: float, severity: Severity | None
) -> None:
    window = make_window(
        momentum=0.1,
        running_mean=(1 - weight) * mean,
        running_var=(1 - weight) * variance + weight,
        evaluation="test",
        ledger={"cold": weight, "times": 1, "tested": True},
    )
    forgotten = torch.full_like(window.baseline.forgotten, -math.log(weight))
    window = replace(window, baseline=replace(window.baseline, forgotten=forgotten))
    found = findings("BN303", window)
    assert [f.severity for f in found] == ([] if severity is None else [severity])
    for finding in found:
        assert finding.value > finding.threshold
        used = weight + (1 - weight) * variance
        off, log_ratio = weight * mean / math.sqrt(used + 1e-5), 0.5 * math.log((used + 1e-5) / (variance + 1e-5))
        assert math.isclose(finding.value, off or log_ratio, rel_tol=1e-4)
        enough = int(re.findall(r"evaluate after (\d+) update", finding.advice)[0])
        left = 0.9**enough
        assert 0.5 * math.log(((left + (1 - left) * variance) + 1e-5) / (variance + 1e-5)) <= 0.051 or left <= 1e-3
        assert left * mean <= 0.026 or left <= 1e-3


@pytest.mark.parametrize(
    ("momentum", "told"),
    [
        (0.99, "momentum 0.99 is"),
        (0.9997, "momentum 0.9997 is"),
        (0.5, "remember 3 batches"),
        (0.9997, "remember 1 batch"),
    ],
)
def test_a_momentum_near_1_is_not_told_as_1(momentum: float, told: str) -> None:
    [finding] = findings("BN301", make_window(momentum=momentum))
    assert told in finding.message
    assert finding.message.endswith(("batch", "batches"))


@pytest.mark.parametrize(("steps", "found"), [(9, [ERROR]), (10, [])])
def test_bn303_counts_no_weight_below_a_thousandth(steps: int, found: list[Severity]) -> None:
    model = nn.BatchNorm1d(4, momentum=0.5)  # .5 ** 10 is less than a thousandth
    monitor = Monitor(model, sinks=[], on_alert="log")
    with monitor:
        for _ in range(steps):
            model(x := 1e-3 * torch.randn(32, 4))
            monitor.step()
        with monitor.evaluation("test"):
            model.eval()(x)
    assert [alert.severity for alert in monitor.alerts if alert.code == "BN303"] == found
