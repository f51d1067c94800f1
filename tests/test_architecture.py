"""The page of the architecture says what is there: the picture, the rooms, every stop of the walks, every file."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
SCRIPT = ROOT / "docs" / "gen_architecture.py"

STOP = re.compile(r"^\| \d+\. [^|]* \| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)
FILE = re.compile(r"`((?:bnmonitor|tests|docs)/[^`]*)`")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return run_path(str(SCRIPT))


def names_in(path: Path) -> set[str]:
    """Every class and function of a file, those of a class with its name; of a script every name that is defined."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".js":
        found = re.findall(r"^(?:export )?(?:function|class|const) (\w+)|^  (\w+)\(", text, re.MULTILINE)
        return {name for pair in found for name in pair if name}
    named = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            named.add(node.name)
            named |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            named.add(node.name)
    return named


def test_every_stop_of_the_walks_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    stops = STOP.findall(text)
    assert len(stops) == len(re.findall(r"^\| \d", text, re.MULTILINE)) >= 30
    gone = [
        f"{name} in {file}" for file, name in stops if not (ROOT / file).is_file() or name not in names_in(ROOT / file)
    ]
    assert not gone, f"docs/architecture.md walks by what is gone: {', '.join(gone)}"


def test_every_file_is_there() -> None:
    named = {name for name in FILE.findall(PAGE.read_text(encoding="utf-8")) if "<" not in name}
    gone = sorted(name for name in named if not (ROOT / name).exists())
    assert not gone, f"docs/architecture.md names what is gone: {', '.join(gone)}"


def test_the_picture_and_the_table_are_what_the_imports_say(script: dict[str, Any]) -> None:
    stale = script["stale"]()
    assert not stale, f"run `python docs/gen_architecture.py`: {', '.join(map(str, stale))}"


def test_every_room_says_what_it_is_and_has_its_box(script: dict[str, Any]) -> None:
    house = script["house"]()
    assert (house.circles, house.against) == (0, 0)
    picture = script["picture"](house)
    for room in house.rooms:
        assert script["sentence"](room).endswith(".")
        assert f"</title>{room}</text>" in picture


def test_the_arrows_that_are_left_out_follow_from_those_that_are_drawn(script: dict[str, Any]) -> None:
    house = script["house"]()
    direct = house.direct()

    def behind(room: str) -> set[str]:
        return set(direct[room]).union(*(behind(other) for other in direct[room]))

    assert all(behind(room) == house.behind(room) for room in house.rooms)
    assert sum(map(len, direct.values())) < sum(map(len, house.uses.values()))


def test_no_arrow_goes_through_a_box(script: dict[str, Any]) -> None:
    house = script["house"]()
    spots, _ = script["places"](house)
    width, height = script["BOX"]
    for points in script["routes"](house):
        for x, y in points[1:-1]:
            assert not any(
                left <= x <= left + width and abs(y - middle) <= height / 2 for left, middle in spots.values()
            )


def test_a_stale_picture_is_one_clear_line_and_exit_1(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.png"))
    for name in ("tests/__init__.py", "tests/test_import_law.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "bnmonitor", tmp_path / "bnmonitor", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs/pictures/architecture.svg").write_text("old\n")

    def draw(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / "docs/gen_architecture.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    checked = draw("--check")
    assert checked.returncode == 1
    line, figures = checked.stdout.splitlines()
    assert line == "stale: pictures/architecture.svg; run `python docs/gen_architecture.py`"
    assert re.fullmatch(r"\d+ rooms, \d+ arrows .* 0 circles, 0 arrows against the order, \d+ packages .*", figures)
    draw()
    assert draw("--check").returncode == 0
