"""The rules of the parameters and the learning rate, on windows made by hand and on trainings where it is planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from bnmonitor import Alert, Monitor, Severity
from bnmonitor.rules import Finding, find
from bnmonitor.testing import make_structure, make_window
from bnmonitor.window import Producer, Window

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR


def findings(code: str, window: Window, **thresholds: float) -> list[Finding]:
    return replace(find(code), **thresholds).check(window)


def of(code: str, alerts: tuple[Alert, ...]) -> list[Alert]:
    return [alert for alert in alerts if alert.code == code]


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU())]
    blocks += [nn.Sequential(nn.Linear(48, 48), nn.BatchNorm1d(48), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*blocks, nn.Linear(48, 10))


Optimizers = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(net: nn.Module, rate: float = 0.05, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), rate, momentum=0.9, **options)


def train(
    steps: int,
    *,
    net: nn.Module | None = None,
    optimizer: Optimizers = sgd,
    at: dict[int, Callable[[nn.Module, torch.optim.Optimizer], None]] | None = None,
    schedule: Callable[[int], float] | None = None,
) -> tuple[Alert, ...]:
    """Train on the digits, and do something to the network or its optimizer at some steps."""
    torch.set_num_threads(1)
    net = a_net() if net is None else net
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    draw = torch.Generator().manual_seed(1)
    made = optimizer(net)
    rate = made.param_groups[0]["lr"]
    monitor = Monitor(net, optimizer=made, sinks=[])
    with monitor:
        for step in range(steps):
            if schedule:
                made.param_groups[0]["lr"] = rate * schedule(step)
            if at and step in at:
                at[step](net, made)
            pick = torch.randint(len(x), (64,), generator=draw)
            made.zero_grad()
            nn.functional.cross_entropy(net(x[pick]), y[pick]).backward()
            made.step()
            monitor.step()
    return monitor.alerts


def rate_times(factor: float) -> Callable[[nn.Module, torch.optim.Optimizer], None]:
    def change(_: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] *= factor

    return change


# -- BN702 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gamma", "start", "channels"),
    [
        ([1.0, 9.9, 1.0], 1.0, None),
        ([1.0, 10.1, 1.0], 1.0, (1,)),
        ([1.0, -10.1, 1.0], 1.0, (1,)),
        ([4.9, 0.0, 0.0], 0.0, None),
        ([5.1, 0.0, 0.0], 0.0, (0,)),
        ([3.0, 3.0, 4.0], [3.0, 3.0, 0.01], None),
    ],
)
def test_bn702_judges_gamma_by_its_start(gamma: list[float], start: Any, channels: tuple[int, ...] | None) -> None:
    found = findings("BN702", make_window(gamma=gamma, start_gamma=start))
    assert [f.channels for f in found] == ([] if channels is None else [channels])


@pytest.mark.parametrize(("end", "grows", "fires"), [(5.1, True, True), (5.1, False, False), (4.9, True, False)])
def test_bn702_judges_a_channel_by_the_spread_of_its_layer_while_it_grows(end: float, grows: bool, fires: bool) -> None:
    gamma = torch.ones(64, 30)
    gamma[:, 7] = torch.linspace(2.0, end, 64) if grows else end
    found = findings("BN702", make_window(gamma=gamma))
    assert [(f.channels, f.severity) for f in found] == ([((7,), WARNING)] if fires else [])


@pytest.mark.parametrize(("end", "fires"), [(2.3, False), (2.6, True)])
def test_bn702_lets_a_channel_of_a_branch_that_starts_at_zero_be_the_first_to_leave_it(end: float, fires: bool) -> None:
    gamma = 0.1 * torch.rand(64, 30, generator=torch.Generator().manual_seed(0))
    gamma[:, 7] = torch.linspace(0.0, end, 64)
    assert bool(findings("BN702", make_window(gamma=gamma, start_gamma=0.0))) is fires


def test_bn702_does_not_call_a_gamma_among_small_ones_an_explosion() -> None:
    gamma = torch.full((64, 64), 0.2)
    gamma[:, 3] = torch.linspace(1.0, 2.5, 64)
    assert not findings("BN702", make_window(gamma=gamma))


@pytest.mark.parametrize(("channels", "fires"), [(8, False), (48, True)])
def test_bn702_knows_that_few_channels_have_no_spread(channels: int, fires: bool) -> None:
    gamma = torch.rand(channels, generator=torch.Generator().manual_seed(0)).expand(64, channels).clone()
    gamma[:, 3] = torch.linspace(5.0, 6.0, 64)
    assert bool(findings("BN702", make_window(gamma=gamma))) is fires


def test_bn702_finds_the_gamma_that_is_pushed_up() -> None:
    def push(net: nn.Module, _: object) -> None:
        with torch.no_grad():
            net[2][1].weight[5] *= 1.2

    [alert, *_] = of("BN702", train(100, at=dict.fromkeys(range(60, 85), push)))
    assert (alert.layer, alert.channels) == ("2.1", (5,))
    assert 60 <= alert.first_step < 80


# -- BN703 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decay", "decoupled", "dead", "severity"),
    [
        (0.0, False, True, None),
        (9e-4, False, True, INFO),
        (1e-3, False, False, INFO),
        (1e-3, False, True, WARNING),
        (0.049, True, True, INFO),
        (0.05, True, True, WARNING),
    ],
)
def test_bn703_warns_of_strong_decay_where_channels_are_dead(
    decay: float, decoupled: bool, dead: bool, severity: Severity | None
) -> None:
    beta = [0.0, -5.0, 0.0, 0.0] if dead else 0.0
    window = make_window(channels=(4, 4), beta=[0.0] * 4 + beta if dead else 0.0, relu=True, decay=decay)
    window = replace(window, facts=replace(window.facts, decoupled=torch.tensor([decoupled] * 2)))
    found = findings("BN703", window)
    assert [(f.severity, f.layers) for f in found] == ([] if severity is None else [(severity, (0, 1))])
    assert not found or found[0].layer == (1 if severity is WARNING else 0)


def test_bn703_knows_the_groups_of_the_optimizer() -> None:
    def groups(net: nn.Module) -> torch.optim.Optimizer:
        affine = [p for p in net.parameters() if p.dim() == 1]
        rest = [p for p in net.parameters() if p.dim() > 1]
        return torch.optim.SGD([{"params": rest}, {"params": affine, "weight_decay": 0.0}], 0.05, weight_decay=0.1)

    assert not of("BN703", train(3, optimizer=groups))
    [alert] = of("BN703", train(3, optimizer=lambda net: sgd(net, weight_decay=5e-4)))
    assert (alert.severity, len(alert.layers), alert.value) == (INFO, 4, pytest.approx(5e-4))
    net = a_net()
    net[0][1].requires_grad_(False)
    [alert] = of("BN703", train(3, net=net, optimizer=lambda net: torch.optim.AdamW(net.parameters(), 1e-3)))
    assert alert.layers == ("1.1", "2.1", "3.1")


@pytest.mark.parametrize(
    ("kind", "options", "decoupled"),
    [
        (torch.optim.AdamW, {}, True),
        (torch.optim.Adam, {}, False),
        (torch.optim.Adam, {"decoupled_weight_decay": True}, True),
        (torch.optim.SGD, {}, False),
    ],
)
def test_bn703_knows_which_decay_is_decoupled(kind: Any, options: dict[str, Any], decoupled: bool) -> None:
    def kill(net: nn.Module, _: object) -> None:
        with torch.no_grad():
            net[1][1].bias[:20] = -30.0

    alerts = train(40, optimizer=lambda net: kind(net.parameters(), 1e-3, weight_decay=0.01, **options), at={5: kill})
    [alert] = of("BN703", alerts)
    assert alert.severity is (INFO if decoupled else WARNING)


# -- BN704 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [10.0, 30.0, 100.0])
def test_bn704_finds_a_raised_rate_and_reports_it_once_for_all_layers(factor: float) -> None:
    alerts = train(190, at={150: rate_times(factor)})
    [alert] = of("BN704", alerts)
    assert alert.severity >= WARNING
    assert alert.layers[0] == alert.layer
    assert set(alert.layers) == {"0.1", "1.1", "2.1", "3.1"}
    assert 150 <= alert.first_step <= 165
    assert f"lr = {0.05 * factor:g} (was 0.05)" in alert.message
    assert not of("BN106", alerts)
    assert not of("BN702", alerts)


def lost(*, wild: bool, raised: bool) -> Window:
    """Two layers with NaN from step 60 on, and with wild batches for two steps before; the rate rose at step 57."""
    mean = torch.tensor([0.01, -0.01] * 32)[:, None].expand(64, 6).clone()
    if wild:
        mean[58:60] = torch.tensor([2.0, -3.0])[:, None]
    mean[60:] = torch.nan
    var = torch.ones(64, 6)
    var[60:] = torch.nan
    rates = (0.1,) * 57 + ((10.0,) * 7 if raised else (0.1,) * 7)
    facts = {"learning_rates": rates}
    return replace(make_window(channels=(3, 3), batch_mean=mean, running_var=var, facts=facts), fresh=10)


def test_bn704_judges_the_steps_before_a_nan() -> None:
    [finding] = findings("BN704", lost(wild=True, raised=True))
    assert finding.first_step == 57
    assert finding.value == pytest.approx(2.0, rel=1e-4)
    assert "from step 60 on" in finding.message
    assert "go back to a learning rate of 0.1" in finding.advice


@pytest.mark.parametrize(("wild", "raised"), [(False, False), (False, True), (True, False)])
def test_bn704_does_not_blame_the_learning_rate_for_a_nan_without_a_rise(wild: bool, raised: bool) -> None:
    assert not findings("BN704", lost(wild=wild, raised=raised))


@pytest.mark.parametrize("raised", [True, False])
def test_bn101_names_a_learning_rate_that_was_just_raised(raised: bool) -> None:
    finding = findings("BN101", lost(wild=True, raised=raised))[0]
    assert ("raised from 0.1 to 10 at step 57" in finding.message) is raised
    assert ("go back to a learning rate of 0.1" in finding.advice) is raised


def test_bn704_leaves_a_fault_of_one_layer_to_others() -> None:
    def explode(net: nn.Module, _: object) -> None:
        with torch.no_grad():
            net[2][0].weight *= 100.0

    alerts = train(190, at={150: explode})
    assert of("BN106", alerts)[0].layer == "2.1"
    assert not of("BN704", alerts)


def test_bn704_ignores_a_change_of_the_data() -> None:
    def turn(net: nn.Module, _: object) -> None:
        net[0].register_forward_pre_hook(lambda _, args: (2 * args[0].flip(1) + 0.5,))

    assert not of("BN704", train(190, at={150: turn}))


@pytest.mark.parametrize("what", ["data", "center", "gamma first", "no root", "always so"])
def test_bn704_does_not_blame_the_rate_where_the_data_changed(what: str) -> None:
    """Gamma runs away in all layers, but the first layer had changed before any weight did."""
    mean, var, gamma = torch.zeros(64, 6), torch.ones(64, 6), torch.ones(64, 6)
    if what == "center":
        mean[50:, :3] = 20.0
    else:
        var[50:, :3] = 900.0
    if what == "always so":
        var[20:45:5, :3] = 900.0
    run = 49 if what == "gamma first" else 50
    gamma[run:] += 4.0 * torch.arange(1.0, 65 - run)[:, None]
    structure = make_structure(layers=2)
    first, second = structure.places
    places = (replace(first, root=what != "no root"), replace(second, root=False))
    facts = {"structure": replace(structure, places=places)}
    window = make_window(channels=(3, 3), batch_mean=mean, batch_var=var, gamma=gamma, facts=facts)
    assert bool(findings("BN704", window)) is (what not in ("data", "center"))


@pytest.mark.parametrize(("grown", "fires"), [(900.0, True), (1.0, False)])
def test_bn106_counts_a_variance_that_ends_in_infinity_as_one_that_lasts(grown: float, fires: bool) -> None:
    var, running = torch.ones(64, 3), torch.ones(64, 3)
    var[61], running[61] = grown, grown / 10
    var[62:], running[62:] = torch.nan, torch.inf
    window = make_window(batch_var=var, running_var=running)
    assert [(f.first_step, f.channels) for f in findings("BN106", window)] == ([(61, (0, 1, 2))] if fires else [])


@pytest.mark.parametrize(
    "schedule",
    [
        lambda step: min(1.0, step / 100),
        lambda step: min(1.0, step // 44 / 4),
        lambda step: 1.0 if step % 100 < 50 else 0.01,
        lambda step: 1 - abs(step / 100 - 1) * 0.96,
    ],
    ids=["warm-up", "warm-up by epochs", "restarts", "one cycle"],
)
def test_bn704_stays_quiet_under_a_schedule(schedule: Callable[[int], float]) -> None:
    alerts = train(200, optimizer=lambda net: sgd(net, 0.2), schedule=schedule)
    assert not of("BN704", alerts)


@pytest.mark.parametrize("way", ["requires_grad", "group", "rate"])
def test_bn704_stays_quiet_where_layers_are_unfrozen(way: str) -> None:
    def linears(net: nn.Module) -> list[nn.Parameter]:
        return [m.weight for m in list(net.modules())[:-1] if isinstance(m, nn.Linear) and len(m.weight) == 48]

    def frozen(net: nn.Module) -> torch.optim.Optimizer:
        held = linears(net)
        for weight in held if way == "requires_grad" else ():
            weight.requires_grad_(False)
        others = [p for p in net.parameters() if not any(p is w for w in held)]
        groups: list[dict[str, Any]] = [{"params": others}]
        if way != "group":
            groups.append({"params": held, "lr": 0.0 if way == "rate" else 0.5})
        return torch.optim.SGD(groups, lr=0.5, momentum=0.9)

    def thaw(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for weight in linears(net):
            weight.requires_grad_(True)
        if way == "group":
            optimizer.add_param_group({"params": linears(net)})
        optimizer.param_groups[-1]["lr"] = 0.5

    assert not of("BN704", train(200, optimizer=frozen, at={120: thaw}))


def test_bn704_judges_again_a_window_after_layers_were_unfrozen() -> None:
    wild = torch.zeros(64, 6)
    wild[-12:] = torch.tensor([0.6, -0.5] * 6)[:, None]
    for thawed, fires in ((None, True), (30, False), (0, False)):
        window = make_window(channels=(3, 3), batch_mean=wild, facts={"thawed": thawed})
        assert bool(findings("BN704", window)) is fires
    window = make_window(channels=(3, 3), batch_mean=wild, facts={"thawed": 30})
    assert findings("BN704", replace(window, steps=tuple(range(31, 95))))


# -- BN705 -------------------------------------------------------------------------------------------------------------


def test_bn705_finds_a_rate_that_is_too_low_and_one_that_was_lowered_too_far() -> None:
    [alert] = of("BN705", train(80, optimizer=lambda net: sgd(net, 1e-9)))
    assert (alert.severity, len(alert.layers), alert.first_step) == (INFO, 4, 0)
    [alert] = of("BN705", train(220, at={120: rate_times(1e-7)}))
    assert alert.first_step >= 120


def test_bn705_measures_a_gamma_that_began_at_zero_against_one() -> None:
    creeping = torch.linspace(0, 1e-9, 64)[:, None].expand(64, 3)
    assert findings("BN705", make_window(learning_rate=1e-10, gamma=creeping, start_gamma=0.0))
    growing = torch.linspace(0, 0.1, 64)[:, None].expand(64, 3)
    assert not findings("BN705", make_window(learning_rate=1e-10, gamma=growing, start_gamma=0.0))


@pytest.mark.parametrize("rate", [1e-3, 0.05])
def test_bn705_stays_quiet_where_the_network_learns(rate: float) -> None:
    assert not of("BN705", train(120, optimizer=lambda net: sgd(net, rate)))


def test_bn705_stays_quiet_where_a_schedule_ends_where_nothing_trains_and_between_optimizer_steps() -> None:
    still = make_window(learning_rate=1e-8)
    tail = tuple(1e-8 * (1 - t / 64) for t in range(64))
    assert findings("BN705", still)
    assert not findings("BN705", replace(still, facts=replace(still.facts, learning_rates=tail)))
    assert not findings("BN705", replace(still, facts=replace(still.facts, accumulate=32)))
    assert not findings("BN705", make_window(learning_rate=1e-8, affine_trains=False))
    assert not findings("BN705", make_window(learning_rate=1e-8, gamma_grad=0.0))
    assert not findings("BN705", make_window(learning_rate=1e-8, start_gamma=0.9)), "it has converged"
    drifting = torch.linspace(0, 1, 64)[:, None].expand(64, 3)
    assert not findings("BN705", make_window(learning_rate=1e-8, batch_mean=drifting))


# -- BN707 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variance", "severity"), [(1 / 19**2, None), (1 / 21**2, INFO), (1 / 125**2, INFO), (1 / 140**2, WARNING)]
)
@pytest.mark.parametrize("quantized", [True, False])
def test_bn707_compares_the_folded_scales(variance: float, severity: Severity | None, quantized: bool) -> None:
    var = [1.0, 1.0, 1.0, 1.0, variance, 1.0, 1.0]
    found = findings("BN707", make_window(channels=(3, 4), running_var=var, facts={"quantized": quantized}))
    if not quantized:
        severity = None if severity is None else INFO
    assert [(f.severity, f.layer, f.channels) for f in found] == ([] if severity is None else [(severity, 1, (1,))])


def test_bn707_warns_where_the_model_is_prepared_for_quantization() -> None:
    def flatten(net: nn.Module, _: object) -> None:
        with torch.no_grad():
            net[1][0].weight[3] = 0.0
            net[1][0].bias[3] = 0.0

    for prepared, severity in ((False, INFO), (True, WARNING)):
        net = a_net()
        if prepared:
            net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        [alert] = of("BN707", train(130, net=net, at=dict.fromkeys(range(130), flatten)))
        assert (alert.severity, alert.layer) == (severity, "1.1")


def test_bn707_is_judged_at_the_end_only() -> None:
    def flatten(net: nn.Module, _: object) -> None:
        with torch.no_grad():
            net[1][0].weight[3] = 0.0
            net[1][0].bias[3] = 0.0

    [alert] = of("BN707", train(96, at=dict.fromkeys(range(96), flatten)))
    assert (alert.layer, alert.channels, alert.first_step) == ("1.1", (3,), 95)
    assert not of("BN707", train(40))


def test_bn707_ignores_a_layer_on_the_input() -> None:
    """The digits have pixels that never vary: their scale is far from the others', but nothing can be folded."""
    net = nn.Sequential(nn.BatchNorm1d(64), *a_net())
    assert not of("BN707", train(96, net=net))
    assert findings("BN707", make_window(running_var=[1.0, 1.0, 1.0, 1e-7]))


# -- BN708 -------------------------------------------------------------------------------------------------------------


def constant(module: nn.Module) -> None:
    """Give every weight of a linear layer the same value."""
    if isinstance(module, nn.Linear):
        nn.init.constant_(module.weight, 0.02)


def test_bn708_finds_layers_of_which_the_channels_began_equal_and_stay_so() -> None:
    alerts = train(150, net=a_net().apply(constant))
    [alert] = of("BN708", alerts)
    assert (alert.severity, alert.layer, alert.state) == (ERROR, "0.1", "open")
    assert set(alert.layers) == {"0.1", "1.1", "2.1", "3.1"}
    assert len(alert.channels) == 48


def test_bn708_is_quiet_where_the_symmetry_breaks() -> None:
    """One layer began constant, and the random weights behind it tell its channels apart at the first update."""
    net = a_net()
    constant(net[1][0])
    assert not of("BN708", train(60, net=net))
    assert not of("BN708", train(60))


def moving(channels: int, copied: int, *, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    mean, var = torch.randn(64, channels, generator=draw), 1 + torch.rand(64, channels, generator=draw)
    mean[:, :copied], var[:, :copied] = mean[:, :1], var[:, :1]
    return {"batch_mean": mean, "batch_var": var, "seen": 64}


@pytest.mark.parametrize(
    ("copied", "severity"), [(0, None), (2, INFO), (7, INFO), (8, WARNING), (15, WARNING), (16, ERROR)]
)
def test_bn708_grows_with_the_share_of_copies(copied: int, severity: Severity | None) -> None:
    found = findings("BN708", make_window(**moving(16, copied)))
    assert [(f.severity, f.channels) for f in found] == ([] if severity is None else [(severity, tuple(range(copied)))])


def test_bn708_sees_through_a_bias_and_not_through_a_sign() -> None:
    given = moving(8, 8)
    biased = {**given, "batch_mean": given["batch_mean"] + torch.arange(8.0)}
    assert findings("BN708", make_window(**biased))
    signed = {**given, "batch_mean": given["batch_mean"] * torch.tensor([1.0, -1.0] * 4)}
    [finding] = findings("BN708", make_window(**signed))
    assert finding.severity is WARNING
    assert "2 different channels" in finding.message


def test_bn708_leaves_dead_channels_old_windows_and_the_start_to_others() -> None:
    assert not findings("BN708", make_window(batch_var=0.0, batch_mean=0.0, seen=64))
    assert not findings("BN708", make_window(**{**moving(8, 4), "seen": 1000}))
    assert findings("BN708", make_window(**{**moving(8, 8), "seen": 1000}))
    assert not findings("BN708", make_window(channels=(1, 1, 1), **moving(3, 3)))
    assert not findings("BN708", make_window(**moving(8, 8)).last(10))


def test_bn708_says_of_gray_images_with_three_channels_that_they_are_gray() -> None:
    place = Producer(kind="input", role="input")
    window = make_window(**moving(3, 3), facts={"structure": make_structure(root=True, producers=(place,))})
    [finding] = findings("BN708", window)
    assert (finding.severity, finding.value) == (INFO, 1.0)


# -- BN706 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "growth", "chain", "fires"),
    [
        (12, 1.3, True, True),
        (9, 1.5, True, False),
        (12, 1.2, True, False),
        (12, 1.3, False, False),
        (30, 1.14, True, False),
    ],
)
def test_bn706_judges_the_slope_along_a_chain(layers: int, growth: float, chain: bool, fires: bool) -> None:
    gradient = growth ** -torch.arange(float(layers))
    found = findings("BN706", make_window(channels=(1,) * layers, gamma_grad=gradient, chain=chain))
    assert [(f.layer, f.layers) for f in found] == ([(0, tuple(range(layers)))] if fires else [])
    for finding in found:
        assert finding.value == pytest.approx(growth, rel=1e-3)


def test_bn706_is_not_misled_by_one_layer_or_by_gradients_that_shrink_or_are_missing() -> None:
    gradient = torch.ones(12)
    gradient[0] = 1e4
    assert not findings("BN706", make_window(channels=(1,) * 12, gamma_grad=gradient, chain=True))
    assert not findings("BN706", make_window(channels=(1,) * 12, gamma_grad=1.3 ** torch.arange(12.0), chain=True))
    assert not findings("BN706", make_window(channels=(1,) * 12, gamma_grad=float("nan"), chain=True))


class Grows(torch.autograd.Function):
    """The identity, with an enlarged gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 1.4


class Skip(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


@pytest.mark.parametrize("skip", [False, True])
def test_bn706_finds_only_the_chain_with_growing_gradients(skip: bool) -> None:
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    for _ in range(12):
        block = nn.Sequential(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU())
        if not skip:
            block.register_forward_hook(lambda _, __, y: Grows.apply(y))
        blocks.append(Skip(block) if skip else block)
    net = nn.Sequential(*blocks, nn.Linear(64, 10))
    alerts = of("BN706", train(60, net=net, optimizer=lambda net: sgd(net, 1e-4)))
    if skip:
        assert not alerts
    else:
        [alert] = alerts
        assert (alert.layer, len(alert.layers)) == ("0.1", 12)
