"""What ``report`` and ``audit`` have in common: which problems count, files for CI, and the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnmonitor._text import count, printable
from bnmonitor.cli.answers import FINE, FOUND, USAGE, fail
from bnmonitor.cli.arguments import NEVER
from bnmonitor.results import Severity

if TYPE_CHECKING:
    from bnmonitor.audit import Audit
    from bnmonitor.gates import Target
    from bnmonitor.report.read import Report


def gate(parsed: argparse.Namespace, targets: Sequence[Target]) -> int:
    """Judge what was found, write the files that are asked for, and return the exit code.

    Args:
        parsed: The arguments.
        targets: What was looked at.
    """
    from bnmonitor.gates import GateError, counted, judged, junit, read_baseline, read_suppressions, sarif, told
    from bnmonitor.gates import update_baseline as update

    if parsed.update_baseline and parsed.baseline is None:
        return fail("--update-baseline needs --baseline FILE, the file to write")
    least = None if parsed.fail_on == NEVER else Severity[parsed.fail_on.upper()]
    try:
        suppressions = read_suppressions()
        if parsed.update_baseline:
            kept = _without(targets, [each.problem for each in judged(targets, suppressions) if each.counts])
            written = update(parsed.baseline, kept)
            print(f"bnmonitor: {count(written, 'problem')} written to {parsed.baseline} as known", file=sys.stderr)
        known = None if parsed.baseline is None else read_baseline(parsed.baseline)
        found = judged(targets, suppressions, known)
        if parsed.sarif is not None:
            log = sarif(found, targets, compared=known is not None)
            _write(parsed.sarif, json.dumps(log, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        if parsed.junit is not None:
            _write(parsed.junit, junit(found, targets, least))
    except GateError as error:
        return fail(str(error))
    for word in suppressions.idle([each.problem for each in found]):
        _doubt(word)
    line = told(found, least)
    if line:
        print(f"bnmonitor: {printable(line)}", file=sys.stderr)
    if any(target.error for target in targets):
        return USAGE
    return FOUND if counted(found, least) else FINE


def _doubt(word: str) -> None:
    """Say that a word of ``pyproject.toml`` looks like a misspelled one; names of rules of one's own do not."""
    from bnmonitor.diagnosis import CAUSES
    from bnmonitor.rules import all_rules, near

    rules, causes = all_rules(), [cause.name for cause in CAUSES]
    code = word[:2].upper() == "BN"
    if any(rule.code.startswith(word.upper()) if code else rule.name == word.lower() for rule in rules):
        return
    like = "" if word.lower() in causes else near(word, rules, causes)
    if code or like:
        print(f"bnmonitor: pyproject.toml ignores {word!r}, which no rule or cause is called{like}", file=sys.stderr)


def run_target(report: Report) -> Target:
    """Return a recorded run as the target of a gate: its open incidents, and the notes that no incident explains."""
    from bnmonitor.gates import Problem, Target

    notes = [alert for alert in report.notes if alert.state == "open"]
    of_layers = len(report.rows)
    return Target(
        name=str(report.path),
        path=report.path,
        problems=(
            *map(Problem.of_incident, report.open_incidents()),
            *(Problem.of_alert(alert, of_layers, steps=True) for alert in notes),
        ),
        skipped=dict(report.skipped) if report.frames else {"layers": "no frame yet"},
        layers=of_layers,
    )


def audit_target(name: str, found: Audit, what: str) -> Target:
    """Return an audit as the target of a gate.

    Args:
        name: Name of the audit in the output.
        found: The audit.
        what: What was audited: a file, or ``package.module:factory``, whose place is the file of the module.
    """
    from bnmonitor.gates import Problem, Target

    file = what if Path(what).exists() else getattr(sys.modules.get(what.partition(":")[0]), "__file__", None)
    return Target(
        name=name,
        path=None if file is None else Path(file),
        part=name.removeprefix(what) if file == what else None,
        problems=tuple(Problem.of_alert(alert, len(found.rows), steps=False) for alert in found.alerts),
        skipped=dict(found.skipped),
        layers=len(found.rows),
        repeats=True,
    )


def _without(targets: Sequence[Target], kept: Sequence[object]) -> list[Target]:
    """The targets with some of their problems only."""
    return [
        replace(each, problems=tuple(p for p in each.problems if any(p is other for other in kept))) for each in targets
    ]


def _write(file: Path, text: str) -> None:
    from bnmonitor.gates import GateError

    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GateError(f"cannot write {file}: {error.strerror or error}") from None
