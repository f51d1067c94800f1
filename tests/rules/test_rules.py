"""Each rule on windows made by hand: just below and just above its thresholds, and what the finding says."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bnmonitor import Finding, Monitor, Rule, Severity
from bnmonitor.rules import find
from bnmonitor.testing import make_sample, make_structure, make_window
from bnmonitor.window import Operation, Place, Producer, Sample, Structure, Window

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR


def one(code: str, window: Window, **thresholds: float) -> Finding:
    [finding] = rule(code, **thresholds).check(window)
    return finding


def rule(code: str, **thresholds: float) -> Rule:
    return replace(find(code), **thresholds)


def course(steps: int = 64, *, calm: float = 1.0, **at: float) -> Tensor:
    """A single channel, ``[steps, 1]``: calm, but for ``from40=250.0`` or ``at40=...``."""
    values = torch.full((steps, 1), calm)
    for key, value in at.items():
        if key.startswith("from"):
            values[int(key[4:]) :] = value
        else:
            values[int(key[2:])] = value
    return values


def with_layers(window: Window, **columns: object) -> Window:
    return replace(window, layers=replace(window.layers, **columns))


def a_sample(window: Window, *, step: int = 0, eval_calls: int = 0, nonpositive: float | list[float] = 0.5) -> Sample:
    side = {"nonpositive": nonpositive}
    return make_sample(window.layers, step=step, eval_calls=eval_calls, input=side, output=side)


# -- BN0: the monitor itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["BN001", "BN002"])
def test_reports_of_the_monitor_itself_name_who_and_what_but_no_layer(code: str) -> None:
    finding = find(code).report("somebody", OSError("disk full"), 12)  # type: ignore[attr-defined]
    assert (finding.severity, finding.layer, finding.first_step) == (WARNING, None, 12)
    assert "somebody raised OSError: disk full" in finding.message


# -- BN101 non-finite-statistics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statistic", "value", "word"),
    [
        ("running_mean", math.nan, "NaN"),
        ("running_var", math.nan, "NaN"),
        ("running_mean", math.inf, "infinite"),
        ("running_mean", -math.inf, "infinite"),
        ("running_var", math.inf, "infinite"),
        ("running_var", -1e-12, "negative"),
    ],
)
def test_bn101_names_the_first_bad_step_and_the_last_finite_one(statistic: str, value: float, word: str) -> None:
    finding = one("BN101", make_window(**{statistic: course(from58=value)}))
    assert (finding.severity, finding.layer, finding.channels) == (ERROR, 0, (0,))
    assert finding.first_step == 58
    assert f"statistics are {word} in 1 channel, last finite at step 57" in finding.message


def test_bn101_finds_the_onset_before_the_new_steps() -> None:
    finding = one("BN101", make_window(running_mean=course(from20=math.nan)))
    assert finding.first_step == 20


def test_bn101_says_if_it_was_so_from_the_beginning_of_the_window() -> None:
    finding = one("BN101", make_window(running_mean=math.nan))
    assert finding.first_step == 0
    assert "already so when the window began" in finding.message
    assert finding.channels == (0, 1, 2)


def test_bn101_names_the_channels_within_each_layer() -> None:
    findings = rule("BN101").check(
        make_window(channels=(2, 1, 3), running_mean=[0.0, math.nan, 0.0, math.inf, 0.0, math.nan])
    )
    assert [(f.layer, f.channels, f.value) for f in findings] == [(0, (1,), 1.0), (2, (0, 2), 2.0)]


def test_bn101_is_quiet_on_the_largest_finite_number_and_on_a_variance_of_zero() -> None:
    largest = torch.finfo(torch.float32).max
    assert rule("BN101").check(make_window(running_mean=-largest, running_var=largest)) == []
    assert rule("BN101").check(make_window(running_var=0.0)) == []


def test_bn101_is_quiet_once_the_layer_is_repaired() -> None:
    mended = course(from30=math.nan)
    mended[50:] = 0.0
    assert rule("BN101").check(make_window(running_mean=mended)) == []


def test_bn101_does_not_judge_a_layer_without_running_statistics() -> None:
    window = with_layers(make_window(running_mean=math.nan, running_var=math.nan), tracking=(False,))
    assert rule("BN101").check(window) == []


# -- BN105 variance-collapse -------------------------------------------------------------------------------------------


def collapsed(dead: int, of: int, value: float = 5e-5) -> Window:
    variance = [value] * dead + [1.0] * (of - dead)
    return make_window(batch_var=variance, running_var=variance)


@pytest.mark.parametrize(("power", "says"), [(1e-8, "check the scale of the input"), (1.0, "check what feeds the")])
def test_bn105_points_at_the_data_where_the_data_is_tiny(power: float, says: str) -> None:
    window = collapsed(20, 20)
    sample = replace(make_sample(window.layers), data=torch.tensor([[power], [0.0]]))
    assert one("BN105", replace(window, sample=sample)).advice.startswith(says)


@pytest.mark.parametrize(
    ("dead", "of", "severity", "threshold"),
    [(1, 21, INFO, 0.0), (2, 20, WARNING, 0.05), (5, 20, WARNING, 0.05), (6, 20, ERROR, 0.25), (20, 20, ERROR, 0.25)],
)
def test_bn105_grows_with_the_share_of_channels(dead: int, of: int, severity: Severity, threshold: float) -> None:
    finding = one("BN105", collapsed(dead, of))
    assert (finding.severity, finding.threshold) == (severity, threshold)
    assert finding.channels == tuple(range(dead))
    assert finding.value == pytest.approx(dead / of)
    assert finding.certain


@pytest.mark.parametrize(("variance", "fires"), [(1.01e-4, False), (0.99e-4, True)])
def test_bn105_begins_at_ten_eps(variance: float, fires: bool) -> None:
    assert bool(rule("BN105").check(collapsed(2, 8, variance))) is fires


@pytest.mark.parametrize(("variance", "severity"), [(1.1e-5, INFO), (0.9e-5, WARNING)])
def test_bn105_warns_of_a_single_channel_only_below_eps(variance: float, severity: Severity) -> None:
    finding = one("BN105", collapsed(1, 40, variance))
    assert (finding.severity, finding.channels) == (severity, (0,))


def test_bn105_is_not_certain_before_the_running_variance_has_followed() -> None:
    batch = torch.ones(64, 4)
    batch[55:, 2] = 0.0
    finding = one("BN105", make_window(batch_var=batch))
    assert not finding.certain
    assert (finding.severity, finding.channels, finding.first_step) == (INFO, (2,), 55)


@pytest.mark.parametrize(("flat", "severity"), [(1, INFO), (2, WARNING)])
def test_bn105_reports_channels_that_were_never_alive_as_an_info_up_to_a_quarter(flat: int, severity: Severity) -> None:
    window = collapsed(flat, 8, 0.0)
    window = replace(
        window, baseline=replace(window.baseline, alive=torch.tensor([False] * flat + [True] * (8 - flat)))
    )
    finding = one("BN105", window)
    assert (finding.severity, finding.channels) == (severity, tuple(range(flat)))
    assert "has fallen" not in finding.message


def test_bn105_does_not_judge_flat_channels_before_warm_up() -> None:
    window = collapsed(8, 8, 0.0)
    assert rule("BN105").check(aged(never_alive(window), 29)) == []


def never_alive(window: Window, channels: int = 8) -> Window:
    """The window in which the first channels were never alive."""
    alive = torch.arange(window.layers.total) >= channels
    return replace(window, baseline=replace(window.baseline, alive=alive, log_var=window.batch_var[0].log()))


def placed(window: Window, **place: Any) -> Window:
    return replace(window, facts=replace(window.facts, structure=make_structure(**place)))


@pytest.mark.parametrize("variance", [5e-5, 0.9e-5])
def test_bn105_says_of_a_small_scale_under_a_large_eps_that_it_was_small_from_the_start(variance: float) -> None:
    finding = one("BN105", never_alive(collapsed(4, 8, variance), 4))
    assert (finding.severity, finding.channels) == (INFO, (0, 1, 2, 3))
    assert "fallen" not in finding.message
    assert "from the start" in finding.message


def test_bn105_knows_that_one_of_eight_channels_is_no_share() -> None:
    assert one("BN105", collapsed(1, 8, 5e-5)).severity is INFO
    assert one("BN105", collapsed(2, 8, 5e-5)).severity is WARNING


@pytest.mark.parametrize(
    ("closed", "severity"), [(1, INFO), (5, INFO), (6, WARNING), (12, WARNING), (13, ERROR), (16, ERROR)]
)
def test_bn105_lets_a_relu_before_the_layer_close_some_channels(closed: int, severity: Severity) -> None:
    relu = Operation(kind="relu", role="nonlinearity")
    window = placed(collapsed(closed, 16, 0.0), between=(relu,))
    assert one("BN105", window).severity is severity


@pytest.mark.parametrize(("depthwise", "severity"), [(True, INFO), (False, WARNING)])
def test_bn105_looks_through_a_depthwise_convolution_for_a_relu(depthwise: bool, severity: Severity) -> None:
    relu = Operation(kind="relu6", role="nonlinearity")
    convolution = Producer(kind="convolution", role="weights", name="conv", depthwise=depthwise)
    dead = torch.ones(40)
    dead[20] = 0.0
    window = make_window(channels=(20, 20), batch_var=dead, running_var=dead)
    places = (Place(readers=(relu,)), Place(predecessors=(0,), producers=(convolution,)))
    structure = replace(Structure.unknown(("0", "1"), ""), places=places)
    assert one("BN105", replace(window, facts=replace(window.facts, structure=structure))).severity is severity


@pytest.mark.parametrize(
    ("pruned", "channels"), [((), (0, 1, 2, 3)), ((0, 1), (2, 3)), ((1, 2, 3, 7), (0,)), ((0, 1, 2, 3), ())]
)
def test_bn105_leaves_out_channels_that_are_pruned(pruned: tuple[int, ...], channels: tuple[int, ...]) -> None:
    window = collapsed(4, 8, 0.0)
    masked = torch.zeros(8, dtype=torch.bool)
    masked[list(pruned)] = True
    facts = replace(window.facts, pruned=lambda layer, size: masked if (layer, size) == (0, 8) else None)
    found = rule("BN105").check(replace(window, facts=facts))
    assert [finding.channels for finding in found] == [channels][: len(channels)]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("variance", "alive", "severity"), [(0.9e-5, True, ERROR), (0.0, False, ERROR)])
def test_bn105_calls_a_whole_layer_below_eps_an_error(
    variance: float, alive: bool, severity: Severity, frozen: bool
) -> None:
    window = collapsed(8, 8, variance)
    window = window if alive else never_alive(window)
    if frozen:
        nothing = torch.full_like(window.batch_var, math.nan)
        window = replace(window, batch_var=nothing, ratio=nothing, training=torch.zeros_like(window.training))
    finding = one("BN105", window)
    assert (finding.severity, len(finding.channels), finding.certain) == (severity, 8, True)


def test_bn105_does_not_judge_single_channels_of_a_frozen_layer() -> None:
    window = never_alive(collapsed(4, 8, 0.0), 4)
    assert one("BN105", window).severity is WARNING
    assert rule("BN105").check(replace(window, training=torch.zeros_like(window.training))) == []


def test_bn105_sees_a_whole_layer_collapse_before_the_running_variance_has_followed() -> None:
    batch = torch.ones(64, 4)
    batch[40:] = 0.0
    finding = one("BN105", make_window(batch_var=batch))
    assert (finding.severity, finding.certain, finding.first_step) == (ERROR, True, 40)


def test_bn105_finds_a_collapse_under_an_eps_so_large_that_no_channel_counts_as_alive() -> None:
    window = collapsed(3, 8, 0.0)
    level = torch.full((8,), math.log(5e-4))
    dead = replace(window, baseline=replace(window.baseline, alive=torch.zeros(8, dtype=torch.bool), log_var=level))
    finding = one("BN105", dead)
    assert (finding.severity, "fallen" in finding.message) == (ERROR, True)


def test_bn105_leaves_pixels_that_are_always_black_to_the_data() -> None:
    assert one("BN105", placed(collapsed(8, 8, 0.0), root=True, distance=0)).severity is INFO


def test_bn105_forgives_a_single_odd_step() -> None:
    assert rule("BN105").check(make_window(batch_var=course(at60=0.0).expand(64, 3).clone())) == []


# -- BN106 variance-explosion ------------------------------------------------------------------------------------------


def risen(to: list[float], at: int = 57) -> Tensor:
    """Batch variances that were 1 and rose in one step."""
    rows = torch.ones(64, len(to))
    rows[at:] = torch.tensor(to)
    return rows


def test_bn106_leaves_growth_that_the_running_average_can_follow_to_other_rules() -> None:
    steady = torch.logspace(0, 4, 64)[:, None].expand(64, 3).clone()
    assert rule("BN106").check(make_window(batch_var=steady)) == []
    assert one("BN106", make_window(batch_var=steady**5)).severity is WARNING


@pytest.mark.parametrize("fresh", [10, 20, 50])
@pytest.mark.parametrize("momentum", [0.1, 0.03, 0.01])
def test_bn106_judges_however_many_steps_are_new(momentum: float, fresh: int) -> None:
    window = make_window(batch_var=risen([1.0, 500.0, 1.0]), momentum=momentum)
    assert one("BN106", replace(window, fresh=fresh)).channels == (1,)


def test_bn106_ends_once_the_level_has_lasted_as_long_as_the_average_remembers() -> None:
    assert one("BN106", make_window(batch_var=risen([500.0] * 3, at=50))).channels == (0, 1, 2)
    assert rule("BN106").check(make_window(batch_var=risen([500.0] * 3, at=40))) == []


def test_bn106_dates_growth_back_that_could_not_be_judged_before() -> None:
    window = replace(make_window(batch_var=risen([500.0, 400.0, 1.0], at=50)), fresh=10)
    assert (one("BN106", window).first_step, one("BN106", replace(window, fresh=20)).first_step) == (50, 50)


def test_bn106_remembers_longer_where_momentum_is_small() -> None:
    window = make_window(batch_var=risen([500.0] * 3, at=40), momentum=0.05)
    assert one("BN106", window).channels == (0, 1, 2)


@pytest.mark.parametrize(
    ("factor", "severity", "threshold"),
    [(99.0, None, 0), (101.0, WARNING, 100.0), (9900.0, WARNING, 100.0), (10100.0, ERROR, 1e4)],
)
def test_bn106_grows_with_the_factor(factor: float, severity: Severity | None, threshold: float) -> None:
    findings = rule("BN106").check(make_window(batch_var=risen([1.0, factor, 1.0])))
    if severity is None:
        assert findings == []
        return
    [finding] = findings
    assert (finding.severity, finding.channels, finding.threshold) == (severity, (1,), threshold)
    assert finding.value == pytest.approx(factor, rel=1e-4)


@pytest.mark.parametrize(("steps", "fires"), [((60, 61), False), ((60, 62, 63), False), ((60, 61, 62), True)])
def test_bn106_needs_three_steps_in_a_row(steps: tuple[int, ...], fires: bool) -> None:
    window = make_window(batch_var=course(**{f"at{s}": 500.0 for s in steps}))
    assert bool(rule("BN106").check(window)) is fires


@pytest.mark.parametrize("at", range(16, 62))
def test_bn106_sees_three_in_a_row_wherever_they_are_among_many_new_steps(at: int) -> None:
    window = make_window(batch_var=course(**{f"at{s}": 500.0 for s in range(at, at + 3)}))
    assert one("BN106", replace(window, fresh=50)).first_step == at


def test_bn106_sees_three_in_a_row_that_began_before_the_new_steps() -> None:
    window = make_window(batch_var=course(at52=500.0, at53=500.0, at54=500.0))
    assert one("BN106", window).first_step == 52
    assert rule("BN106").check(make_window(batch_var=course(at51=500.0, at52=500.0, at53=500.0))) == []


def test_bn106_dates_it_by_the_first_of_the_three_and_passes_over_an_odd_step_before() -> None:
    finding = one("BN106", make_window(batch_var=course(at10=500.0, from57=500.0)))
    assert finding.first_step == 57


def test_bn106_judges_each_channel_by_its_own_past() -> None:
    rows = risen([50.0, 50.0, 50.0])
    rows[:57] = 0.1
    window = make_window(batch_var=rows)
    own = replace(window.baseline, log_var=torch.tensor([0.1, 50.0, 0.5]).log())
    assert one("BN106", replace(window, baseline=own)).channels == (0,)


def test_bn106_is_quiet_before_there_is_a_past_and_where_a_channel_comes_to_life() -> None:
    window = make_window(batch_var=[500.0, 0.9, 1.0])
    unknown = replace(window.baseline, log_var=torch.full((3,), math.nan))
    assert rule("BN106").check(replace(window, baseline=unknown)) == []
    waking = replace(window.baseline, log_var=torch.tensor([6.0, math.log(1e-6), 0.0]))
    assert rule("BN106").check(replace(window, baseline=waking)) == []


@pytest.mark.parametrize(("steps", "fires"), [*((steps, False) for steps in range(2, 11)), (13, True)])
def test_bn106_needs_a_window_longer_than_it_looks_back(steps: int, fires: bool) -> None:
    window = make_window(steps=steps, batch_var=risen([1e5] * 3, at=61)[-steps:])
    for fresh in range(1, min(steps, 3) + 1):
        assert bool(rule("BN106").check(replace(window, fresh=fresh))) is fires


def test_bn106_names_the_learning_rate_that_had_just_grown() -> None:
    window = make_window(batch_var=course(from57=500.0))
    rates = tuple(0.1 if step < 50 else 0.4 for step in range(64))
    finding = one("BN106", replace(window, facts=replace(window.facts, learning_rates=rates)))
    assert "lr = 0.4 (was 0.1)" in finding.message


@pytest.mark.parametrize(("to", "fires"), [(20.0, False), (200.0, True)])
def test_bn106_measures_a_channel_that_was_next_to_nothing_by_the_others(to: float, fires: bool) -> None:
    window = make_window(batch_var=risen([1.0, to, 1.0]))
    level = torch.tensor([0.0, -9.0, 0.0])
    window = replace(window, baseline=replace(window.baseline, log_var=level))
    window.batch_var[:57, 1] = math.exp(-9.0)
    assert bool(rule("BN106").check(window)) is fires


@pytest.mark.parametrize(("loss", "rate", "fires"), [(0.5, 0.1, False), (2.0, 0.1, True), (0.5, 0.0, True)])
def test_bn106_leaves_a_warm_up_alone_that_does_well(loss: float, rate: float, fires: bool) -> None:
    rates = tuple(0.1 + rate * t / 64 for t in range(64))
    facts = {"learning_rates": rates, "losses": (loss,) * 64, "loss_start": 2.0, "loss_best": 0.5}
    few = make_window(batch_var=risen([1.0, 500.0, 1.0]), facts=facts)
    assert bool(rule("BN106").check(few)) is fires
    assert rule("BN106").check(make_window(batch_var=risen([500.0] * 3), facts=facts))


# -- BN107 mean-explosion ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spread", "factor", "fires"), [(0.1, 150.0, True), (1.0, 150.0, False), (1.0, 1e6, True)])
def test_bn106_requires_more_growth_of_a_channel_that_always_varies_much(
    spread: float, factor: float, fires: bool
) -> None:
    window = make_window(batch_var=course(from58=factor))
    calm = replace(window.baseline, spread=torch.full((1,), spread))
    assert bool(rule("BN106").check(replace(window, baseline=calm))) is fires


@pytest.mark.parametrize(
    ("mean", "offset", "fires"), [(9.9, 0, False), (10.1, 0, True), (19.9, 10, False), (20.1, 10, True)]
)
def test_bn107_needs_ten_standard_deviations_and_twice_the_past(mean: float, offset: float, fires: bool) -> None:
    findings = rule("BN107").check(make_window(running_mean=[mean, -mean, mean], offset=offset))
    assert [(f.severity, f.channels, f.threshold) for f in findings] == [(WARNING, (), max(10.0, 2 * offset))] * fires
    assert [f.value for f in findings] == [pytest.approx(mean, rel=1e-4)] * fires


def test_bn107_judges_the_median_channel() -> None:
    assert rule("BN107").check(make_window(running_mean=[1000.0, 0.0, 0.0])) == []


def test_bn107_dates_it_by_the_step_at_which_it_began_to_stay() -> None:
    assert one("BN107", make_window(running_mean=course(calm=0.0, at10=50.0, from40=50.0))).first_step == 40


def test_bn107_is_quiet_before_there_is_a_past() -> None:
    assert rule("BN107").check(make_window(running_mean=100.0, offset=math.nan)) == []


def leap(size: float, *, since: int = 54, until: int = 64, layers: tuple[int, ...] = (1,), **more: Any) -> Window:
    """Four layers of three channels, whose batch means in some leap, to one side or the other by channel."""
    means = torch.zeros(64, 4, 3)
    means[since:until, list(layers)] = torch.tensor([size, -size, size])
    return make_window(channels=(3, 3, 3, 3), batch_mean=means.flatten(1), **more)


@pytest.mark.parametrize(("size", "fires"), [(0.9, False), (1.1, True), (-1.1, True), (30.0, True)])
def test_bn107_finds_a_batch_mean_that_leaps(size: float, fires: bool) -> None:
    findings = rule("BN107").check(leap(size))
    assert [(f.severity, f.layer, f.first_step, f.threshold) for f in findings] == [(WARNING, 1, 54, 1.0)] * fires
    assert [f.value for f in findings] == [pytest.approx(abs(size), rel=1e-4)] * fires


def test_bn107_dates_a_leap_and_says_how_long_an_evaluation_is_off() -> None:
    finding = one("BN107", leap(8.0, since=40))
    assert finding.first_step == 40
    assert "within 42 steps" in finding.advice, "8 * .9 ** 42 is less than a tenth"
    assert "within 2 steps" in one("BN107", leap(8.0, momentum=0.9)).advice


@pytest.mark.parametrize(("calm", "fires"), [(0.45, True), (0.55, False), (math.nan, False)])
def test_bn107_compares_a_leap_with_the_usual_distance(calm: float, fires: bool) -> None:
    window = leap(2.0)
    usual = replace(window.baseline, batch_distance=torch.full((4,), calm))
    assert bool(rule("BN107").check(replace(window, baseline=usual))) is fires


@pytest.mark.parametrize(
    ("window", "fires"),
    [
        (leap(3.0, since=57), False),  # seven of the ten newest steps: it may be over soon
        (leap(3.0, since=56), True),
        (leap(3.0, since=54, until=58), False),  # four odd batches
        (leap(3.0, layers=(0,)), False),  # it sees the data
        (leap(3.0, layers=(1, 2)), False),  # half of the layers: BN704
        (leap(3.0, momentum=None), False),  # a cumulative average does not follow
        (leap(3.0, seen=15), False),  # warm-up
        (leap(3.0, facts={"thawed": 30}), False),
        (leap(3.0, training=[True, False, True, True]), False),
        (leap(3.0, chain=True), True),
        (leap(3.0, running_mean=torch.tensor([[0.0] * 3 + [3.0, -3.0, 3.0] + [0.0] * 6])), False),  # it was there
    ],
)
def test_bn107_tells_a_leap_from_what_looks_alike(window: Window, fires: bool) -> None:
    assert bool(rule("BN107").check(window)) is fires


def test_bn107_does_not_take_batches_that_take_turns_for_a_leap() -> None:
    window = leap(3.0)
    window.batch_mean[::2] *= -1
    assert rule("BN107").check(replace(window, shift=window.batch_mean.clone())) == []


def test_bn107_excludes_every_layer_that_sees_the_data_from_leaps() -> None:
    window = leap(3.0, chain=True)
    structure = window.facts.structure
    assert structure is not None
    roots = tuple(replace(place, root=i in (0, 1)) for i, place in enumerate(structure.places))
    facts = replace(window.facts, structure=replace(structure, places=roots))
    assert rule("BN107").check(replace(window, facts=facts)) == []


def test_bn107_tells_once_of_a_layer_that_leapt_and_is_far_out() -> None:
    assert len(rule("BN107").check(leap(30.0, running_mean=leap(30.0, since=50).batch_mean))) == 1


# -- BN201 small-batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "severity", "threshold"),
    [(16, None, 0), (15, WARNING, 16.0), (5, WARNING, 16.0), (4, ERROR, 5.0), (1, ERROR, 5.0)],
)
def test_bn201_judges_the_batch_by_its_size(size: int, severity: Severity | None, threshold: float) -> None:
    findings = rule("BN201").check(make_window(channels=(2, 3), sizes=size))
    found = [(f.severity, f.layer, f.layers, f.value, f.threshold) for f in findings]
    assert found == ([] if severity is None else [(severity, 0, (0, 1), float(size), threshold)])


def test_bn201_requires_spread_where_a_sample_has_many_values() -> None:
    calm = make_window(sizes=4, values=50_000)
    noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    assert one("BN201", calm).severity is WARNING
    assert one("BN201", replace(calm, ratio=(0.5 * noise).exp())).severity is ERROR
    assert one("BN201", make_window(sizes=8, values=50_000)).severity is INFO
    assert rule("BN201").check(make_window(sizes=4, values=50_000, steps=15)) == []


def test_bn201_counts_the_samples_of_all_processes_for_synchronized_layers() -> None:
    window = make_window(sizes=8)
    window = replace(window, facts=replace(window.facts, world_size=4))
    assert one("BN201", window).value == 8.0
    assert rule("BN201").check(with_layers(window, synced=(0,))) == []


def test_bn201_is_quiet_without_samples_in_evaluation_mode_and_with_thresholds_dropped() -> None:
    assert rule("BN201").check(make_window(sizes=math.nan)) == []
    assert rule("BN201").check(make_window(sizes=2, training=False)) == []
    assert rule("BN201", warn_below=0, error_below=0).check(make_window(sizes=2)) == []


def test_bn201_leaves_out_layers_that_see_enough() -> None:
    window = make_window(channels=(1, 1, 1), sizes=4)
    window = replace(window, baseline=replace(window.baseline, sizes=torch.tensor([64.0, 4.0, 4.0])))
    finding = one("BN201", window)
    assert (finding.layer, finding.layers) == (1, (1, 2))


def test_bn201_takes_a_warning_threshold_below_the_one_for_errors() -> None:
    assert one("BN201", make_window(sizes=4), warn_below=3).severity is ERROR


def test_bn201_raises_no_warning_of_torch_on_the_first_step() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule("BN201").check(make_window(sizes=4, values=50_000, steps=1))


# -- BN301 inverted-momentum -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum", "severity", "threshold"),
    [(0.49, None, 0), (0.5, WARNING, 0.5), (0.89, WARNING, 0.5), (0.9, ERROR, 0.9), (1.0, None, 0)],
)
def test_bn301_judges_the_momentum(momentum: float, severity: Severity | None, threshold: float) -> None:
    findings = rule("BN301").check(make_window(channels=(2, 1), momentum=momentum))
    found = [(f.severity, f.layer, f.layers, f.value, f.threshold) for f in findings]
    assert found == ([] if severity is None else [(severity, 0, (0, 1), momentum, threshold)])


def momenta(*values: float | None) -> Window:
    window = make_window(channels=(1,) * len(values))
    return replace(window, momentum=torch.tensor([math.nan if v is None else v for v in values]).expand(64, -1))


def test_bn301_dates_a_momentum_that_was_changed_in_the_middle() -> None:
    window = momenta(0.1, 0.99)
    changed = window.momentum.clone()
    changed[:40] = 0.1
    assert one("BN301", replace(window, momentum=changed)).first_step == 40


def test_bn301_names_only_the_layers_with_the_large_momentum() -> None:
    finding = one("BN301", momenta(0.1, 0.99, 0.1, 0.6))
    assert (finding.layer, finding.layers, finding.value) == (1, (1, 3), 0.99)
    assert "momentum=0.01" in finding.advice


@pytest.mark.parametrize(("odd", "fires"), [(0.0112, False), (0.0111, True), (0.01, True)])
def test_bn301_warns_of_momenta_that_differ_ninefold_and_names_the_odd_one(odd: float, fires: bool) -> None:
    findings = rule("BN301").check(momenta(0.1, odd, 0.1))
    assert [(f.severity, f.layer, f.layers) for f in findings] == [(WARNING, 1, (1,))] * fires
    assert all(f.value == pytest.approx(0.1 / odd) for f in findings)


def test_bn301_counts_exactly_ninefold_as_mixed() -> None:
    assert one("BN301", momenta(0.09, 0.01, 0.09)).value == pytest.approx(9.0)


def test_bn301_leaves_out_cumulative_averages_layers_without_updates_and_zero() -> None:
    assert rule("BN301").check(momenta(None, 0.1, 0.0)) == []
    assert rule("BN301").check(make_window(momentum=0.99, updates=0)) == []
    frozen = momenta(0.1, 0.99)
    updates = frozen.updates.clone()
    updates[:, 1] = 0
    assert rule("BN301").check(replace(frozen, updates=updates)) == []


# -- BN304 stale-statistics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "severity", "threshold"),
    [(0.099, None, 0), (0.101, WARNING, 0.1), (0.249, WARNING, 0.1), (0.251, ERROR, 0.25)],
)
def test_bn304_judges_the_lag_of_the_mean(shift: float, severity: Severity | None, threshold: float) -> None:
    findings = rule("BN304").check(make_window(shift=[shift, -shift, shift]))
    assert [(f.severity, f.threshold, f.layer, f.channels) for f in findings] == (
        [] if severity is None else [(severity, threshold, 0, ())]
    )
    assert all(f.value == pytest.approx(shift, rel=1e-3) for f in findings)


@pytest.mark.parametrize(
    ("log", "severity", "threshold"),
    [
        *[(0.119, None, 0), (0.121, WARNING, 0.12), (0.199, WARNING, 0.12), (-0.199, WARNING, 0.12)],
        *[(0.201, WARNING, 0.2), (0.69, WARNING, 0.2), (0.71, ERROR, 0.7), (-0.71, ERROR, 0.7)],
    ],
)
def test_bn304_judges_the_lag_of_the_standard_deviation(
    log: float, severity: Severity | None, threshold: float
) -> None:
    findings = rule("BN304").check(make_window(batch_var=math.exp(2 * log), running_var=1.0))
    assert [(f.severity, f.threshold) for f in findings] == ([] if severity is None else [(severity, threshold)])
    assert all(f.value == pytest.approx(abs(log), rel=1e-3) for f in findings)
    assert all("batch standard deviations differ by a factor" in f.message for f in findings)


def test_bn304_allows_a_cumulative_average_a_slight_lag_of_the_deviation() -> None:
    window = make_window(batch_var=math.exp(2 * 0.5), running_var=1.0, momentum=None)
    assert rule("BN304").check(window) == []
    assert rule("BN304", error_log_deviation=0.4).check(window)


@pytest.mark.parametrize("size", [16, 64])
def test_bn304_does_not_take_the_noise_of_small_batches_for_a_slight_lag(size: int) -> None:
    """The variance of so few samples is off by a third, but not to one side."""
    for seed in range(20):
        samples = torch.randn(64, size, 12, generator=torch.Generator().manual_seed(seed))
        window = make_window(batch_var=samples.var(1), running_var=1.0)
        assert rule("BN304").check(window) == [], seed


def test_bn304_lets_noise_of_both_signs_cancel_and_judges_the_median_channel() -> None:
    sign = torch.tensor([1.0, -1.0]).repeat(32)[:, None].expand(64, 3)
    assert rule("BN304").check(make_window(shift=0.9 * sign)) == []
    assert rule("BN304").check(make_window(shift=[0.9, 0.0, 0.0])) == []


def aged(window: Window, updates: int) -> Window:
    """The same window after so many updates in all."""
    forgotten = -updates * math.log1p(-window.momentum[-1].item())
    base = replace(
        window.baseline, updates=torch.tensor([updates]), forgotten=torch.tensor([forgotten], dtype=torch.float64)
    )
    return replace(window, baseline=base)


def test_bn304_waits_for_warm_up_before_the_window() -> None:
    window = make_window(shift=0.5)
    for updates, fires in ((64 + 29, False), (64 + 30, True)):
        assert bool(rule("BN304").check(aged(window, updates))) is fires
    slow = make_window(shift=0.5, momentum=0.01)
    for updates, fires in ((64 + 298, False), (64 + 299, True)):
        assert bool(rule("BN304").check(aged(slow, updates))) is fires


def test_bn304_needs_no_new_warm_up_when_momentum_is_lowered_in_the_middle() -> None:
    window = aged(make_window(shift=0.5), 200)
    assert rule("BN304").check(replace(window, momentum=torch.full_like(window.momentum, 0.001)))


@pytest.mark.parametrize("jump", [1.0, 5.0, 50.0])
def test_bn304_holds_for_less_than_it_must_after_one_jump_that_the_average_catches_up_with(jump: float) -> None:
    shift = torch.zeros(300, 3)
    shift[100:] = jump * 0.9 ** torch.arange(200.0)[:, None]
    held = [bool(rule("BN304").check(make_window(shift=shift[end - 64 : end]))) for end in range(64, 300)]
    assert sum(held) <= rule("BN304").confirm


def test_bn304_is_quiet_in_evaluation_mode_and_on_a_short_window() -> None:
    assert rule("BN304").check(make_window(shift=0.5, training=False)) == []
    assert rule("BN304").check(make_window(shift=0.5, updates=0)) == []
    assert rule("BN304").check(make_window(shift=0.5, steps=7)) == []


def test_bn304_reports_the_relatively_worse_lag() -> None:
    finding = one("BN304", make_window(shift=0.3, batch_var=math.exp(0.5)))
    assert finding.value == pytest.approx(0.3, rel=1e-3)
    finding = one("BN304", make_window(shift=0.11, batch_var=math.exp(1.0)))
    assert (finding.value, finding.threshold) == (pytest.approx(0.5, rel=1e-3), 0.2)


def test_bn304_compares_the_number_it_names_with_a_threshold_that_number_has_passed() -> None:
    finding = one("BN304", make_window(shift=0.3, batch_var=math.exp(2 * 0.65)))
    assert finding.value > finding.threshold


def test_bn304_names_the_mean_if_the_variances_are_unknown() -> None:
    window = make_window(shift=0.5, batch_var=course(at20=math.inf), running_var=course(at30=math.inf))
    assert one("BN304", window).value == pytest.approx(0.5)


# -- BN401 eval-mode-in-training ---------------------------------------------------------------------------------------


def in_eval(**more: object) -> Window:
    return make_window(training=False, updates=0, **more)  # type: ignore[arg-type]


def test_bn401_names_all_layers_in_one_finding() -> None:
    window = make_window(channels=(1, 1, 1, 1), training=[True, False, True, False], updates=0)
    finding = one("BN401", window)
    assert (finding.severity, finding.layer, finding.layers) == (WARNING, 1, (1, 3))
    assert (finding.value, finding.threshold) == (2.0, 0.0)


def test_bn401_is_quiet_about_a_frozen_layer_a_training_one_and_one_that_took_no_part() -> None:
    assert rule("BN401").check(in_eval(affine_trains=False)) == []
    assert rule("BN401").check(make_window()) == []
    for gradient in (0.0, math.nan):
        window = in_eval(gamma_grad=gradient)
        never = replace(window.baseline, updates=torch.tensor([0]))
        assert rule("BN401").check(replace(window, baseline=never)) == []


def test_bn401_assumes_a_layer_with_earlier_updates_runs_unless_a_sample_did_not_see_it() -> None:
    window = in_eval(gamma_grad=math.nan)
    assert one("BN401", window).layers == (0,)
    sample = a_sample(window)
    assert rule("BN401").check(replace(window, sample=replace(sample, calls=torch.zeros_like(sample.calls)))) == []
    assert one("BN401", replace(window, sample=replace(sample, calls=torch.ones_like(sample.calls)))).layers == (0,)


def test_bn401_counts_a_sampled_call_as_taking_part() -> None:
    window = in_eval(gamma_grad=0.0)
    window = replace(window, baseline=replace(window.baseline, updates=torch.tensor([0])))
    assert one("BN401", replace(window, sample=a_sample(window, eval_calls=1))).layers == (0,)


def test_bn401_dates_it_by_the_step_at_which_the_mode_changed() -> None:
    window = in_eval()
    training = window.training.clone()
    training[:30] = True
    assert one("BN401", replace(window, training=training)).first_step == 30


def test_bn401_waits_until_all_new_steps_agree() -> None:
    window = in_eval()
    training = window.training.clone()
    training[54] = True
    assert rule("BN401").check(replace(window, training=training)) == []


def test_bn401_judges_a_layer_without_gamma_by_the_layer_before() -> None:
    window = with_layers(in_eval(affine_trains=False), affine=(False,))
    assert one("BN401", window).layers == (0,)
    assert window.facts.structure is not None
    for frozen in (False, None):
        structure = replace(window.facts.structure, producer_trains=(frozen,))
        assert rule("BN401").check(replace(window, facts=replace(window.facts, structure=structure))) == []


def test_bn401_dates_it_by_the_layer_that_began() -> None:
    window = in_eval(channels=(1, 1))
    training = window.training.clone()
    training[:40, 0] = True
    training[:20, 1] = True
    assert one("BN401", replace(window, training=training)).first_step == 20


# -- BN402 leaking-freeze ----------------------------------------------------------------------------------------------


def leaking(**more: object) -> Window:
    return make_window(affine_trains=False, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mean", "severity", "threshold"), [(0.0, WARNING, 0.0), (0.24, WARNING, 0.0), (0.26, ERROR, 0.25)]
)
def test_bn402_is_an_error_once_the_mean_has_drifted(mean: float, severity: Severity, threshold: float) -> None:
    finding = one("BN402", leaking(running_mean=[mean, -mean, mean]))
    assert (finding.severity, finding.layer, finding.channels) == (severity, 0, ())
    assert (finding.value, finding.threshold) == (pytest.approx(mean, abs=1e-4), threshold)


@pytest.mark.parametrize(("log", "severity"), [(0.49, WARNING), (0.51, ERROR), (-0.51, ERROR)])
def test_bn402_is_an_error_once_the_variance_has_drifted(log: float, severity: Severity) -> None:
    assert one("BN402", leaking(running_var=math.exp(log))).severity is severity


def test_bn402_names_the_drift_of_the_variance_if_that_is_the_error() -> None:
    finding = one("BN402", leaking(running_var=math.exp(2.0)))
    assert finding.value > finding.threshold


def test_bn402_dates_it_by_the_first_update_after_gamma_last_changed() -> None:
    gamma = course(from40=1.2)
    assert one("BN402", leaking(gamma=gamma)).first_step == 41
    assert one("BN402", leaking()).first_step == 0


def test_bn402_is_quiet_where_gamma_or_beta_moves_as_in_a_gan() -> None:
    assert rule("BN402").check(leaking(gamma=course(from62=1.001))) == []
    assert rule("BN402").check(leaking(beta=course(calm=0.0, from62=1e-6))) == []


def test_bn402_is_quiet_if_the_layer_trains_or_its_statistics_do_not_change() -> None:
    assert rule("BN402").check(make_window(running_mean=5.0)) == []
    assert rule("BN402").check(leaking(training=False, updates=0)) == []
    assert rule("BN402").check(leaking(updates=0)) == []
    assert rule("BN402").check(leaking(steps=4)) == []


def test_bn402_names_each_layer_and_the_first_step_with_an_update() -> None:
    window = make_window(channels=(1, 1, 1), affine_trains=[False, True, False])
    updates = window.updates.clone()
    updates[:45, 2] = 0
    findings = rule("BN402").check(replace(window, updates=updates))
    assert [(f.layer, f.first_step) for f in findings] == [(0, 0), (2, 45)]


def test_bn402_judges_a_layer_without_gamma_by_the_layer_before() -> None:
    window = with_layers(leaking(), affine=(False,))
    assert rule("BN402").check(window) == []
    assert window.facts.structure is not None
    structure = replace(window.facts.structure, producer_trains=(False,))
    behind_frozen = replace(window, facts=replace(window.facts, structure=structure))
    assert one("BN402", behind_frozen).layer == 0


# -- BN701 dead-channels -----------------------------------------------------------------------------------------------


def closed(dead: int, of: int, beta: float = -5.0, **more: object) -> Window:
    return make_window(beta=[beta] * dead + [0.0] * (of - dead), relu=True, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dead", "severity", "threshold"),
    [(2, None, 0), (3, INFO, 0.1), (6, INFO, 0.1), (7, WARNING, 0.33), (15, WARNING, 0.33), (16, ERROR, 0.75)],
)
def test_bn701_grows_with_the_share_of_channels(dead: int, severity: Severity | None, threshold: float) -> None:
    findings = rule("BN701").check(closed(dead, 20))
    expected = [] if severity is None else [(severity, threshold, 0, tuple(range(dead)), dead / 20)]
    assert [(f.severity, f.threshold, f.layer, f.channels, pytest.approx(f.value)) for f in findings] == expected


@pytest.mark.parametrize(
    ("beta", "gamma", "fires"), [(-3.09, 1.0, False), (-3.11, 1.0, True), (-6.19, 2.0, False), (-6.21, -2.0, True)]
)
def test_bn701_compares_beta_with_the_size_of_gamma(beta: float, gamma: float, fires: bool) -> None:
    assert bool(rule("BN701").check(closed(4, 4, beta, gamma=gamma))) is fires


def test_bn701_is_quiet_where_something_else_than_a_relu_reads_the_output_or_nothing_is_known() -> None:
    window = closed(4, 4)
    assert window.facts.structure is not None
    structure = replace(window.facts.structure, consumers=(("add", "relu"),))
    assert rule("BN701").check(replace(window, facts=replace(window.facts, structure=structure))) == []
    assert rule("BN701").check(replace(window, facts=replace(window.facts, structure=None))) == []


def test_bn701_lets_a_later_sample_veto_and_an_earlier_one_not() -> None:
    beta = torch.zeros(64, 4)
    beta[40:] = -5.0
    window = make_window(beta=beta, relu=True)
    for step, nonpositive, fires in ((50, 0.9, False), (50, 1.0, True), (50, math.nan, True), (39, 0.9, True)):
        sampled = replace(window, sample=a_sample(window, step=step, nonpositive=nonpositive))
        assert bool(rule("BN701").check(sampled)) is fires
    half = replace(window, sample=a_sample(window, step=50, nonpositive=[1.0, 0.2, 1.0, 0.2]))
    assert one("BN701", half).channels == (0, 2)


def test_bn701_dates_it_by_the_step_at_which_enough_channels_were_off() -> None:
    beta = torch.zeros(64, 4)
    beta[40:, :2] = -5.0
    assert one("BN701", make_window(beta=beta, relu=True)).first_step == 40


@pytest.mark.parametrize(("gamma", "fires"), [(0.0101, False), (0.0099, True), (-0.0099, True)])
def test_bn701_counts_a_gamma_below_a_hundredth_of_its_start_without_gradient_as_dead(
    gamma: float, fires: bool
) -> None:
    window = make_window(gamma=[gamma, 1.0], gamma_grad=[0.0, 0.1])
    assert bool(rule("BN701").check(window)) is fires


def test_bn701_is_quiet_about_a_small_gamma_with_a_gradient_even_in_one_step() -> None:
    assert rule("BN701").check(make_window(gamma=[0.0, 1.0], gamma_grad=[0.1, 0.1])) == []


def test_bn701_does_not_call_a_branch_dead_that_is_held_at_zero() -> None:
    held = {"gamma": 0.0, "gamma_grad": 0.0, "start_gamma": 0.0, "beta": -0.01, "relu": True}
    assert rule("BN701").check(make_window(**held)) == []
    assert rule("BN701").check(make_window(**{**held, "beta": 0.0})) == []


def test_bn701_does_not_judge_a_frozen_layer() -> None:
    assert rule("BN701").check(make_window(beta=-5.0, relu=True))
    assert rule("BN701").check(make_window(beta=-5.0, relu=True, affine_trains=False)) == []
    gradient = torch.tensor([0.0, 0.1]).repeat(64, 1)
    gradient[5, 0] = 0.1
    assert rule("BN701").check(make_window(gamma=[0.0, 1.0], gamma_grad=gradient)) == []


def test_bn701_is_quiet_about_zero_initialized_branches_and_unknown_gradients() -> None:
    assert rule("BN701").check(make_window(gamma=0.0, start_gamma=0.0)) == []
    assert rule("BN701").check(make_window(gamma=0.0, gamma_grad=math.nan)) == []
    assert rule("BN701").check(make_window(gamma=0.0, gamma_grad=0.0, steps=9)) == []


def test_bn701_reports_each_layer_separately() -> None:
    window = make_window(channels=(2, 2, 2), beta=[-5.0, 0.0, 0.0, 0.0, -5.0, -5.0], relu=True)
    assert [(f.layer, f.channels, f.severity) for f in rule("BN701").check(window)] == [
        (0, (0,), WARNING),
        (2, (0, 1), ERROR),
    ]


def test_bn105_does_not_call_constant_what_varies_little_under_a_large_eps() -> None:
    def judged(var: float, eps: float) -> Severity:
        window = make_window(batch_var=[var] * 4 + [1.0] * 4, running_var=[var] * 4 + [1.0] * 4)
        alive = torch.tensor([False] * 4 + [True] * 4)
        layers, baseline = replace(window.layers, eps=(eps,)), replace(window.baseline, alive=alive)
        [finding] = find("BN105").check(replace(window, layers=layers, baseline=baseline))
        return finding.severity

    assert judged(6e-6, 1e-3) is INFO
    assert judged(6e-8, 1e-3) is WARNING
    assert judged(6e-8, 1e-5) is WARNING


@pytest.mark.parametrize("leap", [1e3, 1e5])
def test_neither_bn105_nor_bn106_tells_of_batches_that_rounding_hides_behind_a_leap(leap: float) -> None:
    torch.manual_seed(0)
    model = torch.nn.BatchNorm1d(8)
    monitor = Monitor(model, sinks=[], on_alert="log", max_overhead=None)
    with monitor:
        for step in range(120):
            model(torch.randn(64, 8) * (leap if step == 60 else 1.0))
            monitor.step()
    assert not {"BN105", "BN106"} & {alert.code for alert in monitor.alerts}
