"""JUnit XML, which every CI server shows as tests."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as Xml

from bnmonitor._text import count, encodable, printable
from bnmonitor.gates.judging import Judged, counted
from bnmonitor.gates.target import Target
from bnmonitor.results import Severity


def junit(found: Sequence[Judged], targets: Sequence[Target], least: Severity | None) -> str:
    """Return JUnit XML: a suite for each target, a test for each problem, and a test that nothing was found.

    A problem that does not count is skipped, with the reason; what could not be checked is skipped as well, and what
    could not be read is an error.

    Args:
        found: The problems.
        targets: What was looked at.
        least: The least severity that fails; None: none does.
    """
    top = Xml.Element("testsuites", name="bnmonitor")
    for target in targets:
        mine = [each for each in found if each.target is target]
        top.append(_suite(target, mine, least))
    for name in ("tests", "failures", "errors", "skipped"):
        top.set(name, str(sum(int(suite.get(name, "0")) for suite in top)))
    Xml.indent(top)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(top, encoding="unicode") + "\n"


def _suite(target: Target, found: Sequence[Judged], least: Severity | None) -> Xml.Element:
    suite = Xml.Element("testsuite", name=_clean(target.name))
    failing = counted(found, least)
    if target.error:
        Xml.SubElement(_case(suite, target, "read"), "error", message=_clean(target.error))
    for each in found:
        problem = each.problem
        where = f" in {problem.layer}" if problem.layer is not None else ""
        case = _case(suite, target, f"{problem.code} {problem.name}{where}")
        if each in failing:
            first, *rest = problem.lines
            failure = Xml.SubElement(case, "failure", type=str(problem.severity), message=_clean(first))
            failure.text = _clean("\n".join([first, *rest, *([each.reason] if each.reason else [])]))
        else:
            why = each.reason or f"of severity {problem.severity}, which does not fail here"
            Xml.SubElement(case, "skipped", message=_clean(f"{why}: {problem.title}"))
    if target.layers and not found and not target.error:
        _case(suite, target, f"nothing found in {count(target.layers, 'layer')}")
    for why in dict.fromkeys(target.skipped.values()):
        names = [name for name, reason in target.skipped.items() if reason == why]
        Xml.SubElement(_case(suite, target, f"not checked: {', '.join(names)}"), "skipped", message=_clean(why))
    cases = list(suite)
    suite.set("tests", str(len(cases)))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(sum(case.find(tag) is not None for case in cases)))
    return suite


def _case(suite: Xml.Element, target: Target, name: str) -> Xml.Element:
    return Xml.SubElement(suite, "testcase", classname=f"bnmonitor.{_clean(target.name)}", name=_clean(name))


def _clean(text: str) -> str:
    """Text without what XML cannot hold."""
    return encodable(printable(text))
