"""The guide in the package: its pages are found, read in the terminal, and are those of the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bnmonitor.cli import main
from bnmonitor.guide import Page, all_pages, find_page, parts

ROOT = Path(__file__).parents[2]
NAMES = [page.name for page in all_pages()]


def test_the_pages_of_the_package_are_those_of_the_documentation() -> None:
    packaged = {path.name: path.read_text("utf-8") for path in (ROOT / "bnmonitor/guide/texts").glob("*.md")}
    shown = {path.name: path.read_text("utf-8") for path in (ROOT / "docs/guide").glob("*.md")}
    first = (ROOT / "docs/guide.md").read_text("utf-8")
    assert packaged == {**shown, "index.md": first}
    assert sorted(NAMES) == sorted(path.removesuffix(".md") for path in shown)
    assert len(NAMES) >= 15


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_a_page_fits_the_terminal_and_has_no_marks(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(parts(page, 80))
    texts = [part for part in found if isinstance(part, str)]
    tables = [part for part in found if not isinstance(part, str)]
    assert texts[0].startswith(page.title)
    assert len(tables) >= 2
    assert all(len({len(row) for row in table}) == 1 for table in tables)
    prose = "\n".join(line for text in texts for line in text.splitlines() if not line.startswith("    "))
    assert not re.search(r"\]\(|\*\*|!\[|^#|`|<!--|\{\{", prose, re.MULTILINE)
    assert max(map(len, prose.splitlines())) <= 80 or "https://" in prose
    assert main(["guide", page.name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(page.title)
    assert "\nWhat bnmonitor sees\n" in out
    assert f"guide/{page.name}.md" in out


def test_without_a_name_the_pages_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == NAMES
    assert all(page.title in out for page in all_pages())
    assert max(map(len, out.splitlines())) <= 80


def test_a_name_that_is_begun_is_found_and_one_that_is_unknown_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_page("learning").name == "learning-rate"
    with pytest.raises(ValueError, match="no page is called ''"):
        find_page("")
    assert main(["guide", "learning-rat2"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "learning-rate" in err
    assert main(["guide", "initial", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["page"] == "initialization"
    assert main(["guide", "--json"]) == 0
    assert [page["page"] for page in json.loads(capsys.readouterr().out)["pages"]] == NAMES
