"""The pages of the symptoms, read from the Markdown files beside this module."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TEXTS = Path(__file__).parent / "texts"

ORDER = (
    "validation-explodes",
    "nan-after-hours",
    "loss-stuck",
    "eval-at-chance",
    "eval-jumps",
    "train-mode-only",
    "fine-tuning-got-worse",
    "batch-of-one-or-two",
    "ddp-differs",
    "ema-worse-than-raw",
    "export-differs",
    "gan",
    "reinforcement-learning",
    "semi-supervised",
)
"""The symptoms as the index lists them: what people meet most first, and special kinds of training last."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_WORDS = re.compile(r"<!-- words: (.*?) -->\n\n", re.DOTALL)
_INCIDENT = re.compile(r"^Incident: \[([\w-]+)\]\([^)]*\)\. ")


@dataclass(frozen=True)
class Reason:
    """One cause of a symptom.

    Attributes:
        title: What is wrong, in one plain sentence.
        cause: Name of the cause of the incident, or of the rule where no cause leads it.
        text: Why it has this effect.
        wrong: A short program that has the fault.
        says: What bnmonitor prints of it: the incident, in lines that are wrapped.
        note: What stands before the right program.
        right: The program without the fault, of which bnmonitor reports nothing.
    """

    title: str
    cause: str
    text: str
    wrong: str
    says: str
    note: str
    right: str


@dataclass(frozen=True)
class Symptom:
    """What a user sees, and the causes of it.

    Attributes:
        name: Name of the page, such as ``nan-after-hours``.
        title: What is seen, in a few words.
        words: Words that users describe it with.
        text: What is seen, in a paragraph.
        reasons: The causes, the most frequent first.
        source: The page as it is written.
    """

    name: str
    title: str
    words: tuple[str, ...]
    text: str
    reasons: tuple[Reason, ...]
    source: str


def parse(name: str, source: str) -> Symptom:
    """Read a page.

    Args:
        name: Name of the page.
        source: Its Markdown.

    Raises:
        ValueError: The page is not of the shape that the others have.
    """
    found = _WORDS.search(source)
    if found is None:
        raise ValueError(f"{name} has no words to find it by")
    head, *sections = re.split(r"^## ", _WORDS.sub("", source), flags=re.MULTILINE)
    title, _, text = head.partition("\n")
    reasons = tuple(_reason(name, section) for section in sections)
    return Symptom(name, title.removeprefix("# ").strip(), tuple(found[1].split()), _joined(text), reasons, source)


def _reason(name: str, section: str) -> Reason:
    title, _, body = section.partition("\n")
    prose = [" ".join(part.split()) for part in _FENCE.split(body)[0::3]]
    blocks = _FENCE.findall(body)
    kinds = [kind for kind, _ in blocks]
    if kinds not in (["python", "text", "python"], ["python", "python"]) or len(prose) != len(blocks) + 1:
        raise ValueError(f"{name}: {title!r} needs a wrong program, what is said of it, and a right one")
    before = prose[0].removesuffix("Wrong:").strip()
    incident = _INCIDENT.match(before)
    if incident is None or not prose[0].endswith("Wrong:") or not prose[-2].startswith("Right"):
        raise ValueError(f"{name}: {title!r} needs its incident, `Wrong:` and `Right:`")
    wrong, *says, right = (code for _, code in blocks)
    note = prose[-2].removeprefix("Right").strip(" :")
    return Reason(title.strip(), incident[1], before[incident.end() :], wrong, "".join(says), note, right)


def _joined(text: str) -> str:
    return " ".join(text.split())


@cache
def all_symptoms() -> tuple[Symptom, ...]:
    """Return the symptoms, those that people meet most first."""
    return tuple(parse(name, (TEXTS / f"{name}.md").read_text(encoding="utf-8")) for name in ORDER)


@cache
def setup() -> str:
    """Return the code that every program of the pages begins with."""
    found = _FENCE.search((TEXTS / "setup.md").read_text(encoding="utf-8"))
    return found[2] if found else ""
