"""Thresholds that users set, for a rule in all layers or in some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase

from bnmonitor._text import nearest
from bnmonitor.layers import LayerTable
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window

LAYERS = "layers"
"""The key, among a rule's thresholds, of the thresholds for some layers by glob pattern."""

Thresholds = Mapping[str, float | Mapping[str, Mapping[str, float]]]
"""Thresholds of a rule by name, and under ``layers`` the thresholds for some layers by pattern."""


@dataclass(frozen=True)
class ForLayers:
    """A rule with its thresholds for the layers that a pattern matches."""

    pattern: str
    rule: Rule


def with_thresholds(rule: Rule, thresholds: Mapping[str, object]) -> tuple[Rule, tuple[ForLayers, ...]]:
    """Return a rule with other thresholds, and the variants of the rule for some layers.

    A variant has the thresholds that were set for the rule, except those that were set for its layers.

    Raises:
        ValueError: A threshold does not exist, or is not a number.
        TypeError: An argument is not a mapping of thresholds.
    """
    if not isinstance(thresholds, Mapping):
        raise TypeError(f"rules= must map {rule.name!r} to thresholds by name, {_example(rule)}, got {thresholds!r}")
    everywhere = _set(rule, {name: value for name, value in thresholds.items() if name != LAYERS})
    patterns = thresholds.get(LAYERS, {})
    if not isinstance(patterns, Mapping) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f"rules= must map 'layers' of {rule.name!r} to thresholds by pattern of layer names, "
            f"such as {{'head.*': {{...}}}}, got {patterns!r}"
        )
    for pattern, some in patterns.items():
        if not isinstance(some, Mapping):
            raise TypeError(
                f"rules= must map the pattern {pattern!r} of {rule.name!r} to thresholds by name, {_example(rule)}, "
                f"got {some!r}"
            )
    return everywhere, tuple(ForLayers(pattern, _set(everywhere, some)) for pattern, some in patterns.items())


def check_patterns(special: Mapping[str, Sequence[ForLayers]], layers: LayerTable) -> None:
    """Refuse a pattern that matches no layer: a typing error would leave its thresholds without effect.

    Raises:
        ValueError: A pattern matches no layer.
    """
    for variants in special.values():
        for variant in variants:
            if len(layers) and not any(fnmatchcase(name, variant.pattern) for name in layers.names):
                raise ValueError(
                    f"rules: layers={variant.pattern!r} of {variant.rule.name!r} matches no BatchNorm layer"
                    f"{nearest(variant.pattern, layers.names)}; the model has {len(layers)}, the first is "
                    f"{layers.names[0]!r}"
                )


def judge(rule: Rule, special: Sequence[ForLayers], window: Window) -> list[Finding]:
    """Return a rule's findings; the first variant whose pattern matches a layer judges it, else the rule itself."""
    if not special:
        return rule.check(window)
    findings: list[Finding] = []
    left = set(range(len(window.layers)))
    for variant in special:
        mine = {i for i in left if fnmatchcase(window.layers.names[i], variant.pattern)}
        left -= mine
        findings += [kept for f in variant.rule.check(window) if (kept := _within(f, mine)) is not None]
    rest = [kept for f in rule.check(window) if (kept := f if f.layer is None else _within(f, left)) is not None]
    return findings + rest


def _within(finding: Finding, layers: set[int]) -> Finding | None:
    """The part of a finding that concerns some layers; None if no part does."""
    if not finding.layers:
        return finding if finding.layer in layers else None
    mine = tuple(i for i in finding.layers if i in layers)
    return replace(finding, layer=mine[0], layers=mine) if mine else None


def _set(rule: Rule, thresholds: Mapping[str, object]) -> Rule:
    known = [f.name for f in fields(rule)]
    for name, value in thresholds.items():
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"rule {rule.name!r} has no threshold {name!r}{nearest(str(name), known)}; {has}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise ValueError(f"threshold {name!r} of rule {rule.name!r} must be a number, got {value!r}")
    return replace(rule, **dict(thresholds))


def _example(rule: Rule) -> str:
    known = [f.name for f in fields(rule)]
    return f"such as {{{rule.name!r}: {{{known[0] if known else 'threshold'!r}: ...}}}}"
