import ast
import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor.diagnosis import CAUSES, Cause, cause_index, cause_page, plain_cause
from bnmonitor.rules import CATALOGUE, Docstring, Rule, all_rules, plain
from bnmonitor.rules.manual import index, page

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = [path for path in PAGES if path.parent.name in ("rules", "causes")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str = "python") -> list[str]:
    return [body for kind, body in FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]


def prose(path: Path) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text(encoding="utf-8")))


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# -- the generated pages -----------------------------------------------------------------------------------------------


def test_the_pages_of_the_rules_are_what_the_docstrings_say() -> None:
    stale = run_path(str(ROOT / "docs" / "gen_rules.py"))["stale"]()
    assert not stale, f"run `python docs/gen_rules.py`: {', '.join(map(str, stale))}"


def test_the_page_of_the_kinds_is_what_the_list_says(tmp_path: Path) -> None:
    stale = run_path(str(ROOT / "docs" / "gen_kinds.py"))["stale"]
    assert not stale(), "run `python docs/gen_kinds.py`"
    assert stale(tmp_path) == [Path("layer-kinds.md")]


def test_a_stale_page_of_the_kinds_is_one_clear_line_and_exit_1(tmp_path: Path) -> None:
    for name in ("docs/gen_kinds.py", "tests/__init__.py", "tests/end_to_end/kinds.py", "tests/models.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def gen_kinds(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / "docs/gen_kinds.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    checked = gen_kinds("--check")
    assert checked.returncode == 1
    assert checked.stdout.splitlines() == ["stale: layer-kinds.md; run `python docs/gen_kinds.py`"]
    gen_kinds()
    assert gen_kinds("--check").returncode == 0


def test_a_stale_page_is_one_clear_line_and_exit_1(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "docs/rules/BN304.md").write_text("old\n")
    (tmp_path / "docs/rules/BN999.md").write_text("of a rule that is gone\n")

    def gen_rules(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / "docs/gen_rules.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    checked = gen_rules("--check")
    assert checked.returncode == 1
    assert checked.stdout.splitlines() == ["stale: rules/BN304.md, rules/BN999.md; run `python docs/gen_rules.py`"]
    gen_rules()
    assert gen_rules("--check").returncode == 0


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.code)
def test_every_rule_has_its_page(rule: Rule) -> None:
    text = page(rule)
    assert text.startswith(f"# {rule.code} {rule.name}\n")
    for title in ("What it does", "Why is this bad?", "Example", "What to do"):
        assert f"\n## {title}\n" in text
    assert "``" not in text.replace("```", "")
    assert max(map(len, plain(rule, 60).replace(">>>", "").splitlines()[:4])) <= 60
    assert f"| [{rule.code}](rules/{rule.code}.md) | {rule.name} |" in index(all_rules())


COMMONEST = {
    *("BN101", "BN103", "BN105", "BN106", "BN108", "BN201", "BN202", "BN203", "BN204", "BN301", "BN302", "BN303"),
    *("BN304", "BN401", "BN402", "BN404", "BN406", "BN502", "BN505", "BN601", "BN603", "BN701", "BN703", "BN704"),
}
"""Rules that a user meets most, and that show wrong and right code."""


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.code)
def test_the_terminal_shows_code_of_the_user_and_no_examples_that_are_run(rule: Rule) -> None:
    text = plain(rule)
    assert ">>>" not in text
    assert "make_window" not in text
    code = dict(Docstring.of(type(rule)).sections).get("Code", "")
    assert bool(code) or rule.code not in COMMONEST
    if code:
        assert code.startswith("Wrong::\n\n    ")
        assert "\n\nRight::\n\n    " in code
        assert "Code\n  Wrong:\n\n      " in text


def test_the_pages_of_the_causes_are_what_the_docstrings_say(tmp_path: Path) -> None:
    stale = run_path(str(ROOT / "docs" / "gen_rules.py"))["stale"]
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    assert not stale(tmp_path / "docs"), "run `python docs/gen_rules.py`"
    (tmp_path / "docs/causes.md").unlink()
    (tmp_path / "docs/causes/momentum.md").write_text("old\n")
    (tmp_path / "docs/causes/of-a-cause-that-is-gone.md").write_text("old\n")
    found = {path.name for path in stale(tmp_path / "docs")}
    assert found == {"causes.md", "momentum.md", "of-a-cause-that-is-gone.md"}


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.name)
def test_every_cause_has_its_page_with_wrong_and_right_code(cause: Cause) -> None:
    text = cause_page(cause)
    assert text.startswith(f"# {cause.name}\n")
    for title in ("What it is", "What to do", "Example", "Rules"):
        assert f"\n## {title}\n" in text
    assert "``" not in text.replace("```", "")
    example = dict(Docstring.of(type(cause)).sections)["Example"]
    assert example.startswith("Wrong::\n\n    ")
    assert "\n\nRight::\n\n    " in example
    shown = plain_cause(cause, 60)
    assert ">>>" not in shown
    assert "testing" not in shown
    assert "\nExample\n  Wrong:\n\n      " in shown
    assert f"| [{cause.name}](causes/{cause.name}.md) |" in cause_index(CAUSES)


def test_a_bare_rule_has_a_page_too() -> None:
    class Bare(CATALOGUE[3]):  # type: ignore[misc]
        """Says little."""

        code = "MY001"

    assert "Says little." in page(Bare())
    assert plain(Bare()).splitlines()[0] == "MY001 non-finite-statistics · error"
    assert "own rules" in index([Bare()])


# -- every page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        where, _, anchor = target.partition("#")
        found = (path.parent / where).resolve() if where else path
        assert found.exists(), f"{name_of(path)} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{name_of(path)} links to {target}, which has no such heading"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_python_in_the_docs_compiles(path: Path) -> None:
    for body in blocks(path):
        parts = [e.source for e in doctest.DocTestParser().get_examples(body)] if ">>>" in body else [body]
        for part in parts:
            assert ast.parse(part).body


@pytest.mark.parametrize("path", GENERATED, ids=name_of)
def test_the_examples_of_a_page_run_as_printed(path: Path) -> None:
    text = "\n".join(body for body in blocks(path) if body.startswith(">>>"))
    assert text or path.parent.name == "causes"
    example = doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), 0)
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_plain_loop_of_the_readme_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (body,) = [body for body in blocks(ROOT / "README.md") if "from bnmonitor import Monitor" in body]
    model = nn.Sequential(nn.Linear(20, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    loader = DataLoader(TensorDataset(torch.randn(640, 20), torch.zeros(640).long()), batch_size=32, shuffle=True)
    names = {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "loader": loader,
        "val_loader": loader,
        "loss_of": nn.functional.cross_entropy,
    }
    exec(compile(body, "README.md", "exec"), names)
    monitor = names["monitor"]
    assert monitor.steps[-1] == 199  # type: ignore[attr-defined]
    assert len(monitor.steps) == 64  # type: ignore[attr-defined]
    assert monitor.incidents == ()  # type: ignore[attr-defined]
    assert list((tmp_path / "runs/first").glob("events.out.*"))


def test_configuration_in_the_docs_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    yaml = pytest.importorskip("yaml")
    from bnmonitor import BatchNormMonitor

    monkeypatch.chdir(tmp_path)
    [body] = blocks(ROOT / "docs" / "interface.md", "yaml")
    [callback] = yaml.safe_load(body)["trainer"]["callbacks"]
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BatchNormMonitor, "callback")
    assert parser.parse_object({"callback": callback}).callback.class_path == callback["class_path"]
