"""Finds the page of a symptom by the words that a user describes it with."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache

from bnmonitor.symptoms.pages import Symptom, all_symptoms

_IGNORED = frozenset(
    re.findall(
        r"\w+",
        "a about after all am an and any are as at be but by can do does from get gets had has have how i if in into "
        "is it its me my no not of on or our so some than that the their then there this to too very was we what when "
        "where which while why will with wrong you your",
    )
)
"""Words that every question has."""
_TITLE, _WORDS, _CAUSES, _TEXT = 3.0, 2.0, 1.0, 0.2
"""What a word counts in each part of a page."""

_NEAR = 0.5
"""A page that counts this share of the best is named beside it."""


def search_symptoms(words: str) -> tuple[Symptom, ...]:
    """Return the symptoms that words describe, the best first; those that fit far less well are left out.

    >>> [symptom.name for symptom in search_symptoms("loss is NaN after hours")][0]
    'nan-after-hours'
    >>> search_symptoms("xylophone")
    ()

    Args:
        words: What the user sees, or the name of a page.
    """
    symptoms = all_symptoms()
    exact = [symptom for symptom in symptoms if symptom.name == words.strip().lower()]
    if exact:
        return tuple(exact)
    asked = set(_tokens([words]))
    scores = {symptom.name: _score(symptom, asked) for symptom in symptoms}
    best = max(scores.values())
    found = sorted((s for s in symptoms if scores[s.name] > _NEAR * best), key=lambda s: -scores[s.name])
    return tuple(found) if best >= _CAUSES else ()


def _score(symptom: Symptom, asked: Iterable[str]) -> float:
    weights, rarity = _weights(symptom), _rarity()
    score = 0.0
    for word in asked:
        known = word if word in rarity else next(iter(get_close_matches(word, rarity, n=1, cutoff=0.8)), "")
        score += weights.get(known, 0.0) * rarity.get(known, 0.0)
    return score


@cache
def _weights(symptom: Symptom) -> dict[str, float]:
    parts: tuple[tuple[float, Sequence[str]], ...] = (
        (_TEXT, [symptom.text, *(reason.text for reason in symptom.reasons)]),
        (_CAUSES, [f"{reason.title} {reason.cause}" for reason in symptom.reasons]),
        (_WORDS, symptom.words),
        (_TITLE, [symptom.title]),
    )
    return {word: weight for weight, texts in parts for word in _tokens(texts)}


@cache
def _rarity() -> dict[str, float]:
    """How much each word says: little if most pages have it."""
    pages = Counter(word for symptom in all_symptoms() for word, w in _weights(symptom).items() if w >= _CAUSES)
    rest = {word for symptom in all_symptoms() for word in _weights(symptom)} - pages.keys()
    total = len(all_symptoms())
    return {**dict.fromkeys(rest, 1.0), **{word: math.log(1 + total / count) for word, count in pages.items()}}


def _tokens(texts: Iterable[str]) -> list[str]:
    words = (word for text in texts for word in re.findall(r"[a-z0-9%]+", text.lower().replace("'", "")))
    return [_stem(word) for word in words if word not in _IGNORED]


def _stem(word: str) -> str:
    """Cut the endings that say nothing.

    >>> _stem("explodes"), _stem("exploding"), _stem("gans"), _stem("loss")
    ('explod', 'explod', 'gan', 'loss')
    """
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word[: -len(ending)]
    return word
