"""Write the pages of the symptoms from the texts in the package: ``python docs/gen_symptoms.py [--check | --run]``.

With ``--run`` the wrong programs are run first: what bnmonitor says of them is written into the texts, and the maps
that it shows are drawn.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnmonitor.symptoms import Symptom, all_symptoms, code_of, symptom_index, symptom_page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
TEXTS = ROOT / "bnmonitor" / "symptoms" / "texts"
PICTURES = DOCS / "pictures" / "symptoms"
MODES = ("light", "dark")
COLUMNS = 86
"""Columns at which what is printed is wrapped."""
WIDTH, FRAME, ROW = 6.4, 0.5, 0.26
"""Inches: of a map, of what is around it in height, and of a layer."""

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


def picture_of(symptom: str, number: int, mode: str) -> Path:
    """Return where the map of the wrong program of a reason lies, the reasons counted from 1."""
    return PICTURES / f"{symptom}-{number}-{mode}.svg"


def link(symptom: str, number: int, title: str) -> str:
    """Return the picture as Markdown in a page of a symptom; empty where no step was recorded, and so there is none."""
    path = picture_of(symptom, number, MODES[0])
    return f"![Map: {title}](../{path.relative_to(DOCS).as_posix()})\n\n" if path.is_file() else ""


def stale(docs: Path = DOCS) -> list[Path]:
    """Return the pages that are missing, not what the texts say, or left from a text that is gone."""
    wanted = pages()
    changed = [p for p, text in wanted.items() if not (docs / p).is_file() or (docs / p).read_text("utf-8") != text]
    there = [path.relative_to(docs) for path in sorted((docs / "symptoms").glob("*.md"))]
    return changed + [path for path in there if path not in wanted]


def kept_of(folder: Path) -> Mapping[str, Any] | None:
    """Return what a map takes of the last run with an incident in a folder; None where no step was recorded."""
    import bnmonitor

    run = [run for run in bnmonitor.open(folder).values() if run.incidents][-1]
    if not len(run.steps):
        return None
    return {
        "statistic": "health",
        "steps": run.steps,
        "layers": run.layers,
        "values": run.table("health"),
        "incidents": [{"first_step": i.first_step, "severity": str(i.severity)} for i in run.incidents],
    }


def draw(symptom: str, number: int, code: str) -> str:
    """Run a wrong program, draw its map, and return what bnmonitor says."""
    sys.path.insert(0, str(ROOT))
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from benchmarks.guide.pictures import draw_map, save, style
    from tests.symptoms.running import incidents_of

    with tempfile.TemporaryDirectory() as folder:
        incidents = incidents_of(code, Path(folder))
        kept = kept_of(Path(folder))
    for mode in MODES if kept is not None else ():
        with mpl.rc_context(style(mode)):
            height = FRAME + ROW * len(kept["layers"])
            figure, ax = plt.subplots(figsize=(WIDTH, height), layout="constrained")
            draw_map(kept, ax, mode)
            ax.images[0].colorbar.remove()
            ax.set_ylabel("layer")
            PICTURES.mkdir(parents=True, exist_ok=True)
            save(figure, picture_of(symptom, number, mode))
    return "\n".join(str(incident) for incident in incidents)


def said(symptom: str, number: int, code: str) -> str:
    """Run a program, draw its map, and return what bnmonitor says of it, wrapped."""
    lines = draw(symptom, number, code).splitlines()
    if not lines:
        raise SystemExit(f"nothing is said of this program:\n{code}")
    return "".join(f"{part}\n" for line in lines for part in _wrap(line))


def _wrap(line: str) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    kept = re.sub(r" (?=%)|(?<=\blayer) (?=\d)", "\0", line)  # what belongs together stays in a line
    parts = textwrap.wrap(
        kept, COLUMNS, subsequent_indent=f"{indent}  ", break_on_hyphens=False, break_long_words=False
    )
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
