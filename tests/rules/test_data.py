"""The rules for the data and for the architecture, in real trainings: faults, and what looks like one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bnmonitor import Alert, Monitor, Severity
from bnmonitor.rules.data.validation_shift import ValidationShift
from bnmonitor.testing import held_out_window, make_structure, make_window
from bnmonitor.window import HeldOut, Window
from tests.models import ResidualBlock

Batch = tuple[Tensor, Tensor]


def images(count: int, generator: torch.Generator, classes: Tensor | None = None) -> Batch:
    """Images of four classes that differ in color and in texture."""
    y = torch.randint(4, (count,), generator=generator) if classes is None else classes
    color = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])[y][:, :, None, None]
    x = torch.randn(count, 3, 8, 8, generator=generator) + 0.3 * torch.randn(count, 3, 1, 1, generator=generator)
    return x + color, y


def net(*extra: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        ResidualBlock(8, 0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        *extra,
        nn.Linear(8, 4),
    )


def fit(
    model: nn.Module,
    draw: Callable[[int, torch.Generator], Batch],
    *,
    steps: int = 140,
    lr: float = 0.05,
    validate: Callable[[torch.Generator], Tensor] | None = None,
    seed: int = 1,
    **settings: Any,
) -> tuple[Alert, ...]:
    """Train, validate every 50 steps, and return the alerts."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with Monitor(model, optimizer=optimizer, sinks=[], on_alert="log", **settings) as monitor:
        for step in range(steps):
            x, y = draw(step, generator)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            monitor.step()
            if validate is not None and step % 50 == 49:
                model.eval()
                with monitor.evaluation(), torch.no_grad():
                    for _ in range(8):
                        model(validate(generator))
                model.train()
        return monitor.alerts


def of(alerts: tuple[Alert, ...], *codes: str) -> list[tuple[str, str | None, Severity]]:
    return [(a.code, a.layer, a.severity) for a in alerts if a.code in codes or a.code[:3] in codes]


def independent(step: int, generator: torch.Generator) -> Batch:
    return images(32, generator)


def one_class_for_four_batches(step: int, generator: torch.Generator) -> Batch:
    return images(32, generator, torch.full((32,), step // 4 % 4))


def two_classes_a_batch(step: int, generator: torch.Generator) -> Batch:
    pair = torch.randperm(4, generator=generator)[:2]
    return images(32, generator, pair[torch.randint(2, (32,), generator=generator)])


def copies(step: int, generator: torch.Generator) -> Batch:
    x, y = images(4, generator)
    return x.repeat_interleave(8, 0), y.repeat_interleave(8)


def domains(step: int, generator: torch.Generator) -> Batch:
    x, y = images(32, generator)
    return (x + 1.5 if step % 2 else x), y


def ragged(step: int, generator: torch.Generator) -> Batch:
    return images(2 if step % 10 == 9 else 32, generator)


@pytest.mark.parametrize("draw", [one_class_for_four_batches, two_classes_a_batch, copies])
@pytest.mark.parametrize("seed", [1, 2])
def test_batches_of_samples_that_belong_together_are_found_at_the_layer_that_sees_them(
    draw: Callable[[int, torch.Generator], Batch], seed: int
) -> None:
    found = of(fit(net(), draw, seed=seed), "BN601", "BN602")
    assert [(code, layer) for code, layer, _ in found] == [("BN601", "1")]
    assert found[0][2] >= Severity.WARNING


@pytest.mark.parametrize("seed", [1, 2])
def test_alternating_domains_are_found(seed: int) -> None:
    assert of(fit(net(), domains, seed=seed), "BN601", "BN602") == [("BN602", "1", Severity.WARNING)]


@pytest.mark.parametrize("lr", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("draw", [independent, ragged])
def test_independent_samples_raise_no_alert_at_any_learning_rate(
    draw: Callable[[int, torch.Generator], Batch], lr: float
) -> None:
    assert of(fit(net(), draw, lr=lr), "BN6") == []


def test_drift_of_the_data_is_not_a_correlation() -> None:
    def drifting(step: int, generator: torch.Generator) -> Batch:
        x, y = images(32, generator)
        return x + 0.01 * step, y

    assert of(fit(net(), drifting), "BN601", "BN602") == []


def test_validation_data_of_another_scale_is_found_but_not_of_the_same_scale() -> None:
    def same(generator: torch.Generator) -> Tensor:
        return images(64, generator)[0]

    def scaled(generator: torch.Generator) -> Tensor:
        return images(64, generator)[0] * 4

    def brighter(generator: torch.Generator) -> Tensor:
        return images(64, generator)[0] + 2

    assert of(fit(net(), independent, validate=same), "BN603") == []
    for other in (scaled, brighter):
        assert of(fit(net(), independent, validate=other), "BN603") == [("BN603", "1", Severity.WARNING)]


def test_validation_in_order_of_the_classes_is_not_a_shift() -> None:
    calls = iter(range(10**6))

    def ordered(generator: torch.Generator) -> Tensor:
        return images(64, generator, torch.full((64,), next(calls) // 2 % 4))[0]

    assert of(fit(net(), independent, validate=ordered), "BN603") == []


def sequences(padded: float) -> Callable[[int, torch.Generator], Batch]:
    def draw(step: int, generator: torch.Generator) -> Batch:
        x = torch.randn(16, 3, 20, generator=generator) + 1
        for row, length in enumerate((20 * (1 - 2 * padded * torch.rand(16, generator=generator))).round().int()):
            x[row, :, int(length) :] = 0
        return x, torch.randint(4, (16,), generator=generator)

    return draw


@pytest.mark.parametrize(
    ("padded", "severity"), [(0.0, None), (0.03, None), (0.25, Severity.WARNING), (0.45, Severity.ERROR)]
)
def test_padding_is_found_by_its_share(padded: float, severity: Severity | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 6, 1, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(120, 4))
    found = of(fit(model, sequences(padded), steps=20), "BN604")
    assert found == ([] if severity is None else [("BN604", "1", severity)])


class Graphs(nn.Module):
    """Normalizes nodes of graphs: all places for one, or those that a node fills."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.lift, self.norm, self.head = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        mask = x.square().sum(-1) > 0
        nodes = self.lift(x) * mask[..., None]
        if self.masked:
            out = torch.zeros_like(nodes)
            out[mask] = self.norm(nodes[mask])
        else:
            out = self.norm(nodes.flatten(0, 1)).view_as(nodes)
        pooled: Tensor = self.head((out.relu() * mask[..., None]).sum(1) / 20)
        return pooled


@pytest.mark.parametrize(
    ("padded", "masked", "severity"),
    [(0.0, False, None), (0.25, True, None), (0.25, False, Severity.WARNING), (0.45, False, Severity.ERROR)],
)
def test_padding_is_found_among_the_nodes_of_graphs(padded: float, masked: bool, severity: Severity | None) -> None:
    def graphs(step: int, generator: torch.Generator) -> Batch:
        x, y = sequences(padded)(step, generator)
        return x.transpose(1, 2), y

    torch.manual_seed(0)
    found = of(fit(Graphs(masked=masked), graphs, steps=20), "BN604")
    assert found == ([] if severity is None else [("BN604", "norm", severity)])


# -- architecture ------------------------------------------------------------------------------------------------------


def reported(*modules: nn.Module, steps: int = 12) -> list[tuple[str, str | None, Severity]]:
    torch.manual_seed(0)
    model = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4))
    model(torch.randn(2, 3, 8, 8))
    return of(fit(model, independent, steps=steps), "BN8")


def conv(given: int = 4, bias: bool = False) -> nn.Module:
    return nn.Conv2d(given, 4, 3, padding=1, bias=bias)


def test_a_healthy_network_gets_no_alert_about_its_architecture() -> None:
    assert reported(conv(3), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.BatchNorm2d(4), nn.ReLU()) == []
    assert of(fit(net(), independent, steps=12), "BN8") == []


def test_normalization_after_nonlinearities_is_one_info() -> None:
    assert reported(conv(3), nn.ReLU(), nn.BatchNorm2d(4), conv(), nn.SiLU(), nn.BatchNorm2d(4)) == [
        ("BN801", "2", Severity.INFO)
    ]


def test_dropout_before_a_layer_is_reported_and_after_it_is_not() -> None:
    front = (conv(3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), conv(), nn.BatchNorm2d(4))
    assert reported(*front) == [("BN802", "5", Severity.INFO)]
    behind = (conv(3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.ReLU(), conv(), nn.BatchNorm2d(4))
    assert reported(*behind) == []


def test_dropout_that_a_validation_measures_is_a_warning() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.7), nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip

    def draw(step: int, generator: torch.Generator) -> Batch:
        return torch.randn(64, 8, generator=generator), torch.randint(4, (64,), generator=generator)

    found = of(fit(model, draw, validate=lambda g: draw(0, g)[0]), "BN8")
    assert [(code, layer) for code, layer, _ in found] == [("BN802", "5")]
    assert found[0][2] >= Severity.WARNING


def test_biases_before_a_normalization_are_one_info() -> None:
    layers = (conv(3, bias=True), nn.BatchNorm2d(4), nn.ReLU(), conv(bias=True), nn.BatchNorm2d(4))
    assert reported(*layers) == [("BN803", "1", Severity.INFO)]


def test_a_frozen_bias_and_one_before_a_frozen_layer_are_not_reported() -> None:
    frozen = conv(3, bias=True)
    assert frozen.bias is not None
    frozen.bias.requires_grad_(False)
    assert reported(frozen, nn.BatchNorm2d(4), nn.ReLU()) == []


def test_a_forgotten_normalization_is_named_by_its_convolution() -> None:
    def block() -> list[nn.Module]:
        return [conv(), nn.BatchNorm2d(4), nn.ReLU()]

    found = reported(conv(3), nn.BatchNorm2d(4), nn.ReLU(), *block(), conv(), nn.ReLU(), *block())
    assert found == [("BN806", "6", Severity.INFO)]


def test_positions_normalized_as_channels_are_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(7), nn.ReLU(), nn.Flatten(), nn.Linear(42, 4))

    def draw(step: int, generator: torch.Generator) -> Batch:
        return torch.randn(32, 7, 5, generator=generator), torch.randint(4, (32,), generator=generator)

    assert of(fit(model, draw, steps=12), "BN804", "BN803") == [("BN804", "1", Severity.WARNING)]


@pytest.mark.parametrize("create_graph", [True, False])
def test_a_gradient_penalty_is_found(create_graph: bool) -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(conv(3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(256, 1))
    with Monitor(critic, sinks=[], on_alert="log") as monitor:
        for _ in range(12):
            x = torch.randn(32, 3, 8, 8, requires_grad=True)
            out = critic(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=create_graph, retain_graph=True)
            (out.mean() + ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean() * create_graph).backward()
            monitor.step()
    assert of(monitor.alerts, "BN805") == ([("BN805", "1", Severity.WARNING)] if create_graph else [])


def test_a_validation_is_judged_by_its_own_noise_and_by_the_training_batches() -> None:
    def says(window: Window) -> list[Severity]:
        return [finding.severity for finding in ValidationShift().check(window)]

    for mean, severity in ((0.3, Severity.INFO), (0.5, Severity.WARNING)):  # padded crops move the mean by .3
        assert says(held_out_window(mean=mean, evaluations=3)) == [severity]
    window = held_out_window(mean=0.6)
    [seen] = window.facts.held_out
    assert says(window) == [Severity.INFO]
    few = replace(seen, noise_mean=torch.full_like(seen.mean, 0.2))
    assert says(replace(window, facts=replace(window.facts, held_out=(few,)))) == []
    one_odd_batch = replace(seen, middle_mean=torch.zeros_like(seen.mean), middle_var=torch.ones_like(seen.var))
    assert says(replace(window, facts=replace(window.facts, held_out=(one_odd_batch,)))) == []
    by_another_hand = replace(seen, running_mean=seen.mean - 3)
    agrees = replace(
        window, facts=replace(window.facts, held_out=(by_another_hand,)), batch_mean=seen.mean.expand(64, -1)
    )
    assert says(agrees) == []
    frozen_meanwhile = torch.ones(64, len(window.layers), dtype=torch.int64)
    frozen_meanwhile[-15:] = 0
    assert says(replace(window, updates=frozen_meanwhile)) == []
    frozen_meanwhile[-3] = 1
    assert says(replace(window, updates=frozen_meanwhile)) == [Severity.INFO]


def shifted(shift: Tensor, *, error: float = 0.01, evaluations: int = 1) -> Window:
    """A layer that saw the data of validations whose means are so far off, by channel, with a standard error."""
    window = make_window(channels=(len(shift),), facts={"structure": make_structure(root=True)})
    ones = torch.ones(len(shift))
    seen = HeldOut(
        step=window.steps[-1],
        size=torch.tensor([100_000]),
        mean=shift,
        var=ones.clone(),
        running_mean=0 * ones,
        running_var=ones.clone(),
        noise_mean=error * ones,
        noise_log_var=error * ones,
    )
    return replace(window, facts=replace(window.facts, held_out=(seen,) * evaluations))


@pytest.mark.parametrize("evaluations", [1, 3])
@pytest.mark.parametrize(("rms", "error", "told"), [
    (0.15, 0.01, True), (0.12, 0.01, True), (0.10, 0.01, False), (0.05, 0.001, False),
    (0.22, 0.05, True), (0.19, 0.05, False), (0.34, 0.1, False), (0.36, 0.1, True),
])  # fmt: skip
def test_bn603_tells_of_a_shift_that_all_channels_show_together(
    rms: float, error: float, told: bool, evaluations: int
) -> None:
    """Other data moves each channel by its weights; the median channel is at two thirds of it."""
    for seed in range(10):
        weights = torch.randn(24, generator=torch.Generator().manual_seed(seed))
        shift = rms * weights / weights.square().mean().sqrt()
        window = shifted(shift, error=error, evaluations=evaluations)
        found = ValidationShift(shift=torch.inf).check(window)
        assert [f.severity for f in found] == [Severity.INFO] * told, seed
        assert [f.value for f in found] == [pytest.approx(rms, rel=1e-3)] * told
        assert all("slightly" in f.message for f in found)


def test_bn603_needs_more_than_a_few_odd_channels() -> None:
    odd = torch.full((24,), 0.01)
    odd[:4] = 2.0
    assert ValidationShift().check(shifted(odd)) == []
    assert ValidationShift().check(shifted(torch.full((24,), 0.12))) != []


def test_bn603_does_not_take_the_noise_of_a_validation_for_a_shift() -> None:
    """Errors of channels that are the same to nine tenths: those of all together are no smaller than those of one."""
    told = 0
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        common, own = torch.randn(1, generator=generator), torch.randn(24, generator=generator)
        noise = 0.2 * (0.9**0.5 * common + 0.1**0.5 * own)
        told += len(ValidationShift(shift=torch.inf).check(shifted(noise, error=0.2)))
    assert told == 0


def test_bn603_warns_of_what_the_median_channel_shows_whatever_all_show() -> None:
    for shift, severity in ((0.2, Severity.INFO), (0.3, Severity.INFO), (0.5, Severity.WARNING)):
        window = shifted(torch.full((24,), shift), evaluations=3)
        assert [f.severity for f in ValidationShift().check(window)] == [severity]


# -- what the rules take from the noise of every step ------------------------------------------------------------------


def behind_kernels(padded: float, left: bool = False) -> list[tuple[str, str | None, Severity]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 6, 5, padding=2), nn.Conv1d(6, 6, 3, stride=2, padding=1), nn.BatchNorm1d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(300, 4),
    )  # fmt: skip

    def draw(step: int, generator: torch.Generator) -> Batch:
        x = torch.randn(16, 3, 100, generator=generator) + 1
        for row, length in enumerate((100 * (1 - 2 * padded * torch.rand(16, generator=generator))).round().int()):
            x[row, :, int(length) :] = 0
        return (x.flip(-1) if left else x), torch.randint(4, (16,), generator=generator)

    return of(fit(model, draw, steps=20), "BN604")


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_found_behind_wide_kernels_strides_and_biases_at_either_end(left: bool) -> None:
    assert [found[:2] for found in behind_kernels(0.3, left)] == [("BN604", "2")]
    assert behind_kernels(0.0, left) == []


def test_contrast_that_alternates_is_found_on_an_input_that_is_not_centered() -> None:
    def contrast(step: int, generator: torch.Generator) -> Batch:
        x, y = images(32, generator)
        return (0.6 * x if step % 2 else x) + 3, y

    assert of(fit(net(), contrast, steps=260, lr=0.02), "BN601", "BN602") == [("BN602", "1", Severity.WARNING)]


@pytest.mark.parametrize("block", [8, 16])
def test_blocks_of_classes_are_found(block: int) -> None:
    def blocks(step: int, generator: torch.Generator) -> Batch:
        return images(32, generator, torch.full((32,), step // block * 7 % 4))

    assert [code for code, _, _ in of(fit(net(), blocks, steps=240), "BN601", "BN602")] in (["BN601"], ["BN602"])


def test_a_size_that_changes_and_samples_that_are_mixed_are_no_correlation() -> None:
    def sized(step: int, generator: torch.Generator) -> Batch:
        x, y = images(32, generator)
        side = (6, 8, 10, 12)[int(torch.randint(4, (), generator=generator))]
        return F.interpolate(x, size=(side, side), mode="bilinear"), y

    def mixed(step: int, generator: torch.Generator) -> Batch:
        x, y = images(32, generator)
        share = 0.5 + 0.5 * torch.rand((), generator=generator)
        return share * x + (1 - share) * x.flip(0), y

    for draw in (sized, mixed):
        assert of(fit(net(), draw, steps=240), "BN601", "BN602") == []


def test_batches_that_take_turns_are_found_where_rounding_hides_every_other_one() -> None:
    def pixels(step: int, generator: torch.Generator) -> Batch:
        x, y = images(32, generator)
        return (255 * x if step % 2 else x), y

    assert of(fit(net(), pixels, steps=260, lr=0.02), "BN601", "BN602") == [("BN602", "1", Severity.WARNING)]
