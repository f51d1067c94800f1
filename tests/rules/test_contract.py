"""Every rule of the catalogue keeps the contract of rules, and the random windows are not empty for any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch

from bnmonitor import Rule, all_rules
from bnmonitor.rules import find
from bnmonitor.testing import drawn_window, held_out_window, make_sample, make_structure, make_window, path_window
from bnmonitor.testing.contracts import RuleContract
from bnmonitor.testing.contracts.joined import joined_windows
from bnmonitor.testing.contracts.windows import random_window
from bnmonitor.window import Recovery, Window

JUDGING = [pytest.param(rule, id=rule.name) for rule in all_rules() if not rule.code.startswith("BN0")]


@cache
def gallery() -> tuple[Window, ...]:
    return tuple(random_window(seed, 40, [8, 1, 5], wild=seed % 2 == 0) for seed in range(60))


def raw_data() -> Window:
    window = make_window(chain=True)
    return replace(window, sample=replace(make_sample(window.layers), data=torch.tensor([[2e4], [2.0]])))


def with_momentum(momentum: float) -> Window:
    window = gallery()[1]
    return replace(window, momentum=torch.full_like(window.momentum, momentum), updates=torch.ones_like(window.updates))


def called_at_two_places() -> Window:
    window = make_window(channels=[4], updates=2, facts={"structure": make_structure(calls=2, places=2)})
    sample = make_sample(window.layers, calls=2)
    sample = replace(sample, distance=torch.tensor([[0.6], [9.0], [0.0], [0.0]], dtype=torch.float64))
    return replace(window, earlier=(sample,), sample=sample)


def called_without_gradient() -> Window:
    window = make_window(channels=[4], updates=5)
    sample = make_sample(window.layers, side_calls=4, side_size=4)
    return replace(window, earlier=(sample,), sample=sample)


def handwritten() -> Window:
    """Statistics that are each batch's own, as a sampled step shows."""
    window = make_window(running_mean=torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), channels=(8,))
    batch = make_sample(window.layers, step=window.steps[1], input={"mean": window.running_mean[1]})
    return replace(window, recovery=torch.full((64, 1), int(Recovery.FOREIGN)), sample=batch)


def outlier_batch() -> Window:
    variances = torch.ones(64, 3)
    variances[40] = 1e4
    return make_window(batch_var=variances, facts={"structure": make_structure(root=True)})


MADE: dict[str, Callable[[], Window]] = {
    "BN108": raw_data,
    "BN206": lambda: make_window(channels=(1,) * 12, sizes=16, chain=True),
    "BN301": lambda: with_momentum(0.99),
    "BN302": lambda: with_momentum(0.0),
    "BN306": handwritten,
    "BN508": called_without_gradient,
    "BN509": called_at_two_places,
    "BN510": lambda: replace(gallery()[1], facts=replace(gallery()[1].facts, unwatched={"norm": "a class of its own"})),
    "BN512": lambda: make_window(ledger={"missed": {"validation": 1}}),
    "BN601": lambda: drawn_window(spread=4.0),
    "BN602": lambda: drawn_window(turns=2.0),
    "BN605": lambda: path_window(0.6),
    "BN603": lambda: held_out_window(mean=2.0),
    "BN606": outlier_batch,
    "BN705": lambda: make_window(learning_rate=1e-8),
    "BN706": lambda: make_window(channels=(1,) * 12, gamma_grad=1.3 ** -torch.arange(12.0), chain=True),
    "BN708": lambda: make_window(batch_mean=torch.tensor([0.0, 0.1] * 32)[:, None].expand(64, 8), channels=(8,)),
}
"""Windows for rules that no window of the gallery makes fire."""


@pytest.mark.filterwarnings("ignore:std.*degrees of freedom")  # BN201: see test_rules.py
class TestCatalogue(RuleContract):
    @pytest.fixture(params=JUDGING)
    def rule(self, request: pytest.FixtureRequest) -> Rule:
        rule: Rule = request.param
        return rule

    def faulty(self, rule: Rule) -> Window:
        return MADE[rule.code]() if rule.code in MADE else next(w for w in gallery() if rule.check(w))

    def test_not_every_random_window_makes_it_fire(self, rule: Rule) -> None:
        assert not all(rule.check(window) for window in gallery())

    def test_it_judges_a_window_of_any_length(self, rule: Rule) -> None:
        for steps in range(1, 14):
            window = random_window(steps, steps, [8, 1, 5], wild=True)
            exploded = replace(window, batch_var=window.batch_var * torch.logspace(0, 9, steps)[:, None])
            for fresh in range(steps + 1):
                assert all(f.layer is None or 0 <= f.layer < 3 for f in rule.check(replace(exploded, fresh=fresh)))


@pytest.mark.parametrize("code", ["BN001", "BN002", "BN003"])
def test_a_rule_of_the_monitor_itself_judges_no_window(code: str) -> None:
    assert all(find(code).check(window) == [] for window in gallery())


def test_a_fault_of_the_whole_model_holds_the_layers_of_both_networks() -> None:
    rule, fired = find("BN401"), 0
    for seed in range(24):
        a, b = random_window(seed, 40, [8, 1, 5], run=seed), random_window(seed + 1, 40, [5, 2], run=seed)
        of_a = {i for f in rule.check(a) for i in f.layers}
        of_b = {i + len(a.layers) for f in rule.check(b) for i in f.layers}
        assert {i for f in rule.check(joined_windows(a, b)) for i in f.layers} == of_a | of_b
        fired += bool(of_a | of_b)
    assert fired
