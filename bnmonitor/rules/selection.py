"""Selects rules by code, prefix or name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bnmonitor._text import nearest
from bnmonitor.rules.base import Rule
from bnmonitor.rules.catalogue import all_rules
from bnmonitor.rules.needs import NEEDS
from bnmonitor.rules.thresholds import ForLayers, Thresholds, with_thresholds


def find(word: str, rules: Sequence[Rule] | None = None) -> Rule:
    """Return the rule with a code or name.

    Raises:
        ValueError: No rule has it; the message names the nearest.
    """
    every = all_rules() if rules is None else rules
    for rule in every:
        if word.lower() in (rule.code.lower(), rule.name):
            return rule
    raise ValueError(f"no rule is called {word!r}{near(word, every)}; `bnmonitor rules` lists them all")


def search(words: Sequence[str], rules: Sequence[Rule] | None = None) -> list[Rule]:
    """Return the rules whose code begins with one of the words, or whose name contains it.

    Raises:
        ValueError: A word matches no rule; the message names the nearest.
    """
    every = all_rules() if rules is None else rules
    found: set[str] = set()
    for word in words:
        codes = {r.code for r in every if word and (r.code.startswith(word.upper()) or word.lower() in r.name)}
        if not codes:
            raise ValueError(f"no rule is called {word!r}{near(word, every)}; `bnmonitor rules` lists them all")
        found |= codes
    return [rule for rule in every if rule.code in found]


def near(word: str, rules: Sequence[Rule], names: Sequence[str] = ()) -> str:
    """Return ``"; did you mean 'BN806'?"`` for the nearest code or name, or nothing; ``names`` are further names.

    >>> near("BN399", all_rules()), near("stale-statistic", all_rules())
    ("; did you mean 'BN306'?", "; did you mean 'stale-statistics'?")
    """
    wanted = re.fullmatch(r"(?:BN)?(\d{1,6})", word.strip(), flags=re.IGNORECASE)
    if wanted is None:
        return nearest(word.lower(), [*(w for rule in rules for w in (rule.name, rule.code)), *names])
    codes = [rule.code for rule in rules if re.fullmatch(r"BN\d{3}", rule.code)]
    code, number = f"BN{wanted[1]}", int(wanted[1].ljust(3, "0"))
    # The family first: BN399 is one of BN3.
    alike = {c: next((i for i in range(5) if c[i] != code[i : i + 1]), 5) for c in codes}
    closest = min(codes, key=lambda c: (-alike[c], abs(int(c[2:]) - number)), default=None)
    return "" if closest is None else f"; did you mean {closest!r}?"


def choose(
    select: Sequence[str] = ("default",),
    ignore: Sequence[str] = (),
    rules: Sequence[Rule] | Mapping[str, Thresholds] | None = None,
) -> tuple[Rule, ...]:
    """Return the rules that a run uses.

    Args:
        select: Codes, prefixes of codes, names, ``"default"`` or ``"all"``.
        ignore: Codes, prefixes of codes or names to leave out.
        rules: Own rules, which run unless ignored and replace a rule of the same code; or thresholds by rule:
            ``{"small-batch": {"warn_below": 8}}``; see :func:`by_layer` for thresholds of some layers.

    Raises:
        ValueError: A word matches no rule, a threshold does not exist, or it is not a number.
        TypeError: ``rules`` holds something that is not a rule.
    """
    available = {rule.code: rule for rule in all_rules()}
    own: set[str] = set()
    if isinstance(rules, Mapping):
        for word, thresholds in rules.items():
            if not isinstance(word, str):
                raise TypeError(f"rules= must map codes or names of rules to thresholds, got the key {word!r}")
            rule, _ = with_thresholds(find(word), thresholds)
            available[rule.code] = rule
    elif rules is not None and not isinstance(rules, Sequence):
        raise TypeError(
            f"rules= must be a sequence of Rule instances or a mapping of thresholds by rule, got {rules!r}"
        )
    else:
        for rule in rules or ():
            if not isinstance(rule, Rule):
                hint = "pass an instance" if isinstance(rule, type) else "derive it from bnmonitor.rules.Rule"
                raise TypeError(f"rules= must hold Rule instances or map rules to thresholds, got {rule!r}; {hint}")
            words = [need.word for need in NEEDS]
            for word in sorted(rule.needs.difference(words)):
                raise ValueError(
                    f"rule {rule.name!r} needs {word!r}, which is not known{nearest(word, words)}; "
                    f"a rule may need {', '.join(words)}"
                )
            available[rule.code] = rule
            own.add(rule.code)
    every = tuple(available.values())
    chosen = {code for word in select for code in _matching(word, every, "select")} | own
    left_out = {code for word in ignore for code in _matching(word, every, "ignore")}
    return tuple(rule for code, rule in sorted(available.items()) if code in chosen - left_out)


def by_layer(rules: Sequence[Rule] | Mapping[str, Thresholds] | None) -> dict[str, tuple[ForLayers, ...]]:
    """Return the rules that have other thresholds in some layers, by code.

    ``{"small-batch": {"warn_below": 8, "layers": {"head.*": {"warn_below": 4}}}}`` warns below 4 samples in the layers
    that ``head.*`` matches, and below 8 in all others. If several patterns match a layer, the first applies.
    """
    if not isinstance(rules, Mapping):
        return {}
    found = {find(word).code: with_thresholds(find(word), thresholds)[1] for word, thresholds in rules.items()}
    return {code: special for code, special in found.items() if special}


def _matching(word: str, rules: Sequence[Rule], argument: str) -> list[str]:
    if word == "all":
        return [rule.code for rule in rules]
    if word == "default":
        return [rule.code for rule in rules if rule.default]
    found = [r.code for r in rules if r.name == word or (word and r.code.startswith(word.upper()))]
    if not found:
        raise ValueError(f"{argument}={word!r} matches no rule{near(word, rules)}; `bnmonitor rules` lists them all")
    return found
