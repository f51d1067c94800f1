"""Write the pages of the symptoms from the texts in the package: ``python docs/gen_symptoms.py [--check | --run]``.

With ``--run`` the wrong programs are run first: what bnmonitor says of them is written into the texts, and the maps
that it shows are drawn.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path

from bnmonitor.symptoms import Symptom, all_symptoms, code_of, symptom_index, symptom_page

sys.path.insert(0, str(Path(__file__).parent))
from symptom_maps import draw, link

DOCS = Path(__file__).parent
TEXTS = DOCS.parent / "bnmonitor" / "symptoms" / "texts"
WIDTH = 86
"""Columns at which what is printed is wrapped."""

SETUP = "The programs begin with [the same setup](#the-setup-of-the-programs)."
ABOUT_MAPS = (
    "Below what is said is the map that the tab shows: a row is a layer, a column a step, red where an error is open, "
    "amber where a warning is. The dashed line is where the incident begins."
)


def pages() -> dict[Path, str]:
    """Return the text of every page by its path under ``docs``."""
    found = {Path("symptoms", f"{symptom.name}.md"): with_maps(symptom) for symptom in all_symptoms()}
    return {Path("symptoms.md"): symptom_index(), **found}


def with_maps(symptom: Symptom) -> str:
    """Return the page of a symptom with the map of each wrong program below what is said of it."""
    head, *parts = re.split(r"(?<=\n)(?=## )", symptom_page(symptom))
    for at, reason in enumerate(symptom.reasons):
        said, end, right = parts[at].partition(f"```text\n{reason.says}```\n\n")
        parts[at] = f"{said}{end}{link(symptom.name, at + 1, reason.title)}{right}"
    head = head.replace(SETUP, textwrap.fill(f"{SETUP} {ABOUT_MAPS}", 120))
    return "".join([head, *parts])


def stale(docs: Path = DOCS) -> list[Path]:
    """Return the pages that are missing, not what the texts say, or left from a text that is gone."""
    wanted = pages()
    changed = [p for p, text in wanted.items() if not (docs / p).is_file() or (docs / p).read_text("utf-8") != text]
    there = [path.relative_to(docs) for path in sorted((docs / "symptoms").glob("*.md"))]
    return changed + [path for path in there if path not in wanted]


def said(symptom: str, number: int, code: str) -> str:
    """Run a program, draw its map, and return what bnmonitor says of it, wrapped."""
    lines = draw(symptom, number, code).splitlines()
    if not lines:
        raise SystemExit(f"nothing is said of this program:\n{code}")
    return "".join(f"{part}\n" for line in lines for part in _wrap(line))


def _wrap(line: str) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    kept = re.sub(r" (?=%)|(?<=\blayer) (?=\d)", "\0", line)  # what belongs together stays in a line
    parts = textwrap.wrap(kept, WIDTH, subsequent_indent=f"{indent}  ", break_on_hyphens=False, break_long_words=False)
    return [part.replace("\0", " ") for part in parts]


def run() -> None:
    """Write into the texts what bnmonitor says of the wrong programs."""
    for symptom in all_symptoms():
        text = re.sub(r"```text\n.*?```\n\n", "", symptom.source, flags=re.DOTALL)
        for number, reason in enumerate(symptom.reasons, 1):
            block = f"```python\n{reason.wrong}```\n"
            at = text.index(block, text.index(f"## {reason.title}\n")) + len(block)
            text = f"{text[:at]}\n```text\n{said(symptom.name, number, code_of(reason, right=False))}```\n{text[at:]}"
        (TEXTS / f"{symptom.name}.md").write_text(text, encoding="utf-8", newline="\n")
        print(f"bnmonitor/symptoms/texts/{symptom.name}.md")
    all_symptoms.cache_clear()


def main() -> int:
    """Write the pages, or say which are stale."""
    parser = argparse.ArgumentParser(description="Write the pages of the symptoms.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    parser.add_argument("--run", action="store_true", help="run the wrong programs, and write what is said of them")
    given = parser.parse_args()
    if given.run:
        run()
    found = stale()
    if given.check:
        if found:
            print(f"stale: {', '.join(p.as_posix() for p in found)}; run `python docs/gen_symptoms.py`")
        return 1 if found else 0
    wanted = pages()
    for path in found:
        if path in wanted:
            (DOCS / path).parent.mkdir(exist_ok=True)
            (DOCS / path).write_text(wanted[path], encoding="utf-8", newline="\n")
        else:
            (DOCS / path).unlink()
        print(f"docs/{path.as_posix()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
