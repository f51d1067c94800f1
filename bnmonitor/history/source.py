"""The sources of a history's records: event files, or TensorBoard's data provider."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from bnmonitor.history.event_files import STDIN, Array, Found, event_files, session_of, values
from bnmonitor.history.schema import PLUGIN

__all__ = ["STDIN", "Array", "Files", "Provider", "Record", "Source", "Tag"]

logger = logging.getLogger("bnmonitor")


@dataclass(frozen=True)
class Record:
    """One value of a tag: a float32 array, or the text of a JSON document.

    Attributes:
        step: The step that it was written at.
        wall_time: The clock of the process that wrote it, in seconds since 1970.
        value: The array or the text.
        place: File and position in it, in the order of writing; ``(0, 0)`` if the source does not know.
    """

    step: int
    wall_time: float
    value: Array | str
    place: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Tag:
    """The facts of a tag that need no reading of its values.

    Attributes:
        description: The description written with its first value.
        last: A value that changes when something is added.
    """

    description: bytes
    last: tuple[Any, ...]


class Source(Protocol):
    """The runs of a history, their tags, and the values of the tags."""

    def runs(self) -> Mapping[str, Mapping[str, Tag]]:
        """Return the tags of every run that has a history of bnmonitor."""
        ...

    def read(self, run: str, tags: Sequence[str]) -> Mapping[str, Sequence[Record]]:
        """Return the values of the tags, in the order in which they were written."""
        ...


# -- event files -------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """The content of a directory's event files that was read so far."""

    tags: dict[str, bytes] = field(default_factory=dict)
    records: dict[str, list[Record]] = field(default_factory=dict)


class Files:
    """Reads event files directly.

    It ignores other files, truncated ends and damaged records, and reads the rest.

    Args:
        path: An event file, a run's directory, or a directory of runs; ``-``: an event file from standard input.
        files: The files to read, each with the name of its run; None: all below the path.
    """

    def __init__(self, path: str | Path, files: Sequence[tuple[str, Path]] | None = None) -> None:
        self.path = Path(path)
        self._files = files
        self._runs: dict[str, _Run] | None = None
        self._unreadable: list[OSError] = []

    @property
    def unreadable(self) -> tuple[OSError, ...]:
        """The errors of files and directories that could not be read; each names its file."""
        self._load()
        return tuple(self._unreadable)

    def runs(self) -> Mapping[str, Mapping[str, Tag]]:
        """Return the tags of every run by its path below the directory; the directory itself is ``"."``."""
        found = self._load()
        return {
            name: {tag: Tag(run.tags[tag], (len(records),)) for tag, records in run.records.items()}
            for name, run in found.items()
        }

    def read(self, run: str, tags: Sequence[str]) -> Mapping[str, Sequence[Record]]:
        """Return the values of the tags in the order of writing: file by file, and by position in each."""
        known = self._load()[run].records
        return {tag: known[tag] for tag in tags if tag in known}

    def directory(self, run: str) -> Path:
        """Return the directory of a run."""
        if self.path == STDIN:
            return Path("standard input")
        return (self.path if self.path.is_dir() else self.path.parent) / run

    def _load(self) -> dict[str, _Run]:
        if self._runs is None:
            files: dict[str, list[tuple[int, list[Found]]]] = {}
            listed = event_files(self.path, self._unreadable.append) if self._files is None else self._files
            for name, file in listed:
                found: list[Found] = []
                try:
                    for value in values(file, given=file == self.path):
                        found.append(value)  # what was read before an error stays
                except OSError as error:
                    self._unreadable.append(error)
                except MemoryError:
                    self._unreadable.append(OSError(errno.ENOMEM, "it needs too much memory", str(file)))
                if found:
                    session = next((n for each in found if (n := session_of(each)) is not None), 1)
                    files.setdefault(name, []).append((session, found))
            self._runs = {name: _joined(read) for name, read in files.items()}
        return self._runs


def _joined(files: list[tuple[int, list[Found]]]) -> _Run:
    """Put the files of a run in the order of writing: by session, then by file name, which begins with a time.

    File names alone do not do: they follow the clock of the machine that wrote the file.
    """
    run = _Run()
    for number, (_, found) in enumerate(sorted(files, key=lambda each: each[0])):
        for position, each in enumerate(found):
            run.tags[each.tag] = run.tags.get(each.tag) or each.description
            place = (number, position)
            run.records.setdefault(each.tag, []).append(Record(each.step, each.wall_time, each.value, place))
    return run


# -- TensorBoard's data provider ---------------------------------------------------------------------------------------


class Provider:
    """Reads through TensorBoard's data provider, which knows remote directories and both of its load modes.

    Args:
        provider: The data provider.
        context: The context of the request.
        experiment: The experiment of the request.
        most: Values per tag to ask for.
        listed: What :meth:`runs` of another such source returned, if that is what there is now.
    """

    def __init__(
        self,
        provider: Any,
        context: Any,
        experiment: str,
        most: int,
        listed: Mapping[str, Mapping[str, Tag]] | None = None,
    ) -> None:
        self._provider, self._most, self._listed = provider, most, listed
        self._ask = {"experiment_id": experiment, "plugin_name": PLUGIN}
        self._context = context
        self._read: dict[str, dict[str, list[Record]]] = {}

    def runs(self) -> Mapping[str, Mapping[str, Tag]]:
        """Return the tags of every run, as they were when first asked for: a provider serves one request."""
        return self._tags

    @cached_property
    def _tags(self) -> Mapping[str, Mapping[str, Tag]]:
        if self._listed is not None:
            return self._listed
        listed = self._provider.list_tensors(self._context, **self._ask)
        return {
            run: {tag: Tag(each.plugin_content, (each.max_step, each.max_wall_time)) for tag, each in tags.items()}
            for run, tags in listed.items()
        }

    def ahead(self, tags: Mapping[str, Sequence[str]]) -> None:
        """Read the tags of several runs at once, and keep them, until the next call, for :meth:`read`."""
        self._read = {}
        if len(tags) < 2:
            return
        try:
            read = self._request(list(tags), list(dict.fromkeys(tag for some in tags.values() for tag in some)))
        except (ValueError, TypeError, MemoryError, OverflowError):
            return  # a damaged value: each run is read by itself, and says which
        self._read = {run: {tag: read.get(run, {}).get(tag, []) for tag in some} for run, some in tags.items()}

    def read(self, run: str, tags: Sequence[str]) -> Mapping[str, Sequence[Record]]:
        """Return the values of the tags that TensorBoard kept."""
        if not tags:
            return {}
        known = self._read.get(run, {})
        if all(tag in known for tag in tags):
            return {tag: known[tag] for tag in tags if known[tag]}
        try:
            return self._request([run], tags).get(run, {})
        except (ValueError, TypeError, MemoryError, OverflowError) as error:
            # TensorBoard decodes all tags of a request at once, and one damaged tensor fails it.
            if len(tags) == 1:
                logger.warning("%s of the run %r holds a damaged value, so it is left out: %s", tags[0], run, error)
                return {}
        return {tag: records for each in tags for tag, records in self.read(run, [each]).items()}

    def _request(self, runs: Sequence[str], tags: Sequence[str]) -> dict[str, dict[str, list[Record]]]:
        from tensorboard.data.provider import RunTagFilter

        wanted = RunTagFilter(runs=list(runs), tags=list(tags))
        read = self._provider.read_tensors(self._context, **self._ask, downsample=self._most, run_tag_filter=wanted)
        return {
            run: {tag: [_record(datum) for datum in data] for tag, data in found.items()} for run, found in read.items()
        }


def _record(datum: Any) -> Record:
    value = datum.numpy
    if value.dtype.kind != "f":
        item = value.item()
        value = item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)
    return Record(int(datum.step), float(datum.wall_time), value)
