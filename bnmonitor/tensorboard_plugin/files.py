"""The files of a run, where TensorBoard reads a local directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnmonitor.history import black_boxes as boxes
from bnmonitor.history.flight.layout import FOLDER


def box_files(context: Any, run: str) -> dict[str, Path]:
    """Return the black boxes of a run by their file names; none where its directory is not local or not known.

    Args:
        context: TensorBoard's plugin context.
        run: Name of a run that TensorBoard knows.
    """
    for folder in _folders(context, run):
        try:
            if found := boxes.listing(folder):
                return {path.name: path for path in found if path.resolve().is_relative_to(folder)}
        except (OSError, ValueError, RuntimeError):
            continue
    return {}


def flight_folder(context: Any, run: str) -> Path | None:
    """Return the directory of a run's flight record; None where it has none, or none that can be read from here.

    Args:
        context: TensorBoard's plugin context.
        run: Name of a run that TensorBoard knows.
    """
    for folder in _folders(context, run):
        try:
            found = (folder / FOLDER).resolve()
            if found.is_dir() and found.is_relative_to(folder):
                return found
        except (OSError, ValueError, RuntimeError):
            continue
    return None


def _folders(context: Any, run: str) -> Iterator[Path]:
    """Yield where the run's directory may be: never outside of a log directory."""
    for root, rest in _places(context, run):
        try:
            inside = root.resolve()
            folder = (inside / rest).resolve()
        except (OSError, ValueError, RuntimeError):
            continue
        if folder.is_relative_to(inside):
            yield folder


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
