"""Runs that lie elsewhere, such as ``s3://``, ``gs://`` or ``hf://``: copied as TensorBoard reads them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PIECE = 2**22


def is_remote(path: str) -> bool:
    """Whether a path names another file system than this machine's."""
    return "://" in path


class Remote:
    """A directory elsewhere, and the copy of what was read of it, which is removed when Python ends.

    Args:
        url: The directory, or an event file.

    Raises:
        FileNotFoundError: There is no such file or directory.
        ImportError: The library for that file system is not installed; the message names it.
        ValueError: There is no such file system.
    """

    def __init__(self, url: str) -> None:
        from tensorboard.compat import tf

        self._files: Any = tf.io.gfile
        self.url = url.rstrip("/")
        if not self._files.exists(self.url):
            raise FileNotFoundError(f"there is no file or directory {url!r}: give a run's log directory")
        self.folder = Path(tempfile.mkdtemp(prefix="bnmonitor-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self._copied: set[str] = set()
        if self._files.isdir(self.url):
            self._copy(name for name in self._names() if "tfevents" in name.rpartition("/")[2])
        else:
            self.url, _, name = self.url.rpartition("/")
            self._copy([name])

    def fetch(self, folder: Path) -> None:
        """Copy all files of a directory, which is given as its copy."""
        inside = folder.relative_to(self.folder).as_posix()
        self._copy(name for name in self._names() if name.startswith(f"{inside}/".removeprefix("./")))

    def _names(self) -> Iterator[str]:
        for folder, _, files in self._files.walk(self.url):
            inside = str(folder).rstrip("/")[len(self.url) :].strip("/")
            yield from (f"{inside}/{name}".lstrip("/") for name in files)

    def _copy(self, names: Any) -> None:
        for name in names:
            if name in self._copied or ".." in name.split("/"):
                continue
            self._copied.add(name)
            place = self.folder.joinpath(*name.split("/"))
            place.parent.mkdir(parents=True, exist_ok=True)
            with self._files.GFile(f"{self.url}/{name}", "rb") as source, place.open("wb") as out:
                while piece := source.read(_PIECE):
                    out.write(piece)
