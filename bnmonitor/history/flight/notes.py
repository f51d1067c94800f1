"""The alerts and incidents of a flight record: a line for each change of one, with its checksum."""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger("bnmonitor")

_NAME = re.compile(r"s(\d{4,9})-notes\.txt")
_LINE = re.compile(rb"([0-9a-f]{8}) (.*)\n")


def notes_name(session: int) -> str:
    """Return the name of the file of a session."""
    return f"s{session:04d}-notes.txt"


class Notes:
    """The notes of a session, open for writing.

    Args:
        path: The file, which is made with the first note.
        most: Bytes from which on only the last state of each alert and incident is kept.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.size = path, 0
        self._most = most
        self._last: dict[str, bytes] = {}

    def add(self, key: str, note: Mapping[str, Any]) -> None:
        """Append a note.

        Args:
            key: What it is about: a later note about the same replaces it.
            note: Plain types that JSON can hold.

        Raises:
            OSError: The file can't be written to.
        """
        text = json.dumps(note).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        self._last.pop(key, None)
        self._last[key] = line
        if self.size + len(line) > self._most:
            self._compact()
            return
        with self.path.open("ab") as file:
            file.write(line)
        self.size += len(line)

    def _compact(self) -> None:
        """Write the newest states anew, up to half of the space."""
        kept, size = list[bytes](), 0
        for line in reversed(self._last.values()):
            if size + len(line) > self._most // 2:
                break
            kept.append(line)
            size += len(line)
        self._last = dict(list(self._last.items())[len(self._last) - len(kept) :])
        part = self.path.with_suffix(".part")
        part.write_bytes(b"".join(reversed(kept)))
        part.replace(self.path)
        self.size = size


def read(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the session and each note of all sessions in the order of writing; the log says which are damaged.

    Raises:
        OSError: A file can't be read.
    """
    found = [(int(match.group(1)), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    for session, path in sorted(found):
        with path.open("rb") as file:
            for number, line in enumerate(file):
                note = _decoded(line)
                if note is None:
                    logger.warning("line %d of %s is damaged, and left out", number + 1, path)
                else:
                    yield session, note


def _decoded(line: bytes) -> dict[str, Any] | None:
    whole = _LINE.fullmatch(line)
    if whole is None or zlib.crc32(whole.group(2)) != int(whole.group(1), 16):
        return None
    note = json.loads(whole.group(2))
    return note if isinstance(note, dict) else None
