"""BN502, BN508, BN509 and BN605 on windows made for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bnmonitor import Severity
from bnmonitor.measures import path_levels, side_updates
from bnmonitor.rules.bookkeeping.mixed_calls import MixedCalls
from bnmonitor.rules.bookkeeping.shared_at_several_places import SharedAtSeveralPlaces
from bnmonitor.rules.bookkeeping.side_forwards import SideForwards
from bnmonitor.rules.data.path_dependent_statistics import PathDependentStatistics
from bnmonitor.testing import in_a_row, make_sample, make_structure, make_window, path_window
from bnmonitor.window import Window


def called_twice(
    shift: float, *, noise: float = 9.0, places: int = 1, root: bool = False, samples: int = 2, optimizers: int = 1
) -> Window:
    """A layer with two calls a step whose means are so far apart."""
    structure = make_structure(calls=2, places=places, root=root)
    window = make_window(channels=[4], updates=2, facts={"structure": structure, "optimizer_count": optimizers})
    distance = torch.tensor([[shift], [noise], [0.0], [0.0]], dtype=torch.float64)
    seen = [replace(make_sample(window.layers, step=i, calls=2), distance=distance) for i in range(samples)]
    return replace(window, earlier=tuple(seen[:-1]), sample=seen[-1])


def test_bn509_speaks_of_several_places_and_bn502_of_one() -> None:
    several, one = called_twice(0.6, places=2), called_twice(0.6)
    assert [f.severity for f in SharedAtSeveralPlaces().check(several)] == [Severity.WARNING]
    assert MixedCalls().check(several) == []
    assert SharedAtSeveralPlaces().check(one) == []
    assert [f.severity for f in MixedCalls().check(one)] == [Severity.WARNING]


@pytest.mark.parametrize(("shift", "severity"), [(0.3, Severity.WARNING), (1.2, Severity.ERROR)])
def test_bn509_is_as_severe_as_the_distance(shift: float, severity: Severity) -> None:
    assert [f.severity for f in SharedAtSeveralPlaces().check(called_twice(shift, places=3))] == [severity]


def test_bn509_needs_two_samples_and_more_than_noise() -> None:
    [first] = SharedAtSeveralPlaces().check(called_twice(0.6, places=2, samples=1))
    assert not first.certain
    assert SharedAtSeveralPlaces().check(called_twice(0.6, noise=1.5, places=2)) == []
    assert SharedAtSeveralPlaces().check(called_twice(0.6, noise=2.2, places=2)) != []


def test_bn509_is_an_info_where_nothing_is_evaluated() -> None:
    found = SharedAtSeveralPlaces().check(called_twice(2.0, places=2, optimizers=2))
    assert [f.severity for f in found] == [Severity.INFO]


@pytest.mark.parametrize(("root", "samples", "certain"), [(True, 1, True), (False, 1, False), (False, 2, True)])
def test_bn502_waits_for_a_second_sample_behind_other_layers(root: bool, samples: int, certain: bool) -> None:
    [finding] = MixedCalls().check(called_twice(0.6, root=root, samples=samples))
    assert finding.certain is certain


@pytest.mark.parametrize(("noise", "samples", "certain"), [(4.0, 1, False), (4.0, 2, True), (7.0, 1, True)])
def test_bn502_waits_for_a_second_sample_near_the_noise(noise: float, samples: int, certain: bool) -> None:
    [finding] = MixedCalls().check(called_twice(0.6, noise=noise, root=True, samples=samples))
    assert finding.certain is certain


@pytest.mark.parametrize(("spread", "found"), [(0.05, 1), (0.5, 0)])
def test_bn502_knows_from_the_steps_how_much_variances_vary(spread: float, found: int) -> None:
    logs = spread * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    window = called_twice(0.0, root=True)
    distance = torch.tensor([[0.0], [0.0], [1.5], [9.0]], dtype=torch.float64)
    assert window.sample is not None
    sample, many = replace(window.sample, distance=distance), make_window(channels=[4], batch_var=logs.exp(), updates=2)
    assert len(MixedCalls().check(replace(many, facts=window.facts, sample=sample))) == found


def beside(calls: int, size: int, shift: float = 0.0, *, samples: int = 2) -> Window:
    """A layer with calls under ``no_grad`` beside the one that trains it."""
    window = make_window(channels=[4], updates=1 + calls)
    far = torch.tensor([[shift], [9.0], [0.0], [0.0]], dtype=torch.float64)
    one = replace(make_sample(window.layers, size=64, side_calls=calls, side_size=size), side_distance=far)
    return replace(window, earlier=(one,) * (samples - 1), sample=one)


@pytest.mark.parametrize(
    ("calls", "size", "shift", "severity"),
    [
        (4, 4, 0.0, Severity.WARNING),  # experience of four environments
        (1, 64, 0.5, Severity.WARNING),  # labels for data of another kind
        (1, 64, 1.5, Severity.ERROR),
        (5, 64, 0.0, Severity.INFO),  # five draws of a generator for its critic
        (1, 64, 0.05, None),  # a target for a perturbation of the same batch
        (1, 4, 0.0, None),
        (0, 0, 0.0, None),
    ],
)
def test_bn508_by_size_and_distance(calls: int, size: int, shift: float, severity: Severity | None) -> None:
    found = SideForwards().check(beside(calls, size, shift))
    assert [f.severity for f in found] == ([] if severity is None else [severity])


def test_bn508_is_certain_with_the_second_sample() -> None:
    assert [f.certain for f in SideForwards().check(beside(4, 4, samples=1))] == [False]


def now_and_then(far: float, *, extra: int = 9, calls: int = 1) -> Window:
    """A layer that three steps update more often, with batches whose mean is so far away."""
    updates = torch.ones(64, 1, dtype=torch.int64)
    updates[[20, 40, 60]] += extra
    means = 0.05 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    means[[20, 40, 60]] += far * extra / (1 + extra)
    window = make_window(updates=updates, batch_mean=means)
    return replace(window, sample=make_sample(window.layers, calls=calls))


@pytest.mark.parametrize(
    ("far", "extra", "severity"),
    [(0.0, 9, None), (0.15, 9, None), (0.6, 9, Severity.WARNING), (3.0, 9, Severity.ERROR), (0.6, 1, Severity.INFO)],
)
def test_bn508_between_samples(far: float, extra: int, severity: Severity | None) -> None:
    found = SideForwards().check(now_and_then(far, extra=extra))
    assert [(f.severity, f.first_step) for f in found] == ([] if severity is None else [(severity, 20)])


def test_bn508_says_nothing_of_a_number_of_closures_that_varies() -> None:
    assert SideForwards().check(now_and_then(3.0, calls=5)) == []
    assert side_updates(make_window()) is None


@pytest.mark.parametrize(("distance", "severity"), [(0.1, None), (0.5, Severity.WARNING), (1.5, Severity.ERROR)])
def test_bn605_by_distance_where_layers_stand_in_for_each_other(distance: float, severity: Severity | None) -> None:
    path, window = blocks(distance)
    updates = window.updates.clone()
    updates[:, 1], updates[:, 2] = path.long(), (~path).long()
    found = PathDependentStatistics().check(replace(window, updates=updates))
    assert [(f.layer, f.severity) for f in found] == ([] if severity is None else [(3, severity)])


@pytest.mark.parametrize("distance", [0.5, 1.5])
def test_bn605_is_an_info_where_a_skipped_block_would_look_alike(distance: float) -> None:
    [finding] = PathDependentStatistics().check(path_window(distance))
    assert (finding.layer, finding.severity) == (1, Severity.INFO)


def with_means(means: torch.Tensor) -> Window:
    noise = 0.02 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    structure = replace(make_structure(layers=2), places=in_a_row(2))
    return make_window(channels=[16, 16], batch_mean=noise + means, facts={"structure": structure})


def test_bn605_counts_levels_and_no_other_course() -> None:
    generator = torch.Generator().manual_seed(1)
    second = torch.cat([torch.zeros(16), torch.ones(16)])
    three = torch.randint(3, (64, 1), generator=generator).float()
    assert path_levels(with_means(0.6 * three * second)).count.tolist() == [0, 3]
    courses = {
        "normal": torch.randn(64, 1, generator=generator),
        "uniform": 2 * torch.rand(64, 1, generator=generator),
        "drift": torch.linspace(0, 2, 64)[:, None],
        "once": (torch.arange(64) > 30).float()[:, None],
        "both layers": three,
    }
    for name, course in courses.items():
        along = torch.ones(32) if name == "both layers" else second
        assert path_levels(with_means(0.6 * course * along)).count.tolist() == [0, 0], name


def blocks(distance: float = 0.6, share: float = 0.5) -> tuple[torch.Tensor, Window]:
    """The path of each step, and a window of four layers, the last of which has its means at two levels by it."""
    path = torch.rand(64, generator=torch.Generator().manual_seed(1)) < share
    structure = replace(make_structure(layers=4), places=in_a_row(4))
    noise = 0.02 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    noise[:, 48:] += distance * path[:, None]
    return path, make_window(channels=[16] * 4, batch_mean=noise, facts={"structure": structure})


def test_bn605_leaves_out_blocks_that_are_skipped_but_not_those_that_stand_in() -> None:
    path, window = blocks()
    skipped, exclusive = window.updates.clone(), window.updates.clone()
    skipped[:, 1] = path.long()
    exclusive[:, 1], exclusive[:, 2] = path.long(), (~path).long()
    assert path_levels(replace(window, updates=skipped)).count.tolist() == [0, 0, 0, 0]
    found = path_levels(replace(window, updates=exclusive))
    assert found.count.tolist() == [0, 0, 0, 2]
    assert found.exclusive.tolist() == [False, False, False, True]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("nothing", [torch.nan, 0.0])
def test_bn605_leaves_out_blocks_that_run_and_get_no_gradient(nothing: float, share: float) -> None:
    path, window = blocks(share=share)
    gradient = 0.01 * torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    still = replace(window, gamma_grad=gradient, beta_grad=gradient)
    dropped = gradient.clone()
    dropped[path, 16:32] = nothing
    assert path_levels(still).count.tolist() == [0, 0, 0, 2]
    assert path_levels(replace(window, gamma_grad=dropped, beta_grad=dropped)).count.tolist() == [0, 0, 0, 0]


def test_bn605_does_not_excuse_levels_with_blocks_that_are_skipped_in_other_steps() -> None:
    _, window = blocks()
    updates = window.updates.clone()
    updates[:, 1:3] = torch.rand(64, 2, generator=torch.Generator().manual_seed(3)) < 0.8
    assert path_levels(replace(window, updates=updates)).count.tolist() == [0, 0, 0, 2]


def test_bn605_leaves_out_a_layer_that_gets_the_batch_of_one_before_it() -> None:
    path, window = blocks()
    means = window.batch_mean.clone()
    means[~path, 48:] = means[~path, :16]
    assert path_levels(replace(window, batch_mean=means)).count.tolist() == [0, 0, 0, 0]
