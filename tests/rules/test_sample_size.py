"""The rules of sample size and of half precision: their limits, what looks alike, and faults planted in trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Alert, Finding, Monitor, Severity
from bnmonitor.rules import find
from bnmonitor.testing import make_sample, make_window
from bnmonitor.window import Loader, Window

torch.set_num_threads(1)
INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR


def found(code: str, window: Window) -> list[Finding]:
    return find(code).check(window)


def severity(code: str, window: Window) -> Severity | None:
    findings = found(code, window)
    assert len(findings) <= 1
    return findings[0].severity if findings else None


# -- limits and look-alikes --------------------------------------------------------------------------------------------


def at60(value: float, calm: float = 0.0) -> Tensor:
    course = torch.full((64, 3), calm)
    course[60] = value
    return course


SKIPPED = {"skipped_steps": tuple(step == 60 for step in range(64)), "scales": (512.0,) * 64}


@pytest.mark.parametrize(
    ("statistics", "says"),
    [
        ({"shift": at60(4.9)}, None),
        ({"shift": at60(5.1)}, WARNING),
        ({"shift": at60(-5.1)}, WARNING),
        ({"ratio": at60(2.9, 1.0)}, None),
        ({"ratio": at60(3.1, 1.0)}, WARNING),
        ({"ratio": at60(0.3, 1.0)}, WARNING),
        ({"running_mean": torch.cat([torch.zeros(60, 3), torch.full((4, 3), torch.inf)])}, ERROR),
        ({"running_mean": torch.full((64, 3), torch.inf)}, None),  # infinite long before: BN101 reports it
    ],
)
def test_bn102_judges_the_batch_of_a_skipped_step(statistics: dict[str, Tensor], says: Severity | None) -> None:
    assert severity("BN102", make_window(facts=SKIPPED, **statistics)) is says
    assert severity("BN102", make_window(**statistics)) is None, "no step was skipped"


@pytest.mark.parametrize(("skipped", "says"), [((60,), WARNING), ((), None), (tuple(range(1, 64, 2)), None)])
def test_bn102_knows_a_skipped_step_without_a_scaler(skipped: tuple[int, ...], says: Severity | None) -> None:
    """Statistics moved and no parameter did; but where every other step does that, gradients are accumulated."""
    moves = torch.tensor([[0.0 if step in skipped else 1e-3] for step in range(64)]).cumsum(0)
    assert severity("BN102", make_window(shift=at60(9.0), gamma=1 + moves.expand(-1, 3))) is says


def test_bn102_is_quiet_before_warm_up_while_the_scaler_searches_its_scale() -> None:
    window = make_window(facts=SKIPPED, shift=at60(9.0))
    young = replace(window.baseline, updates=torch.tensor([5]), forgotten=torch.tensor([0.5]))
    assert severity("BN102", replace(window, baseline=young)) is None


@pytest.mark.parametrize(
    ("dtype", "side", "value", "says"),
    [
        (torch.float16, "max", 6.4e3, None),
        (torch.float16, "max", 6.6e3, WARNING),
        (torch.float16, "min", -6.6e3, WARNING),
        (torch.float16, "max", 3.3e4, ERROR),
        (torch.bfloat16, "max", 1e30, None),
        (torch.float32, "max", 1e30, None),
    ],
)
def test_bn103_knows_where_fp16_ends(dtype: torch.dtype, side: str, value: float, says: Severity | None) -> None:
    window = make_window(channels=(2, 3))
    sample = make_sample(window.layers, step=40, dtype=dtype, input={side: [0.0, 1.0, 0.0, value, 2.0]})
    findings = found("BN103", replace(window, sample=sample))
    assert [(f.severity, f.layer, f.channels, f.first_step) for f in findings] == (
        [(says, 1, (1,), 40)] if says else []
    )


@pytest.mark.parametrize(
    ("dtype", "momentum", "fires"),
    [
        (torch.bfloat16, 0.1, False),
        (torch.bfloat16, 0.05, True),
        (torch.float16, 0.01, False),
        (torch.float16, 0.002, True),
        (torch.float32, 0.001, False),
    ],
)
def test_bn104_judges_momentum_by_the_precision_of_the_buffers(
    dtype: torch.dtype, momentum: float, fires: bool
) -> None:
    window = make_window(momentum=momentum, facts={"buffer_dtypes": (dtype,)})
    assert severity("BN104", window) is (WARNING if fires else None)
    frozen = make_window(momentum=momentum, training=False, updates=0, facts={"buffer_dtypes": (dtype,)})
    assert severity("BN104", frozen) is None


@pytest.mark.parametrize(("mean", "size", "fires"), [(0.2, 1024, True), (0.05, 1024, False), (0.2, 64, False)])
def test_bn104_finds_a_constant_buffer_far_from_its_batch(mean: float, size: int, fires: bool) -> None:
    window = make_window(facts={"buffer_dtypes": (torch.bfloat16,)})
    sample = make_sample(window.layers, size=size, input={"mean": mean})
    assert severity("BN104", replace(window, sample=sample)) is (WARNING if fires else None)
    moving = window.running_mean + torch.linspace(0, 1e-3, 64)[:, None]
    assert severity("BN104", replace(window, sample=sample, running_mean=moving)) is None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1024.0, 1024.0, 16.0], None),
        ([1024.0, 1024.0, 15.0], WARNING),
        ([1024.0, 1024.0, 4.0], WARNING),
        ([1024.0, 1024.0, 3.0], ERROR),
        ([1024.0, 15.0, 15.0], WARNING),  # most of the model may be behind the pooling
        ([15.0, 15.0, 15.0], None),  # the whole model: BN201 reports it
        ([40.0, 40.0, 15.0], None),
        ([torch.nan, torch.nan, torch.nan], None),
    ],
)
def test_bn202_compares_a_layer_with_the_trunk(values: list[float], says: Severity | None) -> None:
    window = make_window(channels=(2, 2, 2), sizes=16, values=torch.tensor(values))
    assert severity("BN202", window) is says
    if says:
        assert found("BN202", window)[0].layers == tuple(i for i, v in enumerate(values) if v < 16)


def test_bn202_counts_the_values_of_all_processes_where_they_are_synchronized() -> None:
    window = make_window(channels=(2, 2, 2), values=torch.tensor([1e3, 1e3, 8.0]), facts={"world_size": 4})
    assert severity("BN202", window) is WARNING
    layers = replace(window.layers, synced=(0, 1, 2))
    assert severity("BN202", replace(window, layers=layers)) is None


@pytest.mark.parametrize(
    ("samples", "size", "drop", "complete", "says"),
    [
        (641, 64, False, True, ERROR),
        (641, 64, True, True, None),
        (641, 64, False, False, None),
        (647, 64, False, True, WARNING),
        (648, 64, False, True, INFO),
        (655, 64, False, True, INFO),
        (656, 64, False, True, None),  # 16 samples are no small batch
        (648, 64, True, True, None),
        (648, 64, False, False, None),
        (648, 32, False, True, INFO),
        (649, 32, False, True, None),  # more than a quarter
        (642, 8, False, True, INFO),
        (640, 64, False, True, None),
        (64, 64, False, True, None),
        (None, 64, False, True, None),
        (641, None, False, True, None),
    ],
)
def test_bn203_divides_the_samples_by_the_batch_size(
    samples: int | None, size: int | None, drop: bool, complete: bool, says: Severity | None
) -> None:
    loader = Loader(batch_size=size, samples=samples, drop_last=drop, complete=complete)
    assert severity("BN203", make_window(facts={"train_loader": loader})) is says
    frozen = make_window(facts={"train_loader": loader}, training=False, updates=0)
    assert severity("BN203", frozen) is None


@pytest.mark.parametrize(
    ("samples", "ranks", "says"),
    [(641, 1, ERROR), (641, 2, WARNING), (648, 1, INFO), (649, 1, INFO), (648, 2, None), (644, 3, WARNING)],
)
def test_bn203_counts_the_samples_of_all_processes_where_they_are_synchronized(
    samples: int, ranks: int, says: Severity
) -> None:
    loader = Loader(batch_size=64, samples=samples)
    window = make_window(channels=(2, 2), facts={"world_size": ranks, "train_loader": loader})
    both = replace(window, layers=replace(window.layers, synced=(0, 1)))
    assert severity("BN203", both) is says
    # A layer that is not synchronized normalizes the samples of its own process.
    one = replace(window, layers=replace(window.layers, synced=(1,)))
    assert severity("BN203", one) is severity("BN203", window)
    assert severity("BN203", window) is (ERROR if samples == 641 else WARNING if samples == 644 else INFO)


@pytest.mark.parametrize(("size", "shift", "says"), [(15, 1.0, WARNING), (17, 1.0, None), (15, 0.2, None)])
def test_bn203_finds_a_small_batch_far_from_the_running_statistics(
    size: int, shift: float, says: Severity | None
) -> None:
    window = make_window(shift=at60(shift, 0.1), sizes=64, facts={"train_loader": Loader(batch_size=64)})
    sample = make_sample(window.layers, step=60, size=size)
    assert severity("BN203", replace(window, sample=sample)) is says
    assert severity("BN203", replace(window, sample=sample, earlier=(replace(sample, step=50),))) is None, "no last one"


@pytest.mark.parametrize(
    ("size", "parts", "says"),
    [(8, 4, WARNING), (31, 2, WARNING), (32, 4, None), (8, 1, None), (8, 3, None), (float("nan"), 4, None)],
)
def test_bn204_reports_where_only_the_accumulated_batch_is_large_enough(
    size: float, parts: int, says: Severity | None
) -> None:
    assert severity("BN204", make_window(sizes=size, facts={"accumulate": parts})) is says


def test_bn204_takes_the_batch_size_of_the_loader_where_no_sample_has_it() -> None:
    facts = {"accumulate": 4, "train_loader": Loader(batch_size=16)}
    assert severity("BN204", make_window(sizes=float("nan"), facts=facts)) is WARNING


@pytest.mark.parametrize(
    ("size", "ranks", "says"), [(16, 8, None), (15, 8, WARNING), (5, 8, WARNING), (4, 2, ERROR), (4, 1, None)]
)
def test_bn205_judges_what_one_process_normalizes(size: float, ranks: int, says: Severity | None) -> None:
    window = make_window(sizes=size, facts={"world_size": ranks})
    assert severity("BN205", window) is says
    layers = replace(window.layers, synced=(0,))
    assert severity("BN205", replace(window, layers=layers)) is None


@pytest.mark.parametrize(
    ("layers", "values", "says"),
    [
        (20, 64.0, WARNING),
        (20, 16.0, ERROR),
        (10, 100.0, None),
        (10, 90.0, WARNING),
        (4, 8.0, None),
        (5, 8.0, ERROR),
        (6, 32.0, None),  # MobileNets on small images
        (7, 20.0, None),
        (8, 32.0, WARNING),
    ],
)
def test_bn206_multiplies_over_the_chain(layers: int, values: float, says: Severity | None) -> None:
    window = make_window(channels=(1,) * layers, sizes=values, chain=True)
    assert severity("BN206", window) is says
    if says:
        [finding] = found("BN206", window)
        assert finding.value == pytest.approx(((values - 1) / values) ** (layers / 2), rel=1e-5)
        assert finding.layers == tuple(range(layers))
    frozen = make_window(channels=(1,) * layers, sizes=values, training=False, updates=0, chain=True)
    assert severity("BN206", frozen) is None


def test_bn206_starts_a_new_chain_after_a_skip_connection() -> None:
    window = make_window(channels=(1,) * 20, sizes=32, chain=True)
    structure = window.facts.structure
    assert structure is not None
    places = tuple(replace(p, follows=None) if i % 4 == 0 else p for i, p in enumerate(structure.places))
    facts = replace(window.facts, structure=replace(structure, places=places))
    assert severity("BN206", window) is ERROR
    assert severity("BN206", replace(window, facts=facts)) is None


@pytest.mark.parametrize(
    ("statistics", "says"),
    [
        ({"batch_var": 900.0}, None),
        ({"batch_var": 1100.0}, INFO),
        ({"batch_mean": 4.9}, None),
        ({"batch_mean": -5.1}, INFO),
    ],
)
def test_bn108_judges_the_first_layer_before_and_after_it_is_warm(
    statistics: dict[str, float], says: Severity | None
) -> None:
    window = make_window(channels=(2, 2), chain=True, **statistics)  # type: ignore[arg-type]
    young = replace(window.baseline, log_var=torch.full((4,), torch.nan), offset=torch.full((2,), torch.nan))
    findings = found("BN108", replace(window, baseline=young))
    assert [(f.severity, f.layer) for f in findings] == ([(says, 0)] if says else [])
    assert found("BN108", window) == [], "it was not so when the baseline was taken: it has grown since"


def test_bn108_warns_in_fp16_and_of_frozen_statistics_of_other_data() -> None:
    raw = {"batch_var": 5e3, "running_var": 5e3}
    window = make_window(chain=True, **raw)
    window = replace(window, baseline=replace(window.baseline, log_var=torch.full((3,), 8.5)))
    assert severity("BN108", window) is INFO
    assert severity("BN108", replace(window, sample=make_sample(window.layers, dtype=torch.float16))) is WARNING
    unread = torch.full((64, 3), torch.nan)
    frozen = make_window(training=False, updates=0, batch_mean=unread, batch_var=unread, running_var=5e3, chain=True)
    frozen = replace(frozen, baseline=replace(frozen.baseline, log_var=torch.full((3,), torch.nan)))
    same, other = ({"var": value} for value in (5e3, 5e4))
    assert severity("BN108", replace(frozen, sample=make_sample(frozen.layers, input=same))) is INFO
    assert severity("BN108", replace(frozen, sample=make_sample(frozen.layers, input=other))) is WARNING


def test_bn108_judges_the_data_itself_and_not_what_weights_have_made_of_it() -> None:
    exploded = make_window(chain=True, batch_var=1e5, running_var=1e5, level=1e5)
    assert severity("BN108", exploded) is INFO, "nothing else is known"
    sample = make_sample(exploded.layers)
    for power, offset, says in ((1.0, 0.5, None), (2e4, 2.0, INFO), (1.0, 6.0, INFO)):
        window = replace(exploded, sample=replace(sample, data=torch.tensor([[power], [offset]])))
        assert severity("BN108", window) is says


def noisy(
    factor: float,
    *,
    at: slice = slice(40, 41),
    layers: int = 3,
    loader: Loader | None = None,
    shift: float = 0.0,
    channels: tuple[int, ...] = (16, 16, 16),
) -> Window:
    """Batches of 64 samples; in some steps the means and log variances of some layers are noisier, or off."""
    generator = torch.Generator().manual_seed(0)
    mean, log_var = (torch.randn(64, 48, generator=generator) / 8 for _ in range(2))
    for rows in (mean, log_var):
        rows[at, : 16 * layers] *= factor
        rows[at, : 16 * layers] += shift
    unknown = {"sizes": float("nan"), "facts": {"train_loader": loader}}
    return make_window(channels=channels, batch_mean=mean, batch_var=log_var.exp(), **unknown)  # type: ignore[arg-type]


def test_bn203_finds_a_small_batch_by_the_noise_of_all_layers_in_one_step() -> None:
    [finding] = found("BN203", noisy(4.0))
    assert (finding.severity, finding.first_step, finding.layers) == (WARNING, 40, (0, 1, 2))
    assert 8 < finding.value < 32


@pytest.mark.parametrize(
    "window",
    [
        noisy(1.0),
        noisy(2.0),
        noisy(4.0, layers=1),
        noisy(4.0, at=slice(40, 64)),
        noisy(4.0, at=slice(0, 2)),
        noisy(1.0, at=slice(40, 64), shift=-3.0),
        noisy(4.0, channels=(16, 32)),
        noisy(4.0, loader=Loader(batch_size=64, samples=640)),
    ],
    ids=[
        "calm",
        "a quarter",
        "odd data at the first",
        "from then on",
        "until then",
        "another level",
        "two layers",
        "the loader knows better",
    ],
)
def test_bn203_leaves_other_noise_in_peace(window: Window) -> None:
    assert found("BN203", window) == []


@pytest.mark.parametrize(("step", "certain"), [(40, True), (55, True), (56, False), (62, False)])
def test_bn203_is_certain_of_a_small_batch_once_the_steps_after_it_are_known(step: int, certain: bool) -> None:
    window = noisy(4.0, at=slice(step, step + 1))
    [finding] = found("BN203", window)
    assert (finding.first_step, finding.certain) == (step, certain)
    [at_end] = found("BN203", replace(window, facts=replace(window.facts, ending=True)))
    assert at_end.certain, "no step comes after it"


@pytest.mark.parametrize(("step", "certain"), [(40, True), (56, True), (57, False), (63, False)])
def test_bn203_is_certain_of_a_small_sample_once_the_steps_after_it_are_known(step: int, certain: bool) -> None:
    shift = torch.full((64, 3), 0.1)
    shift[step] = 1.0
    window = make_window(shift=shift, sizes=64, facts={"train_loader": Loader(batch_size=64)})
    window = replace(window, sample=make_sample(window.layers, step=step, size=8))
    [finding] = found("BN203", window)
    assert (finding.first_step, finding.certain) == (step, certain)
    [at_end] = found("BN203", replace(window, facts=replace(window.facts, ending=True)))
    assert at_end.certain, "no step comes after it"
    shift[step + 1 :] = 0.8
    assert bool(found("BN203", replace(window, shift=shift))) == (step == 63), "the batches after it are as small"
    shift[:] = 0.1
    shift[step - 8 : step + 1] = 1.0
    assert found("BN203", replace(window, shift=shift)) == [], "the batches before it were as small"


def test_bn203_judges_a_small_sample_that_is_not_the_newest() -> None:
    window = make_window(shift=at60(1.0, 0.1).roll(-20, 0), sizes=64, facts={"train_loader": Loader(batch_size=64)})
    small, full = (make_sample(window.layers, step=step, size=size) for step, size in ((40, 8), (45, 64)))
    assert [finding.first_step for finding in found("BN203", replace(window, earlier=(small,), sample=full))] == [40]
    lasting = replace(window, earlier=(small,), sample=replace(full, size=small.size))
    assert found("BN203", lasting) == []


@pytest.mark.parametrize("far", [True, False])
def test_bn203_is_certain_of_a_small_sample_whatever_a_newer_one_is(far: bool) -> None:
    shift = torch.full((64, 3), 0.1)
    shift[40] = 1.0
    shift[60] = 1.0 if far else 0.1
    window = make_window(shift=shift, sizes=64)
    small, full, newest = (
        make_sample(window.layers, step=step, size=size) for step, size in ((40, 8), (50, 64), (60, 8))
    )
    [finding] = found("BN203", replace(window, earlier=(small, full), sample=newest))
    assert (finding.first_step, finding.certain) == (40, True)


@pytest.mark.parametrize(("samples", "says"), [(64, None), (24, None), (8, WARNING), (3, ERROR)])
def test_bn201_judges_the_noise_where_nothing_tells_the_size(samples: int, says: Severity | None) -> None:
    means = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)) / samples**0.5
    unknown = make_window(channels=(16, 16, 16), batch_mean=means, sizes=float("nan"))
    assert severity("BN201", unknown) is says
    loader = Loader(batch_size=4, samples=400)
    assert severity("BN201", replace(unknown, facts=replace(unknown.facts, train_loader=loader))) is ERROR


# -- faults planted in trainings ---------------------------------------------------------------------------------------


def a_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
    )


def three_layers() -> nn.Sequential:
    torch.manual_seed(0)
    units = [[nn.Conv2d(6 if i else 1, 6, 3), nn.BatchNorm2d(6), nn.ReLU()] for i in range(3)]
    return nn.Sequential(*(layer for unit in units for layer in unit))


def small_in(steps: range, size: int) -> Callable[[int, Tensor], Tensor]:
    """Batches of so many samples in some steps."""
    return lambda step, x: x[:size] if step in steps else x


def train(
    model: nn.Module,
    steps: int = 60,
    *,
    size: int = 64,
    before: Callable[[int, Tensor], Tensor] = lambda step, x: x,
    autocast: bool = False,
    scaler: Any = None,
    **arguments: Any,
) -> tuple[Monitor, list[Alert]]:
    """Train on noise, and return the monitor with its warnings and errors."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    arguments = {"select": ("all",), "on_alert": "log", "sinks": [], **arguments}
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    with Monitor(model, optimizer=optimizer, scaler=scaler, **arguments) as monitor:
        for step in range(steps):
            x = before(step, torch.randn(size, 1, 10, 10, generator=generator).to(dtype))
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16, enabled=autocast):
                loss = model(x).float().square().mean()
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            monitor.step()
    return monitor, [alert for alert in monitor.alerts if alert.severity > INFO]


@pytest.mark.parametrize("scaler", [False, True])
def test_healthy_training_gets_no_alert(scaler: bool) -> None:
    loader = DataLoader(TensorDataset(torch.randn(128, 1, 10, 10)), 64)
    monitor, alerts = train(
        a_model(), 90, train_loader=loader, scaler=torch.amp.GradScaler("cpu", init_scale=64.0) if scaler else None
    )
    assert alerts == []
    assert "ragged-last-batch" not in monitor.skipped
    assert "skipped-step-poisoning" not in monitor.skipped


@pytest.mark.parametrize(("factor", "level"), [(1e3, WARNING), (torch.inf, ERROR)])
def test_bn102_finds_the_batch_behind_a_skipped_step(factor: float, level: Severity) -> None:
    scaler, model, now = torch.amp.GradScaler("cpu", init_scale=64.0), a_model(), [0]

    def scaled(step: int, x: Tensor) -> Tensor:
        now[0] = step
        return x * factor if step == 50 else x

    model[0].weight.register_hook(lambda gradient: gradient * torch.inf if now[0] == 50 else gradient)
    _, alerts = train(model, scaler=scaler, before=scaled)
    assert scaler.get_scale() == 32.0, "the injection took place"
    alert = next(alert for alert in alerts if alert.code == "BN102")
    assert (alert.severity, alert.layer, alert.first_step) == (level, "1", 50)


def test_bn103_finds_the_layer_with_an_input_near_the_limit() -> None:
    model = a_model()
    with torch.no_grad():
        model[3].weight.mul_(1e4)
    _, alerts = train(model, 5, autocast=True)
    assert ("BN103", "4") in [(a.code, a.layer) for a in alerts]


def test_bn104_finds_buffers_in_bf16() -> None:
    model = a_model()
    for index in (1, 4):
        model[index].momentum = 0.01
    _, alerts = train(model.bfloat16(), 20)
    assert [(a.code, a.layer, a.layers) for a in alerts] == [("BN104", "1", ("1", "4"))]


def test_bn201_leaves_a_small_batch_of_large_images_with_a_head_on_pooled_features_to_bn202() -> None:
    window = make_window(channels=(2, 2), sizes=8, values=torch.tensor([12800.0, 8.0]))
    assert (severity("BN201", window), severity("BN202", window)) == (Severity.INFO, WARNING)


def test_bn202_finds_the_layer_after_the_pooling() -> None:
    model = a_model()
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Conv2d(6, 4, 1)).append(nn.BatchNorm2d(4))
    monitor, alerts = train(model, 20, size=12, ignore=("small-batch",))
    assert monitor.layers.names[-1] == "8"
    assert [(a.code, a.layer, a.value) for a in alerts if a.code == "BN202"] == [("BN202", "8", 12.0)]


def test_bn203_finds_a_remainder_of_one_before_the_epoch_ends() -> None:
    loader = DataLoader(TensorDataset(torch.randn(641, 1, 10, 10)), 64)
    _, alerts = train(a_model(), 3, train_loader=loader)
    assert [(a.code, a.severity) for a in alerts] == [("BN203", ERROR)]


@pytest.mark.parametrize("sampled", [0, 100])
def test_bn203_takes_no_lasting_fall_of_the_batch_size_for_one_incomplete_batch(sampled: int) -> None:
    monitor, _ = train(three_layers(), 130, before=small_in(range(98, 130), 4), sample_every_n_steps=sampled)
    assert "BN203" not in {alert.code for alert in monitor.alerts}
    assert monitor.summary().step == 129


@pytest.mark.parametrize(("steps", "told"), [(130, 109), (105, 104), (100, 99)], ids=["on", "soon", "at once"])
def test_bn203_tells_of_one_incomplete_batch_a_check_later_or_as_the_training_ends(steps: int, told: int) -> None:
    opened = []
    train(
        three_layers(),
        steps,
        before=small_in(range(98, 99), 2),
        sample_every_n_steps=0,
        on_alert=lambda alert: opened.append((alert.code, alert.first_step, alert.last_step)),
    )
    assert opened == [("BN203", 98, told)]


@pytest.mark.parametrize(("epoch", "sampled"), [(4, 1), (8, 1), (3, 2)])
def test_bn203_tells_of_short_epochs_in_which_the_newest_small_batch_is_never_certain(epoch: int, sampled: int) -> None:
    opened = []
    train(
        three_layers(),
        70,
        before=lambda step, x: (x + torch.randn(len(x), 1, 1, 1))[: 2 if step % epoch == epoch - 1 else 64],
        sample_every_n_steps=sampled,
        on_alert=lambda alert: opened.append((alert.code, alert.last_step)),
    )
    assert "BN203" in {code for code, at in opened if at < 69}


def test_bn204_finds_micro_batches() -> None:
    _, alerts = train(a_model(), 3, size=16, accumulate_grad_batches=4)
    assert [(a.code, a.value) for a in alerts] == [("BN204", 16.0)]


def test_bn206_finds_a_deep_perceptron() -> None:
    parts: list[nn.Module] = [nn.Flatten()]
    for width in [100] + [16] * 9:
        parts += [nn.Linear(width, 16), nn.BatchNorm1d(16), nn.ReLU()]
    _, alerts = train(nn.Sequential(*parts), 5, size=16)
    assert [(a.code, a.severity, a.layer) for a in alerts if a.code == "BN206"] == [("BN206", ERROR, "2")]


def test_bn108_finds_raw_pixels_once() -> None:
    monitor, alerts = train(a_model(), 20, before=lambda step, x: (x * 64 + 128).clamp(0, 255))
    assert alerts == []
    assert [(a.code, a.layer) for a in monitor.alerts if a.code == "BN108"] == [("BN108", "1")]


def test_bn201_begins_with_the_first_sample_that_is_small() -> None:
    window = make_window(sizes=4, values=4)
    samples = [make_sample(window.layers, step=step, size=size) for step, size in ((10, 32), (30, 4), (50, 4))]
    [finding] = found("BN201", replace(window, sample=samples[-1], earlier=tuple(samples[:-1])))
    [always] = found("BN201", replace(window, sample=samples[-1], earlier=(samples[1],)))
    assert (finding.first_step, always.first_step) == (30, 0)


def test_bn108_begins_with_the_first_sample_of_raw_data() -> None:
    window = make_window(chain=True)
    samples = [
        replace(make_sample(window.layers, step=step), data=torch.tensor([[power], [0.0]]))
        for step, power in ((10, 1.0), (30, 1e5), (50, 1e5))
    ]
    [finding] = found("BN108", replace(window, sample=samples[-1], earlier=tuple(samples[:-1])))
    [always] = found("BN108", replace(window, sample=samples[-1], earlier=(samples[1],)))
    assert (finding.first_step, always.first_step) == (30, 0)
