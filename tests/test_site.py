"""The site: every page is in its navigation, a symptom is one click away, and it builds without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

from bnmonitor.symptoms import all_symptoms

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def conf() -> dict[str, Any]:
    return run_path(str(DOCS / "conf.py"))


def test_every_page_is_in_the_navigation_once(conf: dict[str, Any]) -> None:
    listed = [re.sub(r".*<(.*)>", r"\1", page) for pages in conf["NAVIGATION"].values() for page in pages]
    there = [p.relative_to(DOCS).with_suffix("").as_posix() for p in DOCS.rglob("*.md")]
    wanted = {page for page in there if page.split("/")[0] not in ("rules", "causes") or "/" not in page} - {"index"}
    assert sorted(listed) == sorted(wanted)
    assert next(iter(conf["NAVIGATION"])) == "What is wrong with my training?"


def test_every_symptom_is_one_click_from_the_first_page(conf: dict[str, Any]) -> None:
    first = (DOCS / "index.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(([^)#]+)", first))
    assert {f"symptoms/{symptom.name}.md" for symptom in all_symptoms()} <= links
    words = [title.lower().split()[0] for title in re.findall(r"^## (.*)", first, re.MULTILINE)]
    assert words[0] == "what"


def test_the_names_of_the_reference_are_those_that_are_public(conf: dict[str, Any]) -> None:
    from importlib import import_module

    for module, groups in conf["API"].items():
        names = {name for _, group in groups for name in group}
        public = set(getattr(import_module(module), "__all__", names))
        assert names <= public | names
        if module in ("bnmonitor", "bnmonitor.remedies"):
            assert names == public


def test_what_only_the_site_has_is_added_to_a_page(conf: dict[str, Any]) -> None:
    def read(name: str, text: str) -> str:
        content = [text]
        conf["read"](None, name, content)
        return content[0]

    code = "Wrong:\n\n```python\na\n```\n"
    assert read("x", code) == f"````{{container}} example wrong\n{code}````\n"
    assert read("x", "[a](../CONTRIBUTING.md)") == "[a](contributing.md)"
    assert read("x", "[a](../examples/fabric.py)") == "[a](examples.md#fabricpy)"
    assert read("x", "[a](../bnmonitor/rules)").endswith("/tree/main/bnmonitor/rules)")
    assert read("x", "[a](../rules/BN101.md)") == "[a](../rules/BN101.md)"
    for page in ("guide/x", "symptoms/x"):
        shown = read(page, "![Map: it](../pictures/x-light.svg)")
        assert all(f"{{image}} ../pictures/x-{mode}.svg\n:alt: Map: it\n" in shown for mode in ("light", "dark"))
    assert "## fabric.py" in read("examples", "")
    assert "[the rules](architecture.md)" not in read("contributing", "")
    assert "(architecture.md)" in read("contributing", "")
    assert "autofunction:: bnmonitor.remedies.freeze" in read("api", "")


def test_the_site_builds_without_a_warning_and_loads_nothing(tmp_path: Path) -> None:
    for name in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(name, reason="the site is built where the extra `docs` is installed")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'(?:src|<link[^>]*href)="(?:https?:)?//[^"]*"', text), page
