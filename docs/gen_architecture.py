"""Draw the rooms of the package from its imports: ``python docs/gen_architecture.py [--check]``.

It writes ``docs/pictures/architecture.svg`` and the table of rooms in ``docs/architecture.md``, and prints the figures.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from html import escape
from pathlib import Path
from textwrap import fill

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = Path("architecture.md"), Path("pictures/architecture.svg")
MARKS = ("<!-- rooms: written by docs/gen_architecture.py -->", "<!-- end of rooms -->")
EVERYWHERE = ("_version", "_text", "_html", "_docstring", "_settings", "_undisturbed", "__main__")
"""Modules that hold nothing of the design; the picture leaves them out."""

LANES = {
    "transfer": "measuring",
    "rules": "judging and reporting",
    "limits": "results and display, without torch",
}
"""The first room of each part of the order, from the top of the picture to the bottom, and the title of the part."""

BOX, STEP, ROW, PAD, HEAD = (136, 26), 178, 40, 12, 24
"""Size of a box; distance of columns and of rows; margin; height of a lane's title."""

STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
.paper { fill: #ffffff } .lane { fill: #f3f5f7 } .title { fill: #59636e; text-anchor: end }
.box { fill: #ffffff; stroke: #59636e } .head { fill: #59636e }
.arrow { fill: none; stroke: #59636e; stroke-width: 1.2 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .paper { fill: #0d1117 } .lane { fill: #151b23 } .title { fill: #9198a1 }
  .box { fill: #212830; stroke: #9198a1 } .arrow { stroke: #9198a1 } .head { fill: #9198a1 }
}"""


@dataclass(frozen=True)
class House:
    """The rooms and what each imports.

    Attributes:
        rooms: The rooms that the picture shows, from left to right.
        uses: For each room, the rooms that it imports.
        circles: Whether rooms import each other in a circle.
        against: Imports that break the order.
        entries: Packages and modules directly under ``bnmonitor``.
    """

    rooms: tuple[str, ...]
    uses: dict[str, frozenset[str]]
    circles: int
    against: int
    entries: int

    def figures(self) -> str:
        """Return the figures in one line."""
        arrows = sum(map(len, self.uses.values()))
        return (
            f"{len(self.rooms)} rooms, {arrows} arrows between rooms ({sum(map(len, self.direct().values()))} drawn), "
            f"{self.circles} circles, {self.against} arrows against the order, "
            f"{self.entries} packages and modules at the root"
        )

    def behind(self, room: str) -> frozenset[str]:
        """Return every room that a room imports, directly or through others."""
        return self.uses[room].union(*(self.behind(used) for used in self.uses[room]))

    def direct(self) -> dict[str, list[str]]:
        """Return for each room what it imports, without the rooms that it reaches through another one as well."""
        if self.circles:
            return {room: sorted(used) for room, used in self.uses.items()}
        return {
            room: [u for u in sorted(used) if not any(u in self.behind(other) for other in used)]
            for room, used in self.uses.items()
        }


def house() -> House:
    """Read the imports of the package."""
    sys.path.insert(0, str(ROOT))
    try:
        from tests.test_import_law import ORDER, imports, modules, room
    finally:
        sys.path.remove(str(ROOT))
    found = modules()
    pairs = {(room(m), room(t)) for m, path in found.items() for t in imports(path) if t and room(t) != room(m)}
    uses = {n: frozenset(t for r, t in pairs if r == n and t not in EVERYWHERE) for n in ORDER if n not in EVERYWHERE}
    try:
        TopologicalSorter(uses).prepare()
        circles = 0
    except CycleError:
        circles = 1
    against = sum(ORDER.index(target) > ORDER.index(source) for source, target in pairs)
    return House(tuple(uses), uses, circles, against, len({room(m) for m in found} | {"__init__"}))


def columns(shown: House) -> dict[str, int]:
    """Return the column of each room: right of all that it imports, and as near as possible to what imports it."""
    column: dict[str, int] = {}
    for room in shown.rooms:
        column[room] = max((column[used] + 1 for used in shown.uses[room]), default=0)
    for room in reversed(shown.rooms):
        users = [column[other] for other in shown.rooms if room in shown.uses[other]]
        if users and len(users) >= len(shown.direct()[room]):
            column[room] = min(users) - 1
    return column


def lanes(shown: House) -> dict[str, str]:
    """Return the title of the lane of each room."""
    title, found = "", {}
    for room in shown.rooms:
        title = LANES.get(room, title)
        found[room] = title
    return found


def places(shown: House) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """Return the left end and the middle line of each box, and the upper and lower edge of each lane."""
    column, lane = columns(shown), lanes(shown)
    spots: dict[str, tuple[float, float]] = {}
    edges: dict[str, tuple[float, float]] = {}
    top = float(PAD)
    for title in LANES.values():
        stacks: dict[int, list[str]] = {}
        for room in (r for r in shown.rooms if lane[r] == title):
            stacks.setdefault(column[room], []).append(room)
        height = max(map(len, stacks.values()), default=0)
        for at, stack in stacks.items():
            start = top + PAD / 2 + ROW * (height - len(stack)) / 2
            for row, room in enumerate(stack):
                spots[room] = (PAD * 2 + STEP * at, start + ROW * (row + 0.5))
        edges[title] = (top, top + PAD / 2 + ROW * height + HEAD)
        top = edges[title][1] + PAD
    return spots, edges


def routes(shown: House) -> list[list[tuple[float, float]]]:
    """Return the points through which each arrow goes, from a room to one that imports it, around other boxes."""
    spots, _ = places(shown)
    direct = shown.direct()
    users: dict[str, list[str]] = {room: [u for u in shown.rooms if room in direct[u]] for room in shown.rooms}
    taken: dict[float, list[float]] = {}
    for x, y in spots.values():
        taken.setdefault(x, []).append(y)
    found = []
    for source in shown.rooms:
        for target in sorted(users[source], key=lambda user: spots[user][1]):
            (x, y), (to_x, to_y) = spots[source], spots[target]
            into = sorted(direct[target], key=lambda used: spots[used][1])
            points = [(x + BOX[0], y + _fan(users[source], target, spots))]
            end = to_y + (into.index(source) - (len(into) - 1) / 2) * min(6.0, 20 / len(into))
            while x + STEP < to_x:
                x += STEP
                height = _free(points[-1][1], taken.setdefault(x, []))
                points += [(x, height), (x + BOX[0], height)]
            found.append([*points, (to_x - 5, end)])
    return found


def _fan(users: list[str], target: str, spots: dict[str, tuple[float, float]]) -> float:
    """Return how far from the middle of a box the arrow to one of its users begins."""
    ordered = sorted(users, key=lambda user: spots[user][1])
    return (ordered.index(target) - (len(ordered) - 1) / 2) * min(6.0, 20 / len(ordered))


def _free(wanted: float, boxes: list[float]) -> float:
    """Return the height nearest to the wanted one at which a line passes between the boxes of a column."""
    clear = BOX[1] / 2 + 6
    candidates = [wanted, *(y + side * clear for y in boxes for side in (-1, 1))]
    return min((y for y in candidates if all(abs(y - b) >= clear for b in boxes)), key=lambda y: abs(y - wanted))


def curve(points: list[tuple[float, float]]) -> str:
    """Return the path of an arrow: level at every point, bent between columns."""
    (x, y), *rest = points
    path = f"M{x:g} {y:.1f}"
    for to_x, to_y in rest:
        middle = (x + to_x) / 2
        path += (
            f"H{to_x:g}" if abs(to_y - y) < 0.05 else f"C{middle:g} {y:.1f} {middle:g} {to_y:.1f} {to_x:g} {to_y:.1f}"
        )
        x, y = to_x, to_y
    return path


def picture(shown: House) -> str:
    """Return the picture."""
    spots, edges = places(shown)
    width = max(x for x, _ in spots.values()) + BOX[0] + 2 * PAD
    height = max(low for _, low in edges.values()) + PAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
        "<title>The rooms of bnmonitor: an arrow leads from a room to a room that imports it</title>",
        f"<style>\n{STYLE}\n</style>",
        '<marker id="head" viewBox="0 0 6 6" refX="1" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
        '<path class="head" d="M0 0L6 3L0 6z"/></marker>',
        f'<rect class="paper" width="{width:g}" height="{height:g}"/>',
    ]
    for title, (upper, lower) in edges.items():
        box = f'x="{PAD}" y="{upper:g}" width="{width - 2 * PAD:g}" height="{lower - upper:g}"'
        parts.append(f'<rect class="lane" {box} rx="6"/>')
        parts.append(f'<text class="title" x="{width - 2 * PAD:g}" y="{lower - 9:g}">{escape(title)}</text>')
    parts += [f'<path class="arrow" d="{curve(points)}" marker-end="url(#head)"/>' for points in routes(shown)]
    for room, (x, y) in spots.items():
        name = f"<title>{escape(sentence(room))}</title>{escape(room)}"
        parts.append(
            f'<rect class="box" x="{x:g}" y="{y - BOX[1] / 2:g}" width="{BOX[0]}" height="{BOX[1]}" rx="5"/>'
            f'<text x="{x + BOX[0] / 2:g}" y="{y + 4.5:g}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def home(room: str) -> Path:
    """Return the file that is the door of a room, below the repository."""
    path = Path("bnmonitor", room, "__init__.py")
    return path if (ROOT / path).is_file() else Path("bnmonitor", f"{room}.py")


def sentence(room: str) -> str:
    """Return what the door of a room says of it: the first paragraph of its docstring."""
    text = ast.get_docstring(ast.parse((ROOT / home(room)).read_text("utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def table(shown: House) -> str:
    """Return the figures, and a table of the rooms with the rooms that each imports."""
    rows = []
    for room in shown.rooms:
        door = home(room)
        path = door.parent if door.name == "__init__.py" else door
        uses = " ".join(f"`{other}`" for other in shown.rooms if other in shown.uses[room])
        rows.append(f"| [`{room}`](../{path.as_posix()}) | {sentence(room)} | {uses} |\n".replace("|  |", "| |"))
    return f"{fill(shown.figures(), 119)}.\n\n| room | what it is | imports |\n|---|---|---|\n{''.join(rows)}"


def page(text: str, shown: House) -> str:
    """Return the page with the table brought up to date."""
    begin, end = map(re.escape, MARKS)
    return re.sub(f"(?<={begin}\n).*?(?={end})", lambda _: f"\n{table(shown)}\n", text, flags=re.DOTALL)


def stale(docs: Path = ROOT / "docs") -> list[Path]:
    """Return what is missing or not what the imports and the docstrings say."""
    shown = house()
    found = [PICTURE] if not (docs / PICTURE).is_file() or (docs / PICTURE).read_text("utf-8") != picture(shown) else []
    text = (docs / PAGE).read_text("utf-8")
    return found + ([PAGE] if text != page(text, shown) else [])


def write(docs: Path = ROOT / "docs") -> None:
    """Bring the picture and the table up to date."""
    shown = house()
    (docs / PICTURE).write_text(picture(shown), encoding="utf-8", newline="\n")
    text = (docs / PAGE).read_text("utf-8")
    (docs / PAGE).write_text(page(text, shown), encoding="utf-8", newline="\n")


def main() -> int:
    """Write picture and table, or say which is stale; print the figures."""
    parser = argparse.ArgumentParser(description="Draw the rooms of the package from its imports.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is stale")
    checking = parser.parse_args().check
    found = stale() if checking else []
    if checking and found:
        print(f"stale: {', '.join(path.as_posix() for path in found)}; run `python docs/gen_architecture.py`")
    elif not checking:
        write()
    print(house().figures())
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
