"""The maps of the symptoms' programs: what bnmonitor shows of each wrong program, as a picture in light and dark."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PICTURES = DOCS / "pictures" / "symptoms"
MODES = ("light", "dark")
WIDTH, FRAME, ROW = 6.4, 0.5, 0.26
"""Inches: of the picture, of what is around the map in height, and of a layer."""


def picture_of(symptom: str, number: int, mode: str) -> Path:
    """Return where the map of the wrong program of a reason lies, the reasons counted from 1."""
    return PICTURES / f"{symptom}-{number}-{mode}.svg"


def link(symptom: str, number: int, title: str) -> str:
    """Return the picture as Markdown in a page of a symptom; empty where no step was recorded, and so there is none."""
    path = picture_of(symptom, number, MODES[0])
    return f"![Map: {title}](../{path.relative_to(DOCS).as_posix()})\n\n" if path.is_file() else ""


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
