"""The baseline: a file with the problems that are known, so that only new ones fail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnmonitor.gates.errors import GateError
from bnmonitor.gates.problem import Problem
from bnmonitor.gates.target import Target
from bnmonitor.results import Severity

SCHEMA = 1
"""Version of the file; it changes only if a field changes its meaning or goes."""

_ORDER = ("in", "code", "layer")


@dataclass(frozen=True, kw_only=True)
class Known:
    """A problem of the baseline.

    Attributes:
        severity: How bad it was.
        layers: The layers that it affected.
    """

    severity: Severity
    layers: tuple[str, ...]

    def worsened(self, problem: Problem, target: Target) -> str:
        """Return how a problem is worse than it was known to be; empty if it is not.

        How many layers an incident of a training reaches differs from run to run, so that this does not count.
        """
        if problem.severity > self.severity:
            return f"known as {self.severity}, now {problem.severity}"
        new = [layer for layer in problem.layers if layer not in self.layers]
        if target.repeats and new and not problem.whole:
            return f"known in other layers, now in {new[0]} as well"
        return ""


def read_baseline(file: Path) -> dict[str, Known]:
    """Return the problems of a baseline by their fingerprints.

    Raises:
        GateError: There is no such file, or it is not a baseline.
    """
    return {fingerprint: _known(each) for fingerprint, each in _entries(file).items()}


def update_baseline(file: Path, targets: Sequence[Target]) -> int:
    """Write what was found as what is known; return how many problems that are.

    Of a file that exists, what was found in other checkpoints or models than these stays, and so do runs where these
    are none.

    Args:
        file: The baseline.
        targets: What was looked at, without the problems that are ignored.

    Raises:
        GateError: The file exists and is not a baseline, or it cannot be written.
    """
    places = {target.place for target in targets if not target.error}
    entries = _entries(file) if file.exists() else {}
    entries = {key: each for key, each in entries.items() if each["in"] not in places}
    found = 0
    now: dict[str, Known] = {}
    for target in targets:
        for problem in target.problems:
            found += 1
            fingerprint = problem.fingerprint(target.place)
            # The checkpoints of a training have one place, and a run may have two incidents of one layer.
            known = now.get(fingerprint, Known(severity=problem.severity, layers=()))
            now[fingerprint] = Known(
                severity=max(known.severity, problem.severity),
                layers=tuple(dict.fromkeys((*known.layers, *problem.layers))),
            )
            entries[fingerprint] = {
                "name": problem.name,
                "code": problem.code,
                "severity": str(now[fingerprint].severity),
                "layer": problem.layer,
                "layers": list(now[fingerprint].layers),
                "in": target.place,
            }
    order = sorted(entries.items(), key=lambda item: (*[str(item[1].get(by)) for by in _ORDER], item[0]))
    text = json.dumps({"schema": SCHEMA, "known": dict(order)}, indent=2, ensure_ascii=False) + "\n"
    try:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise GateError(f"cannot write {file}: {error.strerror or error}") from None
    return found


def _entries(file: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))  # editors on Windows write a mark in front
    except FileNotFoundError:
        raise GateError(f"there is no baseline {file}: --update-baseline writes it") from None
    except OSError as error:
        raise GateError(f"cannot read {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise GateError(f"{file} is not a baseline of bnmonitor: it is not JSON") from None
    content = content if isinstance(content, dict) else {}
    version, entries = content.get("schema"), content.get("known")
    if version != SCHEMA and type(version) is int:
        raise GateError(f"{file} is a baseline of version {version}, and this bnmonitor reads {SCHEMA}")
    if version != SCHEMA or not isinstance(entries, dict):
        raise GateError(f"{file} is not a baseline of bnmonitor: it has no 'schema' and 'known'")
    for each in entries.values():
        try:
            _known(each)
            if not isinstance(each["in"], str):
                raise TypeError("not a text")
        except (KeyError, TypeError, AttributeError):
            raise GateError(f"{file} is damaged: write it again with --update-baseline") from None
    return entries


def _known(entry: Mapping[str, Any]) -> Known:
    return Known(severity=Severity[entry["severity"].upper()], layers=tuple(map(str, entry["layers"])))
