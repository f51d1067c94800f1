"""How batches are drawn: made windows, and real trainings whose batches are drawn well or badly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Alert, Monitor, Severity
from bnmonitor.rules import Rule
from bnmonitor.rules.data.alternating_domains import AlternatingDomains
from bnmonitor.rules.data.correlated_batches import CorrelatedBatches
from bnmonitor.testing import drawn_window, make_sample, make_structure, make_window
from bnmonitor.window import Loader, Window

torch.set_num_threads(1)
NOISE = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) / 8
"""Means of batches of 64 independent samples of variance 1."""
TURNS = torch.tensor([[1.0], [-1.0]]).repeat(32, 1)
SLOPE = torch.linspace(0, 1, 64)[:, None]
EVEN = Loader(batch_size=64, samples=6400)


def made(mean: Tensor, loader: Loader | None = EVEN, **given: Any) -> Window:
    window = make_window(
        **{
            "batch_mean": mean,
            "chain": True,
            "sizes": 64,
            "facts": {"train_loader": loader},
            "steps": len(mean),
            **given,
        }
    )
    return replace(window, sample=make_sample(window.layers, size=int(window.baseline.sizes[0])))


@pytest.mark.parametrize(("tails", "fires"), [(3.0, True), (9.0, False)])
def test_variances_are_not_judged_by_samples_of_which_a_few_vary_far_more_than_all_others(
    tails: float, fires: bool
) -> None:
    wide = (0.6 * torch.randn(64, 8, generator=torch.Generator().manual_seed(1))).exp()
    window = made(NOISE, batch_var=wide)
    assert window.sample is not None
    beyond = torch.tensor([[0.9], [tails]])
    sample = replace(window.sample, unevenness=torch.ones(8), uneven_beyond=beyond)
    window = replace(window, sample=sample, earlier=(sample, sample))
    assert bool(CorrelatedBatches().check(window)) is fires


def test_variances_that_take_turns_do_so_since_the_first_batch() -> None:
    var = (1 + NOISE) * torch.tensor([[1.0], [2.0]]).repeat(32, 1)
    window = made(NOISE, batch_var=var)
    assert window.sample is not None
    sample = replace(window.sample, unevenness=2 * torch.ones(8), uneven_beyond=torch.tensor([[0.9], [3.0]]))
    [finding] = AlternatingDomains().check(replace(window, sample=sample, earlier=(sample, sample)))
    assert ("the variances" in finding.message, finding.first_step) == (True, 0)


def test_what_all_channels_share_takes_no_turns_by_chance() -> None:
    """Mixup mixes each batch by one share, which is near 0 or 1 in most batches and far from it in some."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        one, other = torch._sample_dirichlet(torch.full((64, 2), 0.4), generator).unbind(1)
        var = (one.square() + other.square())[:, None] * (1 + torch.randn(64, 8, generator=generator) / 10)
        window = made(torch.randn(64, 8, generator=generator) / 8, None, batch_var=var)
        assert window.sample is not None
        sample = replace(window.sample, unevenness=torch.ones(8) / 2, uneven_beyond=torch.tensor([[0.9], [3.0]]))
        assert not AlternatingDomains().check(replace(window, sample=sample, earlier=(sample, sample))), seed


def shared(generator: torch.Generator) -> Tensor:
    """A factor that all channels have in common in a batch, as the share by which it is mixed."""
    return 0.5 * torch.randn(64, 1, generator=generator)


def rise(generator: torch.Generator) -> Tensor:
    """Data that becomes noisier."""
    return torch.linspace(0, 0.75, 64)[:, None] * (1 + 0.3 * torch.randn(1, 8, generator=generator))


@pytest.mark.parametrize("levels", [shared, rise])
def test_what_changes_the_variances_otherwise_comes_in_no_blocks(levels: Callable[[torch.Generator], Tensor]) -> None:
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        var = levels(generator).exp() * (1 + torch.randn(64, 8, generator=generator) / 10)
        window = made(torch.randn(64, 8, generator=generator) / 8, None, batch_var=var)
        assert window.sample is not None
        told = {"unevenness": 0.64 * torch.ones(8), "uneven_beyond": torch.tensor([[0.9], [3.0]])}
        sample = replace(window.sample, **told, stirred=torch.full((2, 8), 0.003))
        assert not CorrelatedBatches().check(replace(window, sample=sample, earlier=(sample, sample))), seed


@pytest.mark.parametrize(("samples", "fires"), [(1, False), (2, True)])
def test_one_sampled_update_may_have_been_a_small_one(samples: int, fires: bool) -> None:
    window = made(NOISE + walk(0.3), Loader(), facts={"train_loader": None, "learning_rates": (0.1,) * 64})
    assert window.sample is not None
    sample = replace(window.sample, stirred=torch.full((2, 8), 0.3 / 8), unevenness=torch.ones(8))
    window = replace(window, sample=sample, earlier=(sample,) * (samples - 1))
    assert bool(CorrelatedBatches().check(window)) is fires


@pytest.mark.parametrize(("told", "fires"), [(0.3, False), (0.01, True)])
def test_updates_are_counted_as_their_changes_are_over_all_channels(told: float, fires: bool) -> None:
    """Where a few channels follow the weights much more than the others, they make up what all show together."""
    two = torch.tensor([1.0, 1.0, 0, 0, 0, 0, 0, 0])
    for seed in range(5):
        window = made(NOISE + two * walk(0.3, seed), None, facts={"train_loader": None, "learning_rates": (0.1,) * 64})
        assert window.sample is not None
        stirred = torch.full((2, 8), 0.01).where(two == 0, told)
        sample = replace(window.sample, stirred=stirred, unevenness=torch.ones(8))
        assert bool(CorrelatedBatches().check(replace(window, sample=sample, earlier=(sample, sample)))) is fires, seed


def test_weights_that_jump_with_the_learning_rate_are_no_fault_of_the_data() -> None:
    given = {"train_loader": EVEN, "learning_rates": (0.1,) * 40 + (10.0,) * 24}
    jumping = NOISE.clone()
    jumping[41:] *= 30
    assert CorrelatedBatches().check(made(jumping))
    assert not CorrelatedBatches().check(made(jumping, facts=given))


@pytest.mark.parametrize("since", [3, 32, 61])
@pytest.mark.parametrize(("shift", "scale"), [(20.0, 1.0), (0.0, 1e5), (0.0, 1e-3)])
def test_another_level_from_some_batch_on_is_no_order(since: int, shift: float, scale: float) -> None:
    mean, var = NOISE + shift, torch.full((64, 8), scale)
    mean *= scale**0.5
    mean[:since], var[:since] = NOISE[:since], 1.0
    window = made(mean, batch_var=var * (0.2 * NOISE).exp())
    assert window.sample is not None
    sample = replace(window.sample, unevenness=torch.ones(8), uneven_beyond=torch.tensor([[0.9], [3.0]]))
    assert not CorrelatedBatches().check(replace(window, sample=sample, earlier=(sample, sample)))


def test_weights_that_an_optimizer_with_momentum_carries_along_are_no_fault_of_the_data() -> None:
    speed = torch.zeros(8)
    places = [torch.zeros(8)]
    generator = torch.Generator().manual_seed(2)
    for _ in range(63):
        speed = 0.9 * speed + torch.randn(8, generator=generator) / 6
        places.append(places[-1] + speed)
    carried = torch.stack(places)
    assert float(carried.diff(dim=0).square().mean() / 2) > 2.5 / 64
    assert not CorrelatedBatches().check(made(NOISE + carried))


@pytest.mark.parametrize(("height", "fires"), [(0.0, False), (0.27, True)])
def test_blocks_of_batches_stand_out_of_the_motion_of_the_weights(height: float, fires: bool) -> None:
    """Weights with momentum go on in one direction for some steps; levels of blocks do not."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)

        def drawn(rows: int, spread: float, by: torch.Generator = generator) -> Tensor:
            return spread * torch.randn(rows, 8, generator=by)

        speeds = [drawn(1, 0.015)]
        for _ in range(95):
            speeds.append(0.9 * speeds[-1] + (1 - 0.9**2) ** 0.5 * drawn(1, 0.015))
        mean = drawn(96, 1 / 8) + drawn(12, height).repeat_interleave(8, 0) + torch.cat(speeds).cumsum(0)
        window = made(mean, None, facts={"train_loader": None, "learning_rates": (0.1,) * 96})
        assert window.sample is not None
        sample = replace(window.sample, stirred=torch.full((2, 8), 0.015), unevenness=torch.ones(8))
        assert bool(CorrelatedBatches().check(replace(window, sample=sample, earlier=(sample, sample)))) is fires, seed


@pytest.mark.parametrize("since", [10, 24, 32, 50])
@pytest.mark.parametrize("shift", [0.3, 0.6, 1.2])
def test_one_change_of_the_data_must_outlast_the_window(since: int, shift: float) -> None:
    """Another augmentation moves the means once, by a few times what they vary from batch to batch."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        mean = torch.randn(64, 8, generator=generator) / 8
        mean[since:] += shift * torch.randn(8, generator=generator)
        assert all(finding.lasting == 64 for finding in CorrelatedBatches().check(with_updates(mean))), seed


@pytest.mark.parametrize(("length", "lasting"), [(4, {0}), (8, {0}), (16, {0}), (30, {0, 64})])
def test_blocks_of_batches_are_told_at_once_or_as_long_as_they_go_on(length: int, lasting: set[int]) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        levels = 0.6 * torch.randn(200 // length + 1, 8, generator=generator).repeat_interleave(length, 0)[:200]
        mean = torch.randn(200, 8, generator=generator) / 8 + levels
        for end in range(64, 201, 8):
            [finding] = CorrelatedBatches().check(with_updates(mean[end - 64 : end]))
            assert finding.lasting in lasting


def with_updates(mean: Tensor) -> Window:
    """A window of a layer whose means updates of the weights hardly move."""
    window = made(mean, facts={"train_loader": EVEN, "learning_rates": (0.1,) * 64})
    assert window.sample is not None
    sample = replace(window.sample, stirred=torch.full((2, 8), 0.003), unevenness=torch.ones(8))
    return replace(window, sample=sample, earlier=(sample, sample))


def runs(length: int, height: float) -> Tensor:
    """Batches that stay at a level of their own for some steps."""
    levels = torch.randn(64, 1, generator=torch.Generator().manual_seed(1)) * height
    return levels.repeat_interleave(length, 0)[:64]


def walk(step: float, seed: int = 2) -> Tensor:
    """What weights that wander add to the means, in each channel on its own."""
    return step * torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)).cumsum(0)


@pytest.mark.parametrize("loader", [EVEN, Loader(), None], ids=["loader", "own batch sampler", "unknown"])
@pytest.mark.parametrize(
    ("mean", "severity"),
    [
        (NOISE * 2.4, Severity.WARNING),
        (NOISE * 5, Severity.ERROR),
        (NOISE + runs(1, 0.8), Severity.ERROR),
        (NOISE + runs(4, 1.0), Severity.ERROR),
        (NOISE + runs(4, 20.0), Severity.ERROR),
    ],
)
def test_batches_that_differ_too_much_are_found(mean: Tensor, severity: Severity, loader: Loader | None) -> None:
    [finding] = CorrelatedBatches().check(made(mean, loader))
    assert finding.severity is severity
    assert finding.layer == 0


@pytest.mark.parametrize(
    "window",
    [
        pytest.param(made(NOISE), id="independent"),
        pytest.param(made(NOISE + 6 * SLOPE), id="drift"),
        pytest.param(made(NOISE + 3 * SLOPE.square()), id="accelerating"),
        pytest.param(made(NOISE + 0.3 * torch.sin(10 * SLOPE)), id="swinging"),
        pytest.param(made(NOISE + walk(0.3)), id="walk"),
        pytest.param(made(NOISE + walk(0.15).cumsum(0) / 3), id="walk with momentum"),
        pytest.param(made(NOISE[:48] * 5), id="few steps"),
        pytest.param(made(NOISE * 5, chain=False), id="unknown structure"),
        pytest.param(made(NOISE * 5, training=False), id="frozen"),
        pytest.param(made(NOISE * 2.4 / 8, sizes=4096), id="large batches that differ little"),
        pytest.param(made(NOISE * 5, batch_var=1e-7), id="flat"),
        pytest.param(made(NOISE * 5, None, facts={"epoch_steps": 3}), id="short epochs of unknown batches"),
    ],
)
def test_what_looks_like_correlation_is_none(window: Window) -> None:
    assert CorrelatedBatches().check(window) == []
    assert AlternatingDomains().check(window) == []


@pytest.mark.parametrize(("batches", "left"), [(2, 8), (3, 2), (8, 2), (29, 5), (200, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_the_incomplete_last_batch_is_counted_in_or_left_out(batches: int, left: int, seed: int) -> None:
    loader = Loader(batch_size=64, samples=64 * (batches - 1) + left, drop_last=False)
    sizes = torch.tensor([left if t % batches == batches - 1 else 64 for t in range(20, 84)])
    noise = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)) / sizes[:, None].sqrt()
    assert CorrelatedBatches().check(made(noise, loader)) == []


def test_small_samples_and_heavy_tails_are_trusted_less() -> None:
    window = made(NOISE * 3.0, values=6400)
    assert window.sample is not None

    def told(**given: Any) -> bool:
        sample = make_sample(window.layers, values=6400, **given)
        return bool(CorrelatedBatches().check(replace(window, sample=sample)))

    assert told(size=64)
    assert not told(size=15)
    assert not told(size=64, input={"kurtosis": 60.0})


def test_a_sample_of_the_first_weights_says_nothing_once_they_have_moved() -> None:
    window = made(NOISE * 5)
    young = replace(window, baseline=replace(window.baseline, updates=torch.tensor([90])))
    assert CorrelatedBatches().check(window)
    assert CorrelatedBatches().check(young) == []


def test_only_layers_that_see_the_data_are_judged() -> None:
    mean = torch.cat([NOISE, 5 * NOISE], 1)
    assert CorrelatedBatches().check(made(mean, channels=(8, 8))) == []
    [finding] = CorrelatedBatches().check(made(mean.flip(1), channels=(8, 8)))
    assert finding.layer == 0


@pytest.mark.parametrize(
    ("mean", "fires"),
    [(NOISE + TURNS * 0.5, True), (NOISE * 5, False), (NOISE + 0.1 * TURNS, False), (NOISE + runs(8, 1.0), False)],
)
def test_turns_are_told_from_other_correlation(mean: Tensor, fires: bool) -> None:
    assert bool(AlternatingDomains().check(made(mean))) is fires


def jumps(height: float) -> Tensor:
    """What weights that jump to and fro add to the means, in each channel on its own."""
    return height * torch.randn(64, 8, generator=torch.Generator().manual_seed(3))


def test_weights_that_jump_move_means_only_as_far_as_these_are_from_zero() -> None:
    assert CorrelatedBatches().check(made(NOISE + jumps(0.5)))
    assert not CorrelatedBatches().check(made(2.0 + NOISE + jumps(0.5)))
    in_front = {"chain": False, "facts": {"train_loader": EVEN, "structure": make_structure(distance=0, root=True)}}
    assert CorrelatedBatches().check(made(2.0 + NOISE + jumps(0.5), **in_front))


def test_blocks_of_batches_are_found_however_large_the_mean_is() -> None:
    [finding] = CorrelatedBatches().check(made(2.0 + NOISE + runs(4, 0.8)))
    assert finding.severity >= Severity.WARNING


@pytest.mark.parametrize("began", [12, 25, 40, 50])
@pytest.mark.parametrize(
    ("rule", "other"),
    [
        (CorrelatedBatches(), NOISE * 5),
        (CorrelatedBatches(), NOISE + runs(4, 1.0)),
        (AlternatingDomains(), NOISE + TURNS),
    ],
    ids=["spread", "blocks", "turns"],
)
def test_it_is_dated_to_the_batch_with_which_it_began(rule: Rule, other: Tensor, began: int) -> None:
    mean = torch.cat([NOISE[:began], other[began:]])
    window = made(mean)
    findings = rule.check(window)
    if not findings:  # the older part outweighs the newer yet
        assert began > 25
    for finding in findings:
        assert abs(finding.first_step - window.steps[began]) <= 5


# -- real trainings ----------------------------------------------------------------------------------------------------


def data(name: str) -> tuple[Tensor, Tensor]:
    found = getattr(datasets, f"load_{name}")()
    x, y = torch.tensor(found.data).float(), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    return (x.view(-1, 1, 8, 8), y) if name == "digits" else (x, y)


def network(x: Tensor, *, first: bool = False) -> nn.Module:
    if x.dim() == 4:
        stem: list[nn.Module] = [nn.BatchNorm2d(1)] if first else [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)]
    else:
        stem = [nn.BatchNorm1d(x.shape[1])] if first else [nn.Linear(x.shape[1], 16), nn.BatchNorm1d(16)]
    return nn.Sequential(*stem, nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


def fit(
    name: str = "digits", *, batch: int = 32, how: str = "", first: bool = False, lr: float = 0.05
) -> dict[str, Alert]:
    """Train, and return the alerts about data by code."""
    torch.manual_seed(0)
    x, y = data(name)
    if how == "sorted":
        x, y = x[y.argsort(stable=True)], y.sort().values
    ordered = how in ("sorted", "unshuffled")
    loader = DataLoader(TensorDataset(x, y), batch, shuffle=not ordered, drop_last=how == "sorted")
    model = network(x, first=first)
    model(x[:4])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with Monitor(model, optimizer=optimizer, train_loader=loader, sinks=[], on_alert="log") as monitor:
        step = 0
        while step < 160:
            for inputs, target in loader:
                seen = 0.5 * inputs + 1.0 if how == "in turn" and step % 2 else inputs
                if how == "augmented":
                    seen = seen.flip(-1) if step % 3 == 0 else seen + 0.1 * torch.randn_like(seen)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(seen), target).backward()
                optimizer.step()
                monitor.step()
                step += 1
    return {a.code: a for a in monitor.alerts if a.code.startswith("BN6")}


@pytest.mark.parametrize(
    "given",
    [
        {"how": "unshuffled"},
        {"how": "augmented"},
        {"first": True},
        {"batch": 256},
        {"batch": 8},
        {"batch": 8, "first": True},
        {"batch": 8, "lr": 0.5},
        {"lr": 0.5},
        {"batch": 500, "lr": 0.5},
        {"name": "wine", "batch": 16},
        {"name": "wine", "batch": 100},
        {"name": "breast_cancer", "batch": 64, "first": True},
        {"name": "breast_cancer", "batch": 500},
    ],
    ids=str,
)
def test_batches_in_no_order_are_left_in_peace(given: dict[str, Any]) -> None:
    assert {code: alert.message for code, alert in fit(**given).items()} == {}


@pytest.mark.parametrize(
    ("mean", "optimizer"),
    [
        (2.0, {"lr": 0.05, "momentum": 0.9}),
        (5.0, {"lr": 0.05, "momentum": 0.9}),
        (2.0, {"lr": 0.2}),
        (5.0, {"lr": 0.2}),
    ],
)
def test_weights_that_wander_on_an_input_that_is_not_centered_are_no_order(mean: float, optimizer: Any) -> None:
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    kinds = 0.5 * torch.randn(4, 3, 8, 8, generator=generator)
    model = nn.Sequential()
    for channels in (3, 16, 16):
        model.extend([nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()])
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)])
    sgd = torch.optim.SGD(model.parameters(), **optimizer)
    with Monitor(model, optimizer=sgd, sinks=[], on_alert="log") as monitor:
        for _ in range(200):
            target = torch.randint(4, (32,), generator=generator)
            inputs = mean + kinds[target] + torch.randn(32, 3, 8, 8, generator=generator)
            sgd.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            sgd.step()
            monitor.step()
    assert [alert.message for alert in monitor.alerts if alert.code == "BN601"] == []


@pytest.mark.parametrize(
    "given",
    [
        {"name": "wine", "batch": 16},
        {"name": "wine", "batch": 16, "first": True},
        {"name": "breast_cancer", "batch": 32},
    ],
    ids=str,
)
def test_data_sorted_by_class_is_found(given: dict[str, Any]) -> None:
    assert list(fit(how="sorted", **given)) == ["BN601"]


def test_data_that_come_to_be_sorted_are_dated_to_the_step_when_they_did() -> None:
    torch.manual_seed(0)
    x, y = data("breast_cancer")
    model = network(x)
    model(x[:4])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with Monitor(model, optimizer=optimizer, sinks=[], on_alert="log") as monitor:
        for step in range(200):
            drawn = torch.randint(len(x), (32,))
            if step >= 110:
                mine = (y == step // 2 % 2).nonzero().flatten()
                drawn = mine[torch.randint(len(mine), (32,))]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[drawn]), y[drawn]).backward()
            optimizer.step()
            monitor.step()
    [alert] = [alert for alert in monitor.alerts if alert.code == "BN601"]
    assert abs(alert.first_step - 110) <= 5


@pytest.mark.parametrize("given", [{}, {"first": True}, {"name": "wine", "batch": 32}], ids=str)
def test_domains_in_turn_are_found_and_not_called_correlated(given: dict[str, Any]) -> None:
    assert list(fit(how="in turn", **given)) == ["BN602"]


@pytest.mark.parametrize("seed", range(2))
def test_features_that_few_samples_have_say_nothing_of_the_order(seed: int) -> None:
    """As categories in one-hot coding: batches that have none of a rare one differ a lot from others by chance."""
    torch.manual_seed(seed)
    often = torch.logspace(-2.7, -0.3, 300)
    model = nn.Sequential(nn.BatchNorm1d(300), nn.Linear(300, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with Monitor(model, optimizer=optimizer, sinks=[], on_alert="log", sample_every_n_steps=40) as monitor:
        for _ in range(160):
            x = (torch.rand(48, 300) < often).float()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), x[:, -1].long()).backward()
            optimizer.step()
            monitor.step()
    assert not [a for a in monitor.alerts if a.code.startswith("BN6")]


@pytest.mark.parametrize(("alike", "fires"), [(None, True), (0.0, True), (0.9, False)])
def test_two_views_of_each_sample_in_a_batch_count_as_expected(alike: float | None, fires: bool) -> None:
    window = drawn_window(spread=3.5)
    assert window.sample is not None
    paired = None if alike is None else torch.full((1,), alike, dtype=torch.float64)
    found = CorrelatedBatches().check(replace(window, sample=replace(window.sample, paired=paired)))
    assert bool(found) == fires
