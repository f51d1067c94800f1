"""The contract that every rule keeps, whatever its window: see also `bnmonitor.testing.check_rule`."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bnmonitor import Finding, Rule, all_rules
from bnmonitor.layers import LayerTable
from bnmonitor.testing import check_rule, drawn_window, in_a_row, make_window
from bnmonitor.window import (
    CHANNEL_STATISTICS,
    LAYER_STATISTICS,
    PHASES,
    Bare,
    Baseline,
    EvaluationGap,
    Facts,
    HeldOut,
    Ledger,
    Loader,
    Moments,
    Operation,
    Place,
    Producer,
    RankStatistics,
    Sample,
    Structure,
    Window,
)

RULES = [pytest.param(rule, id=rule.name) for rule in all_rules()]
JUDGING = [pytest.param(rule, id=rule.name) for rule in all_rules() if not rule.code.startswith("BN0")]
SEEDS = st.integers(0, 2**31)
STEPS = st.sampled_from([1, 2, 3, 9, 12, 40])
CHANNELS = st.lists(st.sampled_from([1, 2, 5, 8]), min_size=1, max_size=3)
anything = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)


OF_RANKS = ("batch_mean", "batch_var", "batch_spread", "mean_spread", "var_spread")
OF_HELD_OUT = ("mean", "var", "running_mean", "running_var")


def random_window(seed: int, steps: int, channels: list[int], *, wild: bool = True, run: int | None = None) -> Window:
    """Make a window of anything: calm layers and broken ones, with NaN and infinity in a third of them.

    What belongs to the run and not to a layer (learning rates, the step of the sample) follows from ``run``.
    """
    rng = torch.Generator().manual_seed(seed)
    of_run = torch.Generator().manual_seed(seed if run is None else run)

    def coin(p: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) < p

    count, width = len(channels), sum(channels)
    layers = LayerTable(
        names=tuple(f"layer{i}" for i in range(count)),
        channels=tuple(channels),
        kinds=("BatchNorm2d",) * count,
        eps=tuple(1e-5 if bool(c) else 1e-3 for c in coin(0.8, count)),
        momentum=tuple(None if bool(c) else 0.1 for c in coin(0.1, count)),
        affine=tuple(coin(0.8, count).tolist()),
        tracking=(True,) * count,
        family=("batch",) * count,
    )
    owner = layers.owner

    def sprinkled(values: Tensor) -> Tensor:
        if not wild:
            return values
        spoiled = coin(0.35, count)[owner] & coin(0.2, *values.shape)
        strange = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
        return torch.where(spoiled, strange[torch.randint(4, values.shape, generator=rng)], values)

    def signed(p: float, log_scale: float) -> Tensor:
        """Per channel a calm value, or with probability p one of any size; with noise from step to step."""
        size = torch.where(coin(p, width), (log_scale * torch.randn(width, generator=rng)).exp(), 0.1)
        noise = 1 + 0.3 * torch.randn(steps, width, generator=rng) * coin(0.7, count)[owner]
        return torch.randn(width, generator=rng).sign() * size * noise

    def positive(p: float, log_scale: float) -> Tensor:
        return signed(p, log_scale).abs().mul(10)

    broken = torch.rand(1, generator=rng).item()
    rows = {
        "batch_mean": signed(broken, 3.0),
        "batch_var": positive(broken, 9.0),
        "running_mean": signed(broken, 3.0),
        "running_var": positive(broken, 9.0),
        "gamma": torch.where(coin(0.4, count)[owner], 1e-4, 1.0) * torch.ones(steps, width),
        "beta": torch.where(coin(0.4, count)[owner] & coin(0.7, width), -7.0, 0.2) * torch.ones(steps, width),
        "gamma_grad": torch.where(coin(0.5, width), 0.0, 0.01) * torch.ones(steps, width),
        "beta_grad": torch.where(coin(0.5, width), 0.0, 0.01) * torch.ones(steps, width),
        "shift": signed(broken, 2.0),
        "ratio": signed(broken, 2.0).exp(),
    }
    ledger, bare = random_ledger(seed, count, steps)
    rows["running_mean"][:, ledger.initial[owner]], rows["running_var"][:, ledger.initial[owner]] = 0.0, 1.0
    layers = replace(layers, tracking=tuple((~bare).tolist()))
    training = coin(0.7, count).expand(steps, count) ^ (coin(0.1, steps, count) if wild else False)

    def moments() -> Moments:
        return Moments(
            **{f.name: sprinkled(signed(0.5, 2.0)[0].abs().clamp(max=1.0)) for f in fields(Moments)},
        )

    sampled_at = int(torch.randint(steps, (), generator=of_run))
    sample = Sample(
        step=sampled_at,
        calls=torch.ones(count, dtype=torch.int64),
        eval_calls=coin(0.3, count).long(),
        size=torch.full((count,), 64),
        values=torch.full((count,), 64),
        input=moments(),
        output=moments(),
        between=sprinkled(torch.rand(width, generator=rng)),
        input_dtypes=typed(torch.float16, count, seed),
        distance=random_apart(seed, count),
        padding=torch.rand(count, generator=torch.Generator().manual_seed(seed)) ** 4,
    )
    apart = sprinkled(signed(0.5, 1.0)[0].abs())
    ranks = RankStatistics(
        step=sampled_at,
        world_size=2,
        size=torch.full((count,), 64.0),
        **dict.fromkeys(OF_RANKS, apart),
    )
    sizes = torch.randint(1, 20, (count,), generator=rng).float()
    return Window(
        layers=layers,
        steps=tuple(range(steps)),
        updates=(training & ~coin(0.1, steps, count)).long(),
        training=training,
        recovery=torch.zeros(steps, count, dtype=torch.int64),
        momentum=torch.tensor([m if m is not None else math.nan for m in layers.momentum]).expand(steps, count),
        variance=torch.ones(steps, count),
        baseline=Baseline(
            log_var=sprinkled(torch.where(coin(0.9, width), 0.0, 3.0)),
            spread=torch.full((width,), 0.1),
            offset=sprinkled(torch.rand(width, generator=rng))[:count],
            batch_distance=torch.where(torch.arange(count) == 0, torch.nan, 0.02),
            jump=torch.where(torch.arange(count) == 0, torch.nan, 0.02),
            rate=torch.full((count,), 0.5),
            alive=coin(0.8, width),
            gamma=torch.where(coin(0.8, width), 1.0, 0.0),
            mean=sprinkled(torch.zeros(width)),
            initial=(torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.8).double(),
            var=sprinkled(torch.ones(width)),
            updates=torch.where(coin(0.8, count), 1000, 3),
            forgotten=torch.where(coin(0.8, count), 100.0, 0.1).double(),
            sizes=torch.where(coin(0.9, count), sizes, math.nan),
            values=torch.where(coin(0.5, count), sizes, 1e5),
        ),
        facts=Facts(
            affine_trains=coin(0.6, count),
            optimizers=True,
            learning_rates=tuple(torch.rand(steps, generator=of_run).tolist()),
            ranks=ranks,
            evaluation="validation" if seed % 3 else "",
            decay=torch.where(torch.arange(count) % 2 == seed % 2, 0.05, 0.0) * (seed % 5 > 0),
            decoupled=torch.full((count,), seed % 4 < 2),
            buffer_dtypes=typed(torch.bfloat16, count, seed + 1),
            **of_the_run(steps, seed if run is None else run),
            gaps=EvaluationGap(step=sampled_at, gap=random_apart(seed + 1, count)[0], size=torch.full((count,), 64)),
            own_forward=tuple("BatchNorm2d" if bool(c) else "" for c in bare),
            auxiliary=tuple("teacher" if bool(c) else "" for c in bare | ledger.initial),
            structure=Structure(
                producer_trains=tuple(bool(c) for c in coin(0.6, count)),
                consumers=tuple(("relu",) if bool(c) else ("add",) for c in coin(0.8, count)),
                places=tuple(some_place(p, seed + i, channels[i]) for i, p in enumerate(in_a_row(count))),
                bare=(Bare(name="conv", nonlinearity="relu", first=False, near=0),) * (seed % 3 == 0),
                normalized=seed % 7,
            ),
            held_out=tuple(some_evaluation(seed + i, channels, sampled_at) for i in range(2)),
        ),
        sample=sample if bool(torch.rand((), generator=of_run) < 0.7) else None,
        ledger=ledger,
        fresh=min(10, steps),
        **{name: sprinkled(row) for name, row in rows.items()},
    )


def random_apart(seed: int, layers: int) -> Tensor:
    """Calls that differ or not, by chance or not."""
    scale = torch.tensor([[1.0], [9.0], [2.0], [9.0]])
    return torch.rand(4, layers, generator=torch.Generator().manual_seed(seed + 2)) * scale


def typed(dtype: torch.dtype, count: int, seed: int) -> tuple[torch.dtype, ...]:
    """A quarter of the layers in half precision."""
    half = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.25
    return tuple(dtype if h else torch.float32 for h in half.tolist())


def of_the_run(steps: int, seed: int) -> dict[str, Any]:
    """Facts of any run: its loader, its processes, its accumulation and its gradient scaler."""
    rng = torch.Generator().manual_seed(seed)

    def one_of(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=rng))]

    return {
        "world_size": one_of(1, 8),
        "accumulate": one_of(1, 8),
        "train_loader": one_of(None, Loader(batch_size=8, samples=one_of(801, 804), drop_last=False), Loader()),
        "skipped_steps": one_of((), tuple(torch.rand(steps, generator=rng).lt(0.1).tolist())),
        "unregistered": one_of((), ("8 channels, behind conv",)),
        "optimizer_count": one_of(1, 2),
        "converts": one_of(False, True),
    }


def random_ledger(seed: int, layers: int, steps: int) -> tuple[Ledger, Tensor]:
    """Make a ledger in which about every second layer is in order; also return which layers keep no statistics."""
    rng = torch.Generator().manual_seed(seed + 7)

    def coin(p: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) < p

    wrong = coin(0.5, layers)
    shape = (len(PHASES), layers)
    ledger = Ledger(
        steps=steps,
        seen=(coin(0.3, *shape) & wrong).long() * 3,
        expected=torch.zeros(shape, dtype=torch.int64),
        latest=(coin(0.2, *shape) & wrong).long() * 3,
        evaluated=coin(0.5, *shape),
        called=~(coin(0.3, layers) & wrong),
        initial=coin(0.3, layers) & wrong,
        tracks=~(coin(0.3, layers) & wrong),
        averaged=coin(0.1, layers),
        uses_training_statistics=coin(0.2, layers) & wrong,
        swapped=coin(0.2, layers),
        steps_stale=(coin(0.2, layers) & wrong).long() * 40,
        distance=torch.rand(2, layers, generator=rng).double().where(wrong, 0.0),
    )
    return ledger, coin(0.2, layers) & wrong & ~ledger.initial


def moved(places: tuple[Place, ...], by: int) -> tuple[Place, ...]:
    """The places of layers that other layers now come before."""
    return tuple(
        replace(
            p, predecessors=tuple(i + by for i in p.predecessors), follows=None if p.follows is None else p.follows + by
        )
        for p in places
    )


def some_place(place: Place, seed: int, channels: int) -> Place:
    """Put random operations around a layer."""
    rng = torch.Generator().manual_seed(seed)

    def coin() -> bool:
        return bool(torch.rand((), generator=rng) < 0.4)

    relu = Operation(kind="relu", role="nonlinearity")
    drop = Operation(kind="dropout", role="dropout", name="drop")
    producer = Producer(
        kind="convolution",
        role="weights",
        name="conv",
        features=channels,
        bias=coin(),
        shared=coin(),
        features_last=coin(),
    )
    return replace(
        place,
        shape=(4, channels, 7),
        producers=(producer,),
        between=(relu,) * coin(),
        dropouts=(drop,) * coin(),
        dropout=0.5,
        per_sample=coin(),
    )


def some_evaluation(seed: int, channels: list[int], step: int) -> HeldOut:
    """Make a random evaluation."""
    rng = torch.Generator().manual_seed(seed)
    rows = {name: torch.rand(sum(channels), generator=rng) for name in OF_HELD_OUT}
    return HeldOut(step=step, size=torch.full((len(channels),), 512), **rows)


def joined_windows(a: Window, b: Window) -> Window:
    """Lay two windows of the same run end to end."""
    table = {
        f.name: getattr(a.layers, f.name) + getattr(b.layers, f.name)
        for f in fields(LayerTable)
        if f.name not in ("names",)
    }
    names = tuple(f"layer{i}" for i in range(len(a.layers) + len(b.layers)))

    def joined(name: str, one: object, other: object) -> Tensor:
        return torch.cat([getattr(one, name), getattr(other, name)], -1)

    sample = None
    if a.sample is not None and b.sample is not None:
        sides = {
            side: Moments(
                **{f.name: joined(f.name, getattr(a.sample, side), getattr(b.sample, side)) for f in fields(Moments)}
            )
            for side in ("input", "output")
        }
        per_layer = {
            name: joined(name, a.sample, b.sample)
            for name in ("calls", "eval_calls", "size", "values", "between", "distance", "padding")
        }
        dtypes = a.sample.input_dtypes + b.sample.input_dtypes
        sample = Sample(step=a.sample.step, input_dtypes=dtypes, **per_layer, **sides)
    assert a.facts.structure is not None
    assert b.facts.structure is not None
    assert a.facts.ranks is not None
    of_ranks = {name: joined(name, a.facts.ranks, b.facts.ranks) for name in ("size", *OF_RANKS)}
    return replace(
        a,
        layers=LayerTable(names=names, **table),
        baseline=Baseline(**{f.name: joined(f.name, a.baseline, b.baseline) for f in fields(Baseline)}),
        facts=replace(
            a.facts,
            affine_trains=joined("affine_trains", a.facts, b.facts),
            decay=joined("decay", a.facts, b.facts),
            decoupled=joined("decoupled", a.facts, b.facts),
            ranks=replace(a.facts.ranks, **of_ranks),
            buffer_dtypes=a.facts.buffer_dtypes + b.facts.buffer_dtypes,
            auxiliary=a.facts.auxiliary + b.facts.auxiliary,
            own_forward=a.facts.own_forward + b.facts.own_forward,
            gaps=EvaluationGap(step=0, **{name: joined(name, a.facts.gaps, b.facts.gaps) for name in ("gap", "size")}),
            structure=Structure(
                producer_trains=a.facts.structure.producer_trains + b.facts.structure.producer_trains,
                consumers=a.facts.structure.consumers + b.facts.structure.consumers,
                places=a.facts.structure.places + moved(b.facts.structure.places, len(a.layers)),
                bare=a.facts.structure.bare
                + tuple(replace(c, near=c.near + len(a.layers)) for c in b.facts.structure.bare),
                normalized=a.facts.structure.normalized + b.facts.structure.normalized,
            ),
            held_out=tuple(
                HeldOut(step=one.step, **{name: joined(name, one, other) for name in ("size", *OF_HELD_OUT)})
                for one, other in zip(a.facts.held_out, b.facts.held_out, strict=True)
            ),
        ),
        sample=sample,
        ledger=Ledger(
            steps=a.ledger.steps,
            **{f.name: joined(f.name, a.ledger, b.ledger) for f in fields(Ledger) if f.name != "steps"},
        ),
        **{name: joined(name, a, b) for name in CHANNEL_STATISTICS + LAYER_STATISTICS},
    )


def shuffled(window: Window, seed: int) -> tuple[Window, list[list[int]]]:
    """Permute the channels within each layer; also return, by layer, the new place of each channel."""
    rng = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(c, generator=rng) for c in window.layers.channels]
    flat = torch.cat([order + start for order, start in zip(orders, window.layers.offsets, strict=False)])
    baseline = replace(
        window.baseline,
        **{
            name: getattr(window.baseline, name)[flat]
            for name in ("log_var", "spread", "alive", "gamma", "mean", "var")
        },
    )
    sample = window.sample
    if sample is not None:
        sides = {
            side: Moments(**{f.name: getattr(getattr(sample, side), f.name)[flat] for f in fields(Moments)})
            for side in ("input", "output")
        }
        sample = replace(sample, between=sample.between[flat], **sides)
    ranks = window.facts.ranks
    assert ranks is not None
    held_out = tuple(
        replace(seen, **{name: getattr(seen, name)[flat] for name in OF_HELD_OUT}) for seen in window.facts.held_out
    )
    of_ranks = {name: getattr(ranks, name)[flat] for name in OF_RANKS}
    facts = replace(window.facts, ranks=replace(ranks, **of_ranks), held_out=held_out)
    rows = {name: getattr(window, name)[:, flat] for name in CHANNEL_STATISTICS}
    return replace(window, baseline=baseline, facts=facts, sample=sample, **rows), [
        o.argsort().tolist() for o in orders
    ]


def essence(finding: Finding) -> tuple[object, ...]:
    """The content of a finding, with a tolerance for the order of a sum."""

    def rounded(value: float) -> object:
        return f"{value:.4g}"

    return (
        finding.severity,
        finding.layer,
        finding.layers,
        finding.channels,
        finding.first_step,
        rounded(finding.value),
        rounded(finding.threshold),
        finding.certain,
    )


@cache
def gallery() -> tuple[Window, ...]:
    return tuple(random_window(seed, 40, [8, 1, 5], wild=seed % 2 == 0) for seed in range(60))


@pytest.mark.parametrize("rule", JUDGING)
def test_random_windows_make_the_rule_fire_and_stay_quiet_so_that_the_contract_is_not_empty(rule: Rule) -> None:
    fired = [bool(rule.check(window)) for window in gallery()]
    if rule.code in ("BN301", "BN302"):  # need another momentum, tested on their own
        fired.append(bool(rule.check(_with_momentum(gallery()[1], 0.99 if rule.code == "BN301" else 0.0))))
    if rule.code == "BN705":  # needs a long window in which nothing moves
        fired.append(bool(rule.check(make_window(learning_rate=1e-8))))
    if rule.code == "BN706":  # needs a chain
        fired.append(
            bool(rule.check(make_window(channels=(1,) * 12, gamma_grad=1.3 ** -torch.arange(12.0), chain=True)))
        )
    if rule.code == "BN108":  # raw data, before there is a baseline
        window = gallery()[1]
        young = replace(window.baseline, log_var=torch.full_like(window.baseline.log_var, math.nan))
        fired.append(bool(rule.check(replace(window, baseline=young, batch_var=torch.full_like(window.gamma, 5e3)))))
    if rule.code == "BN206":  # needs a chain as well
        fired.append(bool(rule.check(make_window(channels=(1,) * 12, sizes=16, chain=True))))
    if rule.code in ("BN601", "BN602"):  # need more steps, and batches that go together
        fired.append(bool(rule.check(drawn_window(spread=4.0) if rule.code == "BN601" else drawn_window(turns=2.0))))
    assert any(fired)
    assert not all(fired)


def _with_momentum(window: Window, momentum: float) -> Window:
    return replace(window, momentum=torch.full_like(window.momentum, momentum), updates=torch.ones_like(window.updates))


@pytest.mark.parametrize("rule", RULES)
@anything
@given(seed=SEEDS, steps=STEPS, channels=CHANNELS)
def test_rule_keeps_the_contract_on_any_window(rule: Rule, seed: int, steps: int, channels: list[int]) -> None:
    check_rule(rule, random_window(seed, steps, channels))


@pytest.mark.parametrize("rule", RULES)
@anything
@given(seed=SEEDS, channels=CHANNELS)
def test_rule_builds_no_graph_and_returns_only_plain_python(rule: Rule, seed: int, channels: list[int]) -> None:
    window = random_window(seed, 40, channels)
    window = replace(window, gamma=window.gamma.requires_grad_())
    for finding in rule.check(window):
        assert type(finding.value) is float
        assert type(finding.threshold) is float
        assert type(finding.first_step) is int
        assert all(type(c) is int for c in finding.channels)
        assert all(type(i) is int for i in finding.layers)
        assert list(finding.channels) == sorted(set(finding.channels))


@pytest.mark.parametrize("rule", RULES)
@anything
@given(seed=SEEDS, channels=CHANNELS)
def test_two_models_side_by_side_give_the_findings_of_each(rule: Rule, seed: int, channels: list[int]) -> None:
    a = random_window(seed, 40, channels, run=seed)
    b = random_window(seed + 1, 40, [5, 2], run=seed)
    shift = len(a.layers)
    of_a = rule.check(a)
    of_b = [
        replace(f, layer=None if f.layer is None else f.layer + shift, layers=tuple(i + shift for i in f.layers))
        for f in rule.check(b)
    ]
    together = rule.check(joined_windows(a, b))
    if any(
        f.layers or f.layer is None for f in (*of_a, *of_b, *together)
    ):  # a fault of the whole model is reported once, for all its layers
        assert len(together) <= 1
        if rule.code == "BN401":
            assert {i for f in together for i in f.layers} == {i for f in (*of_a, *of_b) for i in f.layers}
        return
    assert [essence(f) for f in together] == [essence(f) for f in (*of_a, *of_b)]


@pytest.mark.parametrize("rule", RULES)
@anything
@given(seed=SEEDS, channels=CHANNELS)
def test_permuting_channels_within_a_layer_permutes_the_channels_that_are_named(
    rule: Rule, seed: int, channels: list[int]
) -> None:
    window = random_window(seed, 40, channels)
    mixed, place = shuffled(window, seed)
    expected = [
        replace(f, channels=tuple(sorted(place[f.layer][c] for c in f.channels))) if f.layer is not None else f
        for f in rule.check(window)
    ]
    assert [essence(f) for f in rule.check(mixed)] == [essence(f) for f in expected]


@pytest.mark.filterwarnings("ignore:std.*degrees of freedom")  # BN201: see test_rules.py
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [1, 2])
def test_window_of_one_or_two_steps_is_judged_without_an_error(rule: Rule, steps: int) -> None:
    for seed in range(20):
        check_rule(rule, random_window(seed, steps, [5, 1, 8]))


@pytest.mark.parametrize("rule", RULES)
def test_layers_with_unrecovered_batches_raise_no_error_in_the_rule(rule: Rule) -> None:
    for window in gallery()[:20]:
        hidden = {
            name: torch.full_like(getattr(window, name), math.nan)
            for name in ("batch_mean", "batch_var", "shift", "ratio")
        }
        check_rule(rule, replace(window, **hidden))


@pytest.mark.parametrize("rule", RULES)
def test_judged_value_is_finite_or_infinite_but_not_nan(rule: Rule) -> None:
    for window in gallery():
        for finding in rule.check(window):
            assert not math.isnan(finding.value), finding.message
            assert not math.isnan(finding.threshold), finding.message


@pytest.mark.parametrize("rule", RULES)
def test_rule_judges_a_window_in_double_precision_as_well(rule: Rule) -> None:
    for window in gallery()[:20]:
        rows = {name: getattr(window, name).double() for name in CHANNEL_STATISTICS}
        check_rule(rule, replace(window, **rows))


@pytest.mark.parametrize("rule", JUDGING)
def test_rule_reports_nothing_about_a_model_that_never_ran(rule: Rule) -> None:
    window = random_window(0, 12, [4, 4], wild=False)
    rows = {name: torch.full_like(getattr(window, name), math.nan) for name in CHANNEL_STATISTICS}
    rows |= {
        "running_mean": torch.zeros(12, 8),
        "running_var": torch.ones(12, 8),
        "gamma": torch.ones(12, 8),
        "beta": torch.zeros(12, 8),
        "updates": torch.zeros(12, 2, dtype=torch.int64),
        "training": torch.ones(12, 2, dtype=torch.bool),
    }
    facts = replace(window.facts, unregistered=(), gaps=None, converts=False, ranks=None, structure=None, held_out=())
    unknown = replace(window.baseline, sizes=torch.full((2,), math.nan), gamma=torch.ones(8))
    blank = Ledger.blank(2)
    assert rule.check(replace(window, baseline=unknown, facts=facts, sample=None, ledger=blank, **rows)) == []
