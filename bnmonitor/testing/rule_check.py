"""What every rule owes, as a check that a test calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnmonitor.rules import Rule
from bnmonitor.window import Window


def check_rule(rule: Rule, window: Window) -> None:
    """Assert what every rule owes: it is pure, deterministic, blind to the order of layers, and survives NaN.

    Args:
        rule: The rule.
        window: Any window; its statistics may be random.

    Raises:
        AssertionError: The rule broke one of these.
    """
    before = {name: value.clone() for name, value in vars(window).items() if isinstance(value, Tensor)}
    findings = rule.check(window)
    for name, value in before.items():
        assert torch.equal(value.nan_to_num(), getattr(window, name).nan_to_num()), f"{rule.code} changed {name}"
    # By their text, since a NaN does not equal itself.
    assert repr(findings) == repr(rule.check(window)), f"{rule.code} is not deterministic"
    for finding in findings:
        at = finding.layer
        assert at is None or 0 <= at < len(window.layers), f"{rule.code} names a layer that there is not"
        size = 0 if at is None else window.layers.channels[at]
        assert all(0 <= c < size for c in finding.channels), f"{rule.code} names a channel that the layer has not"
        assert finding.first_step in window.steps, f"{rule.code} names a step outside the window"
        assert finding.message, f"{rule.code} says nothing"
        assert finding.advice, f"{rule.code} has no advice"
    hidden: dict[str, Any] = {
        name: torch.full_like(t, torch.nan) for name, t in before.items() if t.is_floating_point()
    }
    rule.check(replace(window, **hidden))
