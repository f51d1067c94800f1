"""What a rule promises."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bnmonitor.rules import Finding, Rule
from bnmonitor.testing.contracts.joined import essence, joined_windows, shuffled
from bnmonitor.testing.contracts.windows import random_window
from bnmonitor.testing.rule_check import check_rule
from bnmonitor.testing.windows import make_window
from bnmonitor.window import CHANNEL_STATISTICS, Ledger, Window

SHAPES = (
    *((40, [8, 1, 5]), (40, [5]), (40, [2, 8])),
    *((12, [1, 2]), (9, [8]), (3, [5, 5, 1]), (2, [5, 1, 8]), (1, [5, 1, 8])),
)
"""Steps and channels of the random windows."""

UNKNOWN = ("batch_mean", "batch_var", "shift", "ratio")
"""Statistics that are NaN where a batch could not be recovered."""

NOT_A_COMMAND = frozenset({"a", "an", "the", "if", "it", "its", "this", "you", "your", "there"})
"""Words that an imperative sentence does not begin with."""


@cache
def windows() -> tuple[Window, ...]:
    """Return random windows, half of them with NaN and infinity."""
    return tuple(random_window(seed, *SHAPES[seed % 8], wild=seed // 8 % 2 == 0) for seed in range(48))


@cache
def pairs() -> tuple[tuple[Window, Window, Window, Window], ...]:
    """Return two windows of one run, the model that holds both networks, and the same with the second network first."""
    found = []
    for seed in range(24):
        a = random_window(seed, 40, SHAPES[seed % 8][1], run=seed)
        b = random_window(seed + 1, 40, [5, 2], run=seed)
        found.append((a, b, joined_windows(a, b), joined_windows(b, a)))
    return tuple(found)


def sound_window(*, layers: int = 3, steps: int = 64) -> Window:
    """Make the window of a healthy training: batches differ, and gamma moves.

    All layers are alike, so that a rule that looks at a few of them first decides by few as by many.
    """
    noise = torch.randn(2, steps, 4, generator=torch.Generator().manual_seed(3)).repeat(1, 1, layers)
    moving = 1 + torch.linspace(0, 0.05, steps)[:, None].expand(steps, 4 * layers)
    return make_window(
        channels=(4,) * layers,
        steps=steps,
        batch_mean=0.05 * noise[0],
        batch_var=(0.05 * noise[1]).exp(),
        gamma=moving,
    )


class Operations(TorchDispatchMode):
    """Counts the tensor operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        self.count += 1
        return func(*args, **(kwargs or {}))


class RuleContract:
    """A rule judges a window and nothing else: it keeps no state, changes no tensor, and treats every layer alike.

    Derive a class whose name begins with ``Test``, give it a fixture ``rule`` and override :meth:`faulty`; override
    :meth:`healthy` with windows that are close to the fault and still sound.
    """

    def faulty(self, rule: Rule) -> Window:
        """Return a window in which the rule finds its fault."""
        raise NotImplementedError

    def healthy(self, rule: Rule) -> Sequence[Window]:
        """Return windows in which the rule finds nothing."""
        return sound_window(), sound_window(layers=1), sound_window(steps=2)

    def test_it_finds_its_own_fault(self, rule: Rule) -> None:
        """It reports at least one finding in the window that shows the fault."""
        assert rule.check(self.faulty(rule))

    def test_it_is_silent_on_healthy_windows(self, rule: Rule) -> None:
        """It reports nothing in windows without the fault."""
        for window in self.healthy(rule):
            assert rule.check(window) == []

    def test_it_changes_nothing_and_repeats_itself(self, rule: Rule) -> None:
        """It leaves every window as it is, gives the same findings twice, and names what the window has."""
        for window in windows():
            check_rule(rule, window)

    def test_it_judges_a_window_in_double_precision(self, rule: Rule) -> None:
        """It accepts statistics in float64 as well as in float32."""
        for window in windows()[:16]:
            double: dict[str, Any] = {name: getattr(window, name).double() for name in CHANNEL_STATISTICS}
            check_rule(rule, replace(window, **double))

    def test_it_accepts_batches_that_could_not_be_recovered(self, rule: Rule) -> None:
        """It does not fail where the batch statistics are unknown."""
        for window in windows()[:16]:
            unknown: dict[str, Any] = {name: torch.full_like(getattr(window, name), math.nan) for name in UNKNOWN}
            check_rule(rule, replace(window, **unknown))

    def test_it_reports_plain_numbers(self, rule: Rule) -> None:
        """Its findings hold numbers and no tensors, none of them NaN, and channels in ascending order."""
        for window in (self.faulty(rule), *windows()):
            for finding in rule.check(replace(window, gamma=window.gamma.clone().requires_grad_())):
                assert type(finding.value) is type(finding.threshold) is float
                assert not math.isnan(finding.value), finding.message
                assert not math.isnan(finding.threshold), finding.message
                assert all(type(n) is int for n in (finding.first_step, *finding.channels, *finding.layers))
                assert list(finding.channels) == sorted(set(finding.channels))

    def test_its_advice_is_one_imperative_sentence(self, rule: Rule) -> None:
        """Its advice is one line, without a full stop, and begins with what to do."""
        for finding in (*rule.check(self.faulty(rule)), *(f for w in windows() for f in rule.check(w))):
            assert "\n" not in finding.advice
            assert not re.search(r"\.\s+[A-Z]|\.$", finding.advice.removesuffix("...)")), finding.advice
            assert finding.advice.split()[0].lower().strip(",:;") not in NOT_A_COMMAND, finding.advice

    def test_two_networks_in_one_model_give_the_findings_of_each(self, rule: Rule) -> None:
        """It judges each layer by itself, in any order of the networks; it reports a fault of the whole model once."""
        for a, b, *joined in pairs():
            of_a, of_b = rule.check(a), rule.check(b)
            orders = ([*of_a, *_moved(of_b, len(a.layers))], [*of_b, *_moved(of_a, len(b.layers))])
            for window, expected in zip(joined, orders, strict=True):
                found = rule.check(window)
                if any(f.layers or f.layer is None for f in (*expected, *found)):
                    assert len(found) <= 1
                else:
                    assert [essence(f) for f in found] == [essence(f) for f in expected]

    def test_permuting_channels_within_a_layer_permutes_the_channels_it_names(self, rule: Rule) -> None:
        """It treats all channels of a layer alike."""
        for seed, window in enumerate(windows()):
            mixed, place = shuffled(window, seed)
            expected = [
                f if f.layer is None else replace(f, channels=tuple(sorted(place[f.layer][c] for c in f.channels)))
                for f in rule.check(window)
            ]
            assert [essence(f) for f in rule.check(mixed)] == [essence(f) for f in expected]

    def test_it_does_not_loop_over_healthy_layers(self, rule: Rule) -> None:
        """It runs as many tensor operations for 40 healthy layers as for 4."""
        few, many = (_operations(rule, sound_window(layers=count)) for count in (4, 40))
        assert few == many

    def test_it_reports_nothing_of_a_model_that_never_ran(self, rule: Rule) -> None:
        """It needs evidence: without a training step there is no fault."""
        assert rule.check(never_ran()) == []


def never_ran() -> Window:
    """Return the window of a model that was not trained yet."""
    window = random_window(0, 12, [4, 4], wild=False)
    rows: dict[str, Any] = {name: torch.full_like(getattr(window, name), math.nan) for name in CHANNEL_STATISTICS}
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
    return replace(window, baseline=unknown, facts=facts, sample=None, ledger=Ledger.blank(2), **rows)


def _moved(findings: Sequence[Finding], by: int) -> list[Finding]:
    return [
        replace(f, layer=None if f.layer is None else f.layer + by, layers=tuple(i + by for i in f.layers))
        for f in findings
    ]


def _operations(rule: Rule, window: Window) -> int:
    assert len(window.layers.owner) == window.layers.total  # computed here, once for each table of layers
    counted = Operations()
    with counted:
        assert rule.check(window) == []
    return counted.count
