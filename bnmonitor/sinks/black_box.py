"""The black box: the whole window of all layers, written to a file when an error opens."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from bnmonitor._undisturbed import undisturbed
from bnmonitor.history import black_boxes as boxes
from bnmonitor.history.schema import BOXES
from bnmonitor.results import Alert
from bnmonitor.window import CHANNEL_STATISTICS, LAYER_STATISTICS, Window


class BlackBox:
    """Writes windows to files, off the training thread.

    A file is a ``.npz`` of plain arrays, without pickle: ``steps``, ``layers`` (names), ``channels``, every statistic
    of :class:`bnmonitor.window.Window` over the window, and ``alert`` (JSON).

    Args:
        run: The run's directory.
        most: Most files of a run; later errors are not written.
    """

    def __init__(self, run: Path, most: int = 8) -> None:
        self._folder, self._most = run / BOXES, most
        with undisturbed(), suppress(ImportError):
            import_module("numpy")  # here, not in the middle of the training on a thread of its own
        self._writing: list[Thread] = []
        self._failed: list[Exception] = []
        self.files: list[Path] = []
        """The files written so far, or being written."""

    def write(self, window: Window, alert: Alert) -> Path | None:
        """Copy the window and have it written; return the file's path, or None if there are enough."""
        if len(self.files) >= self._most:
            return None
        layer = "".join(c if c.isalnum() or c in "._-" else "-" for c in alert.layer or "model")[:80]
        path = self._folder / f"step{window.steps[-1]:08d}-{alert.code}-{layer}.npz"
        rows = {name: getattr(window, name).clone() for name in CHANNEL_STATISTICS + LAYER_STATISTICS}
        about = {"steps": window.steps, "layers": window.layers.names, "channels": window.layers.channels}
        thread = Thread(target=self._save, args=(path, rows, about, alert), daemon=False)
        self.files.append(path)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads can be started, or the interpreter is about to end
            self.files.remove(path)
            self._failed.append(error)
            return None
        self._writing.append(thread)
        return path

    def failures(self) -> list[Exception]:
        """Return the errors of writing since the last call."""
        failed, self._failed = self._failed, []
        return failed

    def close(self) -> None:
        """Wait until everything is written."""
        for thread in self._writing:
            thread.join()
        self._writing.clear()

    def _save(self, path: Path, rows: dict[str, torch.Tensor], about: dict[str, Any], alert: Alert) -> None:
        part = path.with_suffix(".part")
        try:
            import numpy as np

            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.savez(
                    file,
                    allow_pickle=False,
                    alert=np.array(json.dumps(alert.to_dict())),
                    **{name: np.array(value) for name, value in about.items()},
                    **{name: value.numpy() for name, value in rows.items()},
                )
            part.replace(path)
        except Exception as error:
            self._failed.append(error)
            self.files.remove(path)
            with suppress(OSError):
                part.unlink(missing_ok=True)


def read_black_box(path: str | Path) -> dict[str, Any]:
    """Read a black box.

    Returns:
        ``alert`` (an :class:`~bnmonitor.Alert`), ``steps``, ``layers`` and ``channels`` as lists, and each statistic as
        a tensor ``[steps, channels]`` or ``[steps, layers]``.

    Raises:
        ValueError: The file is not a black box.
    """
    found = boxes.load(path)
    try:
        alert = Alert.from_dict(found.pop("alert"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a black box of bnmonitor: {error}") from None
    about = {name: found.pop(name) for name in ("steps", "layers", "channels")}
    return {"alert": alert, **about, **{name: torch.from_numpy(array) for name, array in found.items()}}
