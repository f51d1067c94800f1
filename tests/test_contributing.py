"""What contributors are given is well-formed and true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def loaded(path: Path) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [f for f in FORMS if f.stem != "config"], ids=lambda path: path.stem)
def test_a_form_asks_questions_that_have_a_label(path: Path) -> None:
    form = loaded(path)
    assert {"name", "description", "labels", "body"} == form.keys()
    known = {"textarea", "input", "dropdown", "checkboxes"}
    assert all(field["type"] in known and field["attributes"]["label"] for field in form["body"])
    names = [field["id"] for field in form["body"]]
    assert len(names) == len(set(names))
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_there_is_a_form_for_each_kind_of_report() -> None:
    assert {path.stem for path in FORMS} == {"bug", "config", "false_alarm", "feature", "missed_fault"}
    assert all(link["url"].startswith("https://") for link in loaded(FORMS[1])["contact_links"])


def test_hooks_download_nothing_and_run_what_make_lint_runs() -> None:
    [repository] = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert all(hook["language"] == "system" for hook in repository["hooks"])
    linted = re.findall(r"@\$\(BIN\)/(.+)", (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0])
    entries = [re.sub(r" --force-exclude", "", hook["entry"]) for hook in repository["hooks"]]
    assert entries == [line.removesuffix(" .") for line in linted]


def test_the_commands_and_folders_of_the_guide_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (\w[\w-]*)", GUIDE)) <= targets
    for name in re.findall(r"`((?:tests|docs|bnmonitor)/[^`<]*)`", GUIDE):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^pytest (\S+)", GUIDE, re.MULTILINE):
        assert (ROOT / name).exists(), name
