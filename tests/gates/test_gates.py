"""Baselines, suppressions, SARIF and JUnit: from the command line, and piece by piece where that is clearer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
import torch
from torch import nn

from bnmonitor.cli import main
from bnmonitor.gates import (
    GateError,
    Problem,
    Target,
    judged,
    read_baseline,
    read_suppressions,
    sarif,
    update_baseline,
)
from bnmonitor.gates.baseline import Known
from bnmonitor.results import Alert, Incident, Severity
from tests.histories import Writer, an_alert, an_incident, course, write

SICK = "block.bn"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a recorded run in which one of three layers has an open incident."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run", ("stem.bn", SICK, "head.bn"), range(60), sick=(1,))
    return tmp_path


def a_checkpoint(path: Path, *ruined: int) -> str:
    """A checkpoint of four layers, in some of which the running variance is no number."""
    model = nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(4)))
    for i, layer in enumerate(model):
        layer.running_mean.fill_(0.5)  # type: ignore[operator, union-attr]
        layer.num_batches_tracked.fill_(900)  # type: ignore[operator, union-attr]
        if i in ruined:
            layer.running_var[1] = float("nan")  # type: ignore[index]
    path.parent.mkdir(exist_ok=True)
    torch.save(model.state_dict(), path)
    return str(path)


def pyproject(here: Path, text: str) -> None:
    (here / "pyproject.toml").write_text(f"[project]\nname = 'x'\n[tool.bnmonitor]\n{text}\n", encoding="utf-8")


def an_open_incident(**more: Any) -> Incident:
    return Incident.from_dict(an_incident(an_alert("a.bn", 40), **more))


# -- baselines ---------------------------------------------------------------------------------------------------------


def test_what_a_baseline_knows_passes_and_what_is_new_does_not(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run"]) == 1
    assert main(["report", "run", "--baseline", "known.json", "--update-baseline"]) == 0
    assert "1 problem written to known.json as known" in capsys.readouterr().err
    assert main(["report", "run", "--baseline", "known.json"]) == 0
    assert "1 problem known from the baseline; none left that counts" in capsys.readouterr().err
    # Another training of the same network, whose incident began later and reached its layer again.
    write(here / "later", ("stem.bn", SICK, "head.bn"), range(0, 600, 10), sick=(1,))
    assert main(["report", "later", "--baseline", "known.json"]) == 0
    write(here / "other", ("stem.bn", SICK, "head.bn"), range(60), sick=(2,))
    assert main(["report", "other", "--baseline", "known.json"]) == 1


def test_a_file_in_which_further_layers_are_ill_is_worse_than_known(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_checkpoint(here / "models" / "epoch=1.ckpt", 1)
    gate = ["--baseline", "known.json"]
    assert main(["audit", path, *gate, "--update-baseline"]) == 0
    assert main(["audit", a_checkpoint(here / "models" / "epoch=2.ckpt", 1), *gate]) == 0
    assert main(["audit", a_checkpoint(here / "models" / "else.ckpt", 1), *gate]) == 1
    capsys.readouterr()
    # All layers of that file together are two of four: a problem of the whole model.
    assert main(["audit", a_checkpoint(here / "models" / "epoch=3.ckpt", 1, 2), *gate]) == 1


@pytest.mark.parametrize(
    ("known", "repeats", "says"),
    [
        (Known(severity=Severity.ERROR, layers=("a.bn",)), False, ""),
        (Known(severity=Severity.WARNING, layers=("a.bn",)), False, "known as warning, now error"),
        (Known(severity=Severity.ERROR, layers=("b.bn",)), False, ""),
        (Known(severity=Severity.ERROR, layers=("b.bn",)), True, "known in other layers, now in a.bn as well"),
    ],
)
def test_a_problem_gets_worse_by_severity_and_in_a_file_by_layers(known: Known, repeats: bool, says: str) -> None:
    problem = Problem.of_incident(an_open_incident())
    assert known.worsened(problem, Target(name="x", repeats=repeats)) == says


def test_a_fingerprint_holds_no_steps_and_an_incident_of_most_layers_is_one_of_the_model() -> None:
    one = Problem.of_incident(an_open_incident())
    later = replace(an_open_incident(first_step=7, last_step=9000, title="else", detail="9"), index=4)
    assert Problem.of_incident(later).fingerprint() == one.fingerprint()
    assert Problem.of_incident(an_open_incident(layers=["b.bn"])).fingerprint() != one.fingerprint()
    most = [Problem.of_incident(an_open_incident(layers=[*names], of_layers=3)) for names in ("ab", "bca")]
    assert most[0].fingerprint() == most[1].fingerprint() != one.fingerprint()


def test_a_baseline_keeps_what_was_not_looked_at(here: Path) -> None:
    a, b = (a_checkpoint(here / "models" / f"{name}.pt", 0) for name in "ab")
    for what in (["audit", a], ["report", "run"], ["audit", b]):
        assert main([*what, "--baseline", "known.json", "--update-baseline"]) == 0
    assert main(["audit", "models", "--baseline", "known.json"]) == 0
    assert main(["report", "run", "--baseline", "known.json"]) == 0
    a_checkpoint(Path(a))
    assert main(["audit", a, "--baseline", "known.json", "--update-baseline"]) == 0
    known = json.loads((here / "known.json").read_text())["known"]
    assert sorted(Path(each["in"]).name for each in known.values()) == ["", "b.pt"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no baseline known.json: --update-baseline writes it"),
        ("{", "known.json is not a baseline of bnmonitor: it is not JSON"),
        ("[]", "known.json is not a baseline of bnmonitor: it has no 'schema' and 'known'"),
        ('{"schema": 2, "problems": []}', "known.json is a baseline of version 2, and this bnmonitor reads 1"),
        ('{"known": {}, "schema": 9}', "known.json is a baseline of version 9, and this bnmonitor reads 1"),
        ('{"known": {"a": {}}, "schema": 1}', "known.json is damaged: write it again with --update-baseline"),
        (
            '{"known": {"a": {"severity": "error", "layers": [], "in": 3}}, "schema": 1}',
            "known.json is damaged: write it again with --update-baseline",
        ),
    ],
)
def test_a_baseline_that_cannot_be_used_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], text: str | None, says: str
) -> None:
    if text is not None:
        (here / "known.json").write_text(text)
    assert main(["report", "run", "--baseline", "known.json"]) == 2
    assert capsys.readouterr().err == f"bnmonitor: {says}\n"


def test_a_file_is_the_same_however_it_is_written_and_an_entry_may_lack_what_only_people_read(here: Path) -> None:
    path = a_checkpoint(here / "models" / "a.pt", 1)
    relative = os.path.relpath(path)
    assert main(["audit", relative, "--baseline", "known.json", "--update-baseline"]) == 0
    for written in (path, f"./{relative}", f"models/../{relative}"):
        assert main(["audit", written, "--baseline", "known.json"]) == 0
    content = json.loads((here / "known.json").read_text())
    for entry in content["known"].values():
        del entry["code"], entry["layer"], entry["name"]
    content["known"] |= {"0": {"severity": "error", "layers": [], "in": "else.pt"}}
    (here / "known.json").write_text(json.dumps(content), encoding="utf-8-sig")
    assert main(["audit", path, "--baseline", "known.json"]) == 0
    assert main(["audit", path, "--baseline", "known.json", "--update-baseline"]) == 0
    assert len(json.loads((here / "known.json").read_text())["known"]) == 2


def test_problems_of_one_fingerprint_are_known_together(here: Path) -> None:
    error = Problem.of_incident(an_open_incident())
    milder = replace(error, severity=Severity.WARNING, layers=(*error.layers, "z.bn"))
    targets = [Target(name="run", problems=(error, milder))]
    assert update_baseline(here / "known.json", targets) == 2
    (known,) = read_baseline(here / "known.json").values()
    assert known == Known(severity=Severity.ERROR, layers=milder.layers)
    assert {each.status for each in judged(targets, read_suppressions(here), {error.fingerprint(): known})} == {"known"}


def test_an_update_needs_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run", "--update-baseline"]) == 2
    assert capsys.readouterr().err == "bnmonitor: --update-baseline needs --baseline FILE, the file to write\n"


# -- suppressions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("ignore = ['variance-explosion']", True),
        ("ignore = ['BN106']", True),
        ("ignore = ['bn1']", True),
        ("ignore = ['BN2', 'variance']", False),
        ("ignore-in-layers = {'block.*' = ['BN106']}", True),
        ("ignore-in-layers = {'block.*' = ['BN4']}", False),
        ("ignore-in-layers = {'head.*' = ['BN106']}", False),
    ],
)
def test_pyproject_ignores_by_rule_and_layer(
    here: Path, capsys: pytest.CaptureFixture[str], text: str, passes: bool
) -> None:
    pyproject(here, text)
    assert main(["report", "run"]) == (0 if passes else 1)
    assert ("1 problem ignored by pyproject.toml" in capsys.readouterr().err) == passes


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("stale-statistic", "'stale-statistic', which no rule or cause is called; did you mean 'stale-statistics'?"),
        ("BN399", "'BN399', which no rule or cause is called; did you mean 'BN306'?"),
        ("BN3", ""),
        ("stale-statistics", ""),
        ("learning-rate-too-high", ""),
        ("qqq-of-our-own", ""),
    ],
)
def test_a_name_that_looks_misspelled_is_doubted(
    word: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pyproject(here, f"ignore = [{word!r}]")
    assert main(["report", "run"]) == 1
    doubts = [line for line in capsys.readouterr().err.splitlines() if "pyproject" in line]
    assert doubts == ([f"bnmonitor: pyproject.toml ignores {said}"] if said else [])


def test_an_incident_that_reaches_other_layers_is_not_ignored(here: Path) -> None:
    pyproject(here, "[tool.bnmonitor.ignore-in-layers]\n'a.*' = ['BN106']\n'b.*' = ['BN106', 'small-batch']")
    suppressions = read_suppressions(here)
    reasons = [
        suppressions.reason(Problem.of_incident(an_open_incident(layers=names)))
        for names in (["a.bn"], ["a.bn", "b.bn"], ["a.bn", "c.bn"], [])
    ]
    assert [bool(reason) for reason in reasons] == [True, True, False, False]
    assert reasons[0] == "pyproject.toml: ignore-in-layers has BN106 for a.*"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ignored = []", "has no setting 'ignored'; did you mean 'ignore'?; it takes ignore and ignore-in-layers"),
        ("ignore = 'BN106'", 'ignore must be a list of codes or names, such as ["BN701", "stale-statistics"]'),
        ("ignore = ['*']", "ignore has '*', which is neither a code nor the name of a rule"),
        ("ignore-in-layers = ['a']", 'must map patterns to lists, such as "head.*" = ["dead-channels"]'),
        ("ignore = [", "is not valid TOML"),
        ("[[tool.bnmonitor]]", "tool.bnmonitor must be a section, with ignore and ignore-in-layers"),
    ],
)
def test_a_section_that_cannot_be_used_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    pyproject(here, text)
    if text.startswith("[["):
        (here / "pyproject.toml").write_text(text)
    assert main(["report", "run"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_the_file_is_searched_upward_and_other_projects_are_left_alone(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyproject(here, "ignore = ['BN106']")
    inner = here / "inner"
    inner.mkdir()
    (inner / "pyproject.toml").write_text("[project]\nname = 'uses-bnmonitor'\n")
    assert read_suppressions(inner).ignore == ("BN106",)
    (inner / "pyproject.toml").write_text("[project]\nname = 'another'\n")
    assert read_suppressions(inner).ignore == ("BN106",)
    (inner / "pyproject.toml").write_text("[project]\nname = 'uses-bnmonitor'\n")
    # Python 3.10 has no TOML: a file that has no section is nothing to it, one that has is said.
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(GateError, match=r"which Python 3.10 reads with tomli: pip install tomli"):
        read_suppressions(inner)
    (here / "pyproject.toml").unlink()
    assert read_suppressions(inner).file is None


# -- files for other programs ------------------------------------------------------------------------------------------

SCHEMA: Mapping[str, tuple[set[str], set[str]]] = {
    "log": ({"version", "runs"}, {"$schema"}),
    "run": ({"tool"}, {"invocations", "artifacts", "results", "columnKind"}),
    "driver": ({"name"}, {"version", "informationUri", "rules"}),
    "rule": ({"id"}, {"name", "shortDescription", "defaultConfiguration", "helpUri"}),
    "invocation": ({"executionSuccessful"}, {"toolExecutionNotifications"}),
    "notification": ({"message"}, {"level"}),
    "artifact": (set(), {"location"}),
    "place": (set(), {"uri", "uriBaseId"}),
    "result": (
        {"message"},
        {
            *("ruleId", "ruleIndex", "level", "locations", "partialFingerprints", "suppressions", "baselineState"),
            "properties",
        },
    ),
    "location": (set(), {"physicalLocation", "logicalLocations"}),
    "suppression": ({"kind"}, {"justification"}),
}
"""Of each object of SARIF 2.1.0: the keys that its schema requires, and those of the others that are used."""


def has_shape(kind: str, *found: Mapping[str, Any]) -> None:
    required, others = SCHEMA[kind]
    for each in found:
        assert required <= each.keys() <= required | others, kind


def is_sarif(log: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Compare a log with the parts of the schema that it uses; return its results."""
    has_shape("log", log)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    has_shape("run", run)
    has_shape("driver", run["tool"]["driver"])
    has_shape("rule", *(rules := run["tool"]["driver"]["rules"]))
    has_shape("invocation", *run["invocations"])
    has_shape("notification", *(n for each in run["invocations"] for n in each["toolExecutionNotifications"]))
    has_shape("artifact", *run["artifacts"])
    has_shape("place", *(each["location"] for each in run["artifacts"]))
    has_shape("result", *run["results"])
    for each in run["results"]:
        assert rules[each["ruleIndex"]]["id"] == each["ruleId"]
        assert each["level"] in ("note", "warning", "error")
        assert each.get("baselineState", "new") in ("new", "unchanged", "updated")
        assert each["message"]["text"]
        has_shape("location", *each["locations"])
        has_shape("place", *(place["physicalLocation"]["artifactLocation"] for place in each["locations"]))
        has_shape("suppression", *each.get("suppressions", ()))
    found: list[Mapping[str, Any]] = run["results"]
    return found


def test_sarif_of_a_run(here: Path) -> None:
    gate = ["--baseline", "known.json", "--sarif", "run.sarif"]
    assert main(["report", "run", *gate, "--update-baseline"]) == 0
    (result,) = is_sarif(json.loads((here / "run.sarif").read_text()))
    assert (result["ruleId"], result["level"], result["baselineState"]) == ("BN106", "error", "unchanged")
    (place,) = result["locations"]
    assert place["physicalLocation"]["artifactLocation"] == {"uri": "run/", "uriBaseId": "%SRCROOT%"}
    assert place["logicalLocations"] == [{"fullyQualifiedName": SICK, "kind": "module"}]
    assert [*result["partialFingerprints"].values()] == [*json.loads((here / "known.json").read_text())["known"]]
    assert len(result["message"]["text"].splitlines()) == 3


def test_sarif_and_junit_of_a_directory_of_checkpoints(here: Path) -> None:
    a_checkpoint(here / "models" / "bad.pt", 1)
    a_checkpoint(here / "models" / "good.pt")
    (here / "models" / "broken.pt").write_bytes(b"no checkpoint")
    assert main(["audit", "models", "--sarif", "a.sarif", "--junit", "a.xml"]) == 2
    log = json.loads((here / "a.sarif").read_text())
    (result,) = is_sarif(log)
    assert result["ruleId"] == "BN101"
    assert "baselineState" not in result
    (invocation,) = log["runs"][0]["invocations"]
    assert not invocation["executionSuccessful"]
    assert "broken.pt" in invocation["toolExecutionNotifications"][0]["message"]["text"]
    top = Xml.parse(here / "a.xml").getroot()
    assert {key: top.get(key) for key in ("failures", "errors")} == {"failures": "1", "errors": "1"}
    assert int(top.get("tests", "")) == len(top.findall(".//testcase"))
    (failure,) = top.findall(".//failure")
    assert "non finite statistics · 1" in failure.get("message", "")
    assert "nothing found in 4 layers" in [case.get("name") for case in top.findall(".//testcase")]


def test_a_problem_of_a_whole_run_has_no_logical_location(here: Path) -> None:
    with Writer(here / "whole", ("stem.bn",)) as writer:
        writer.frames(range(3), course(1, 3))
        writer.incident(an_incident(an_alert(None, 1)))
    main(["report", "whole", "--sarif", "whole.sarif"])
    [result] = is_sarif(json.loads((here / "whole.sarif").read_text()))
    assert "logicalLocations" not in result["locations"][0]


def test_junit_skips_what_does_not_count_with_the_reason(here: Path) -> None:
    pyproject(here, "ignore = ['BN106']")
    assert main(["report", "run", "--junit", "r.xml", "--sarif", "r.sarif"]) == 0
    (skipped,) = Xml.parse(here / "r.xml").getroot().findall(".//skipped")
    assert skipped.get("message") == "pyproject.toml: ignore has BN106: variance explosion"
    (result,) = is_sarif(json.loads((here / "r.sarif").read_text()))
    assert result["suppressions"] == [{"kind": "external", "justification": "pyproject.toml: ignore has BN106"}]
    (here / "pyproject.toml").unlink()
    assert main(["report", "run", "--junit", "r.xml", "--fail-on", "never"]) == 0
    (skipped,) = Xml.parse(here / "r.xml").getroot().findall(".//skipped")
    assert skipped.get("message") == "of severity error, which does not fail here: variance explosion"


def test_hostile_names_leave_files_that_can_be_read(here: Path) -> None:
    name = "<b>&\"'\x00\x1b\ud800]]>"
    write(here / "odd", (name,), range(60), sick=(0,))
    assert main(["report", "odd", "--junit", "o.xml", "--sarif", "o.sarif"]) == 1
    assert len(Xml.parse(here / "o.xml").getroot().findall(".//failure")) == 1
    (result,) = is_sarif(json.loads((here / "o.sarif").read_text(encoding="utf-8")))
    assert result["properties"]["layers"] == ["<b>&\"'\\x00\\x1b\\ud800]]>"]


def test_a_file_that_cannot_be_written_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run", "--sarif", "nowhere/x.sarif"]) == 2
    assert capsys.readouterr().err == "bnmonitor: cannot write nowhere/x.sarif: No such file or directory\n"


def test_a_place_outside_the_working_directory_is_absolute(here: Path) -> None:
    target = Target(name="x", path=here.parent / "a b.pt", problems=(Problem.of_alert(alert(), 1, steps=False),))
    (result,) = is_sarif(sarif(judged([target], read_suppressions()), [target], compared=False))
    (place,) = result["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == (here.parent / "a b.pt").as_uri()


def alert() -> Alert:
    return Alert.from_dict(an_alert("a.bn", 40))
