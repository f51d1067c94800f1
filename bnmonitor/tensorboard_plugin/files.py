"""The files of a run, where TensorBoard reads a local directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bnmonitor.history import black_boxes as boxes


def box_files(context: Any, run: str) -> dict[str, Path]:
    """Return the black boxes of a run by their file names; none where its directory is not local or not known.

    Args:
        context: TensorBoard's plugin context.
        run: Name of a run that TensorBoard knows.
    """
    for root, rest in _places(context, run):
        try:
            inside = root.resolve()
            folder = (inside / rest).resolve()
            if folder.is_relative_to(inside) and (found := boxes.listing(folder)):
                return {path.name: path for path in found if path.resolve().is_relative_to(folder)}
        except (OSError, ValueError, RuntimeError):
            continue
    return {}


def _places(context: Any, run: str) -> list[tuple[Path, str]]:
    """Return the log directories of TensorBoard, each with the place of the run in it."""
    if context.logdir:
        return [(Path(context.logdir).expanduser(), run)]
    places = []
    for entry in (getattr(context.flags, "logdir_spec", "") or "").split(","):
        name, colon, path = entry.partition(":")
        if colon and (run == name or run.startswith(f"{name}/")):
            places.append((Path(path).expanduser(), run[len(name) :].lstrip("/")))
    return places
