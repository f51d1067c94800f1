"""Rules about the operations before and after a layer, on windows made by hand and on small networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bnmonitor import Alert, Finding, Monitor, Severity
from bnmonitor.audit import audit
from bnmonitor.rules import find
from bnmonitor.testing import make_window
from bnmonitor.window import Bare, HeldOut, Operation, Place, Producer, Structure, Window
from tests.models import ARCHITECTURES

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR
CODES = ("BN801", "BN802", "BN803", "BN804", "BN805", "BN806")
RELU = Operation(kind="relu", role="nonlinearity", name="relu")
SHAPED = Operation(kind="view", role="shape")
POOL = Operation(kind="maxpool2d", role="pooling")
DROP = Operation(kind="dropout", role="dropout", name="drop")


def judged(code: str, *places: Place, facts: dict[str, Any] | None = None, **window: Any) -> list[Finding]:
    count = len(places)
    structure = Structure(producer_trains=(True,) * count, consumers=(None,) * count, places=places)
    return find(code).check(
        make_window(channels=[4] * count, facts={"structure": structure, **(facts or {})}, **window)
    )


def fed(kind: str = "convolution", role: Any = "weights", *between: Operation, **more: Any) -> Place:
    shape = more.pop("shape", (8, 4, 5, 5))
    return Place(
        shape=shape, producers=(Producer(kind=kind, role=role, name="p", features=4, **more),), between=between
    )


def alerts(
    model: nn.Module, *inputs: Tensor, loss: Callable[[nn.Module, Tensor], Tensor] | None = None, steps: int = 1
) -> dict[str, Alert]:
    """Alerts of the family in a training, by code."""
    torch.manual_seed(0)
    with Monitor(model, select=CODES, sinks=[], on_alert="log") as monitor:
        for _ in range(steps):
            (loss(model, *inputs) if loss else model(*inputs).square().mean()).backward()
            monitor.step()
    assert len({a.code for a in monitor.alerts}) == len(monitor.alerts)
    return {a.code: a for a in monitor.alerts}


def conv(*between: nn.Module, bias: bool = False, channels: int = 4) -> list[nn.Module]:
    return [nn.Conv2d(channels, 4, 3, padding=1, bias=bias), *between]


IMAGES = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))


# -- the whole family --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODES)
def test_an_unknown_structure_is_not_judged(code: str) -> None:
    assert judged(code, Place(blind="not called")) == []
    assert find(code).check(make_window(facts={"structure": None})) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_common_architectures_raise_no_alert(name: str) -> None:
    architecture = ARCHITECTURES[name]
    found = alerts(architecture.build(), torch.randn(8, *architecture.shape))
    assert not [str(a) for a in found.values() if a.severity > INFO]


# -- BN801 norm-after-activation ---------------------------------------------------------------------------------------


def test_bn801_lists_all_layers_once() -> None:
    [finding] = judged("BN801", fed(), fed("linear", "weights", RELU, SHAPED), fed("convolution", "weights", RELU))
    assert (finding.severity, finding.layer, finding.layers) == (INFO, 1, (1, 2))
    assert "2 of 3 layers normalize the output of a nonlinearity (relu)" in finding.message


def test_bn801_on_networks() -> None:
    after = nn.Sequential(*conv(nn.ReLU(), nn.BatchNorm2d(4)), *conv(nn.BatchNorm2d(4), nn.ReLU()))
    alert = alerts(after, IMAGES)["BN801"]
    assert (alert.layer, alert.layers, alert.severity) == ("2", ("2",), INFO)

    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3))
            self.one, self.two, self.last = (nn.BatchNorm2d(4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return F.relu(self.last(x + self.b(F.relu(self.two(self.a(F.relu(self.one(x))))))))

    assert alerts(PreActivation(), IMAGES) == {}


# -- BN802 dropout-before-norm -----------------------------------------------------------------------------------------


DROPPED = Place(dropouts=(DROP,), dropout=0.5)


def measured(share: float, size: int = 64) -> dict[str, Any]:
    ones = torch.ones(4)
    seen = HeldOut(
        step=63, size=torch.tensor([size]), mean=0 * ones, var=share * ones, running_mean=0 * ones, running_var=ones
    )
    return {"facts": {"held_out": (seen,)}}


@pytest.mark.parametrize(
    ("share", "severity", "limit"), [(0.81, INFO, 0.8), (0.79, WARNING, 0.8), (0.51, WARNING, 0.8), (0.49, ERROR, 0.5)]
)
def test_bn802_severity_grows_with_the_measured_shift(share: float, severity: Severity, limit: float) -> None:
    [finding] = judged("BN802", DROPPED, **measured(share))
    assert (finding.severity, finding.threshold) == (severity, limit)
    assert finding.value == pytest.approx(share, rel=1e-4)
    assert "dropout of 0.5 (drop (dropout)) comes before the layer" in finding.message


@pytest.mark.parametrize("window", [{}, measured(0.3, size=63), {**measured(0.3), "seen": 5}])
def test_bn802_remains_an_info_where_the_shift_is_not_known(window: dict[str, Any]) -> None:
    [finding] = judged("BN802", DROPPED, **window)
    assert finding.severity is INFO
    assert "in validation" not in finding.message


def test_bn802_does_not_mistake_a_variance_that_falls_in_training_for_dropout() -> None:
    [finding] = judged("BN802", DROPPED, batch_var=[0.5] * 4, **measured(0.5))
    assert finding.severity is INFO
    assert finding.value == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(("of_data", "share", "severity"), [(0.4, 0.4, INFO), (0.4, 0.28, WARNING), (0.77, 0.2, ERROR)])
def test_bn802_counts_what_goes_beyond_the_data(of_data: float, share: float, severity: Severity) -> None:
    ones, shares = torch.ones(8), torch.tensor([of_data, share]).repeat_interleave(4)
    seen = HeldOut(
        step=63, size=torch.tensor([64, 64]), mean=0 * ones, var=shares, running_mean=0 * ones, running_var=ones
    )
    behind = replace(DROPPED, predecessors=(0,))
    [finding] = judged("BN802", Place(root=True), behind, facts={"held_out": (seen,)})
    assert (finding.layer, finding.severity) == (1, severity)
    assert finding.value == pytest.approx(share / of_data, rel=1e-4)
    assert f"{share} times the running variance, of which the data explains {of_data}" in finding.message


def test_bn802_is_quiet_in_evaluation_mode_without_dropout_and_with_none_that_drops() -> None:
    assert judged("BN802", DROPPED, training=False) == []
    assert judged("BN802", fed()) == []
    assert judged("BN802", Place(dropouts=(DROP,), dropout=0.0)) == []
    [finding] = judged("BN802", Place(dropouts=(replace(DROP, name=""),), dropout=0.0))
    assert finding.message.startswith("dropout (dropout) comes before the layer")


@pytest.mark.parametrize(("p", "worst"), [(0.5, ERROR), (0.02, INFO)])
def test_bn802_measures_the_shift_of_a_network(p: float, worst: Severity) -> None:
    torch.manual_seed(0)
    head = nn.Linear(64, 64, bias=False)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(p), head, nn.BatchNorm1d(64))
    with Monitor(model, select=CODES, sinks=[], on_alert="log") as monitor:
        for _ in range(80):
            model(torch.randn(256, 32)).square().mean().backward()
            monitor.step()
        with monitor.evaluation():
            model.eval()(torch.randn(256, 32))
    [alert] = [a for a in monitor.alerts if a.code == "BN802"]
    assert (alert.layer, alert.severity) == ("4", worst)


# -- BN803 redundant-bias ----------------------------------------------------------------------------------------------


def test_bn803_lists_all_layers_once_and_counts_parameters() -> None:
    [finding] = judged("BN803", fed(bias=True), fed(), fed("convolution", "weights", POOL, bias=True))
    assert (finding.severity, finding.layer, finding.layers) == (INFO, 0, (0, 2))


NEEDED: dict[str, tuple[Place, dict[str, Any]]] = {
    "something else reads it": (fed(bias=True, shared=True), {}),
    "frozen": (fed(bias=False), {}),
    "the layer in evaluation mode": (fed(bias=True), {"training": False}),
    "a nonlinearity between": (fed("convolution", "weights", RELU, bias=True), {}),
    "features on the last of three axes": (fed("linear", bias=True, features_last=True), {}),
    "several places, of which one may have more between": (
        Place(producers=(fed(bias=True).producers[0], fed("linear", bias=True).producers[0])),
        {},
    ),
    "a bias for each position": (
        Place(producers=(Producer(kind="linear", role="weights", bias=True, features=100),), between=(SHAPED,)),
        {},
    ),
}


@pytest.mark.parametrize("name", NEEDED)
def test_bn803_is_quiet_where_the_bias_has_an_effect(name: str) -> None:
    place, window = NEEDED[name]
    assert judged("BN803", place, **window) == []


def test_bn803_on_networks() -> None:
    model = nn.Sequential(
        *conv(nn.BatchNorm2d(4), nn.ReLU(), bias=True), *conv(nn.BatchNorm2d(4), bias=True), *conv(nn.BatchNorm2d(4))
    )
    alert = alerts(model, IMAGES)["BN803"]
    assert (alert.layers, alert.severity) == (("1", "4"), INFO)
    assert "the bias of 2 operations before a normalization has no effect: 0, 3" in alert.message
    model[0].bias.requires_grad_(False)
    model[4].eval()
    assert alerts(model, IMAGES) == {}


def test_bn803_ignores_a_bias_with_one_value_per_position() -> None:
    model = nn.Sequential(nn.Linear(6, 4 * 9), nn.Unflatten(1, (4, 3, 3)), nn.BatchNorm2d(4), nn.ReLU())
    assert alerts(model, torch.randn(8, 6)) == {}


# -- BN804 wrong-axis --------------------------------------------------------------------------------------------------


def test_bn804_names_the_axes() -> None:
    [finding] = judged("BN804", fed("linear", features_last=True, shape=(8, 4, 4)))
    assert (finding.severity, finding.layer) == (WARNING, 0)
    assert "its input is [N, 4, 4], and p (linear) puts its 4 features last" in finding.message
    assert "num_features=4" in finding.advice
    assert judged("BN804", fed("linear", shape=(8, 4, 7))) == []


class Recurrent(nn.Module):
    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.rnn, self.bn, self.turned = nn.LSTM(5, 6, batch_first=True), nn.BatchNorm1d(6 if turned else 7), turned

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        return self.bn(y.transpose(1, 2) if self.turned else y)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bn = nn.Embedding(9, 6), nn.BatchNorm1d(7)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.embed(x))


def test_bn804_on_networks() -> None:
    series = torch.randn(8, 7, 5)
    wrong = [
        (nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(7)), series),
        (nn.Sequential(nn.LayerNorm(5), nn.BatchNorm1d(7)), series),
        (Recurrent(turned=False), series),
        (Tokens(), torch.randint(9, (8, 7))),
    ]
    for model, x in wrong:
        assert alerts(model, x)["BN804"].severity is WARNING
    assert alerts(Recurrent(turned=True), series) == {}
    assert alerts(nn.Sequential(nn.Conv1d(7, 7, 1, bias=False), nn.BatchNorm1d(7)), torch.randn(8, 7, 7)) == {}


# -- BN805 norm-under-per-sample-gradients -----------------------------------------------------------------------------


def critic(*norm: nn.Module) -> nn.Module:
    return nn.Sequential(*conv(*norm, nn.LeakyReLU()), nn.Flatten(), nn.Linear(256, 1))


def wasserstein(model: nn.Module, real: Tensor) -> Tensor:
    fake = real + torch.randn_like(real)
    between = (0.5 * real + 0.5 * fake).requires_grad_()
    loss = model(fake).mean() - model(real).mean()
    (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
    return loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()


def adversarial(model: nn.Module, real: Tensor) -> Tensor:
    x = real.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x)
    return model(real + 0.1 * slope.sign()).mean()


def test_bn805_finds_the_penalty_even_if_it_is_the_last_of_several_calls() -> None:
    alert = alerts(critic(nn.BatchNorm2d(4)), IMAGES, loss=wasserstein)["BN805"]
    assert (alert.layer, alert.severity) == ("1", WARNING)


def test_bn805_is_quiet_in_evaluation_mode_and_without_a_graph_of_the_gradient() -> None:
    assert alerts(critic(nn.BatchNorm2d(4)), IMAGES, loss=adversarial) == {}
    assert alerts(critic(nn.BatchNorm2d(4).eval()), IMAGES, loss=wasserstein) == {}
    each = nn.InstanceNorm2d(4, track_running_stats=True)
    assert alerts(critic(each), IMAGES, loss=wasserstein) == {}


# -- BN806 missing-norm ------------------------------------------------------------------------------------------------


def network(normalized: int, *bare: Bare) -> Window:
    structure = Structure(producer_trains=(True,), consumers=(None,), bare=bare, normalized=normalized)
    return make_window(facts={"structure": structure})


def forgotten(name: str = "c") -> Bare:
    return Bare(name=name, nonlinearity="relu", first=False, near=0)


@pytest.mark.parametrize(("normalized", "fires"), [(1, False), (2, False), (3, True), (9, True)])
def test_bn806_reports_where_most_convolutions_have_a_normalization(normalized: int, fires: bool) -> None:
    assert bool(find("BN806").check(network(normalized, forgotten(), forgotten("d")))) is fires
    assert find("BN806").check(network(normalized, forgotten(""))) == []


def test_bn806_names_the_convolutions() -> None:
    model = nn.Sequential(
        *conv(nn.BatchNorm2d(4), nn.ReLU()),
        *conv(nn.BatchNorm2d(4), nn.ReLU()),
        *conv(nn.ReLU()),
        *conv(nn.BatchNorm2d(4)),
    )
    alert = alerts(model, IMAGES, steps=30)["BN806"]
    assert (alert.layer, alert.layers, alert.severity, alert.state) == ("6", ("6",), INFO, "open")
    assert "1 convolution without a normalization before the nonlinearity, while 3 have one: 6" in alert.message
    assert Alert.from_dict(alert.to_dict()) == alert


def test_bn806_ignores_gates_and_the_first_convolution_of_a_discriminator() -> None:
    gate = [nn.AdaptiveAvgPool2d(1), *conv(nn.ReLU()), *conv(nn.Sigmoid())]
    blocks = [part for _ in range(3) for part in conv(nn.BatchNorm2d(4), nn.LeakyReLU())]
    assert alerts(nn.Sequential(*conv(nn.LeakyReLU()), *blocks, *gate), IMAGES) == {}


# -- without training --------------------------------------------------------------------------------------------------


def test_an_audit_finds_faults_of_the_structure() -> None:
    model = nn.Sequential(
        *conv(nn.BatchNorm2d(4), nn.ReLU(), bias=True),
        nn.Dropout2d(0.5),
        *conv(nn.BatchNorm2d(4), nn.ReLU()),
        *conv(nn.ReLU()),
        *conv(nn.BatchNorm2d(4), nn.ReLU()),
    )
    found = {a.code: a for a in audit(model).alerts}
    assert {code: a.layer for code, a in found.items()} == {"BN802": "5", "BN803": "1", "BN806": "7"}
    assert all(a.severity is INFO for a in found.values())
    assert audit(ARCHITECTURES["residual"].build()).alerts == ()
