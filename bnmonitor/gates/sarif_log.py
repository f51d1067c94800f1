"""SARIF 2.1.0, which GitHub, GitLab and editors read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bnmonitor._text import DOCS, encodable, printable
from bnmonitor._version import __version__
from bnmonitor.gates.judging import Judged
from bnmonitor.gates.target import Target
from bnmonitor.results import Severity

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Severity.INFO: "note", Severity.WARNING: "warning", Severity.ERROR: "error"}
_STATES = {"new": "new", "worse": "updated", "known": "unchanged", "ignored": "new"}

MOST_LAYERS = 20
"""Layers that a result names as places; all are among its properties."""


def sarif(found: Sequence[Judged], targets: Sequence[Target], *, compared: bool) -> dict[str, Any]:
    """Return a SARIF log with a result for each problem.

    Args:
        found: The problems.
        targets: What was looked at.
        compared: Whether there is a baseline, so that each result says whether it is new.
    """
    rules: dict[str, dict[str, Any]] = {}
    for each in found:
        rules.setdefault(each.problem.code, _rule(each))
    order = list(rules)
    failed = [target for target in targets if target.error]
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "bnmonitor",
                "version": __version__,
                "informationUri": DOCS.removesuffix("/blob/main/docs"),
                "rules": list(rules.values()),
            }
        },
        "invocations": [
            {
                "executionSuccessful": not failed,
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": _clean(target.error)}} for target in failed
                ],
            }
        ],
        "artifacts": [{"location": _artifact(target)} for target in targets if target.path is not None],
        "results": [_result(each, order.index(each.problem.code), compared=compared) for each in found],
        "columnKind": "unicodeCodePoints",
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(each: Judged) -> dict[str, Any]:
    problem = each.problem
    found: dict[str, Any] = {
        "id": problem.code,
        "name": "".join(part.capitalize() for part in problem.name.split("-")),
        "shortDescription": {"text": _clean(problem.name.replace("-", " "))},
        "defaultConfiguration": {"level": _LEVELS[problem.severity]},
    }
    return {**found, "helpUri": problem.url} if problem.url.startswith("http") else found


def _result(each: Judged, rule: int, *, compared: bool) -> dict[str, Any]:
    problem = each.problem
    layers = [_clean(name) for name in problem.layers]
    place: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": _artifact(each.target), "region": {"startLine": 1}},
    }
    if layers:
        place["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "module"} for name in layers[:MOST_LAYERS]]
    result: dict[str, Any] = {
        "ruleId": problem.code,
        "ruleIndex": rule,
        "level": _LEVELS[problem.severity],
        "message": {"text": _clean(problem.text)},
        "locations": [place],
        "partialFingerprints": {"bnmonitor/v1": each.fingerprint},
        "properties": {"cause": problem.name, "layers": layers, "in": _clean(each.target.name)},
    }
    if problem.first_step is not None:
        result["properties"]["firstStep"] = problem.first_step
    if each.status == "ignored":
        result["suppressions"] = [{"kind": "external", "justification": _clean(each.reason)}]
    if compared:
        result["baselineState"] = _STATES[each.status]
    return result


def _artifact(target: Target) -> dict[str, str]:
    """Where a target is: relative to the working directory, which GitHub takes for the root of the repository."""
    if target.path is None:
        return {"uri": quote(_clean(target.name), safe="/")}
    full, here = target.path.absolute(), Path.cwd()
    end = "/" if full.is_dir() and full != here else ""
    if full.is_relative_to(here):
        return {"uri": quote(encodable(full.relative_to(here).as_posix())) + end, "uriBaseId": "%SRCROOT%"}
    return {"uri": "file://" + quote(encodable(full.as_posix())) + end}


def _clean(text: str) -> str:
    return encodable(printable(text))
