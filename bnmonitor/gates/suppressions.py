"""What a project has decided to ignore: ``[tool.bnmonitor]`` in its ``pyproject.toml``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bnmonitor._text import nearest, printable
from bnmonitor.gates.errors import GateError
from bnmonitor.gates.problem import Problem

FILE = "pyproject.toml"
_KEYS = ("ignore", "ignore-in-layers")
_WORD = re.compile(r"BN\d{0,3}|[a-z][a-z0-9]*(-[a-z0-9]+)*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Suppressions:
    """What is ignored.

    Attributes:
        ignore: Codes, prefixes of codes, or names of rules and causes, everywhere.
        in_layers: The same by glob pattern over layer names.
        file: Where that is written; None if nothing is.
    """

    ignore: tuple[str, ...] = ()
    in_layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    file: Path | None = None

    def idle(self, problems: Sequence[Problem]) -> tuple[str, ...]:
        """Return the words, each once, that name none of these problems."""
        words = dict.fromkeys((*self.ignore, *(w for each in self.in_layers.values() for w in each)))
        return tuple(word for word in words if not any(_names(word, each) for each in problems))

    def reason(self, problem: Problem) -> str:
        """Return why a problem is ignored; empty if it is not.

        In some layers only, a problem is ignored if the patterns cover every layer that it affects.
        """
        for word in self.ignore:
            if _names(word, problem):
                return f"{FILE}: ignore has {word}"
        if not problem.layers:
            return ""
        used = [(glob, w) for glob, words in self.in_layers.items() for w in words if _names(w, problem)]
        if not all(any(fnmatchcase(layer, glob) for glob, _ in used) for layer in problem.layers):
            return ""
        glob, word = next(pair for pair in used if fnmatchcase(problem.layers[0], pair[0]))
        return f"{FILE}: ignore-in-layers has {word} for {glob}"


def _names(word: str, problem: Problem) -> bool:
    word = word.lower()
    return word in problem.names or (
        re.fullmatch(r"bn\d*", word) is not None and any(each.startswith(word) for each in problem.names)
    )


def read_suppressions(start: Path | None = None) -> Suppressions:
    """Read what the nearest ``pyproject.toml`` with a section ``[tool.bnmonitor]`` says, from a directory upward.

    Args:
        start: The directory to begin in; None: the working directory.

    Raises:
        GateError: A file cannot be read, or the section holds something that is not known.
    """
    place = (start or Path.cwd()).absolute()
    for directory in (place, *place.parents):
        file = directory / FILE
        if file.is_file():
            section = _section(file)
            if section is not None:
                return _checked(section, file)
    return Suppressions()


def _section(file: Path) -> Any:
    """The section of a file; None if it has none."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GateError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    if not re.search(r"\bbnmonitor\b", text):  # no other project's file needs to be parsed
        return None
    toml = _toml()
    if toml is None:
        if not re.search(r"^\s*\[\s*tool\s*\.\s*[\"']?bnmonitor\b", text, re.MULTILINE):
            return None
        raise GateError(f"{file} has a section [tool.bnmonitor], which Python 3.10 reads with tomli: pip install tomli")
    try:
        tool = toml.loads(text).get("tool", {})
    except ValueError as error:
        raise GateError(f"{file} is not valid TOML: {error}") from None
    return tool.get("bnmonitor") if isinstance(tool, Mapping) else None


def _toml() -> Any:
    """The module that reads TOML: part of Python since 3.11; None if there is none."""
    for name in ("tomllib", "tomli"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _checked(section: Any, file: Path) -> Suppressions:
    if not isinstance(section, Mapping):
        raise GateError(f"{file}: tool.bnmonitor must be a section, with {' and '.join(_KEYS)}")
    for key in section:
        if key not in _KEYS:
            raise GateError(
                f"{file}: [tool.bnmonitor] has no setting {printable(key)!r}{nearest(key, _KEYS)}; "
                f"it takes {' and '.join(_KEYS)}"
            )
    in_layers = section.get("ignore-in-layers", {})
    if not isinstance(in_layers, Mapping):
        raise GateError(f'{file}: ignore-in-layers must map patterns to lists, such as "head.*" = ["dead-channels"]')
    return Suppressions(
        ignore=_words(section.get("ignore", []), "ignore", file),
        in_layers={glob: _words(words, f"ignore-in-layers.{glob!r}", file) for glob, words in in_layers.items()},
        file=file,
    )


def _words(given: Any, where: str, file: Path) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(w, str) for w in given):
        raise GateError(f'{file}: {where} must be a list of codes or names, such as ["BN701", "stale-statistics"]')
    for word in given:
        if not _WORD.fullmatch(word):
            raise GateError(f"{file}: {where} has {printable(word)!r}, which is neither a code nor the name of a rule")
    return tuple(given)
