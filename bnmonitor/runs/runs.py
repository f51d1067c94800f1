"""What ``bnmonitor.open`` returns: runs by name, each of which can be tabulated and drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from bnmonitor._text import count, listing, nearest, public
from bnmonitor.history.entry import Entry
from bnmonitor.history.event_files import is_of_flight, run_files
from bnmonitor.history.flight.reader import Flight
from bnmonitor.history.run import History
from bnmonitor.history.source import Files
from bnmonitor.runs import notebook, plots, tables
from bnmonitor.runs.data import RunData
from bnmonitor.runs.flight_only import FlightOnly
from bnmonitor.runs.index import entries
from bnmonitor.runs.remote import Remote, is_remote

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


logger = logging.getLogger("bnmonitor")


class Run(RunData):
    """One recorded run. Each part is read when it is first asked for."""

    def to_frame(self, layer: str | None = None, statistic: str | None = None) -> pandas.DataFrame:
        """Return a table; it needs pandas.

        Args:
            layer: Name of a layer, or a glob pattern of names; None: every layer.
            statistic: Of channels: a row for each block, and a column for each channel of each layer. None: every
                statistic of whole layers: a row for each logged step and layer.

        Raises:
            ImportError: pandas is not installed.
            KeyError: Nothing has that name; the message names the nearest one.
        """
        return tables.frame(self, layer, statistic)

    def plot(self, layer: str | None = None, statistic: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw a statistic over the run, and return the axes; it needs matplotlib.

        Args:
            layer: Name of a layer: its channels as bands of percentiles. None: every layer as a line.
            statistic: With a layer one of :meth:`history`, ``batch_var`` if None; without, ``health`` if None.
            ax: Axes to draw on; None: those of a new figure.

        Raises:
            ImportError: matplotlib is not installed.
            KeyError: Nothing has that name; the message names the nearest one.
        """
        return plots.plot(self, layer, statistic, ax)

    def plot_map(self, statistic: str = "health", ax: Axes | None = None) -> Axes:
        """Draw a statistic of every layer at every logged step as a map, and return the axes; it needs matplotlib."""
        return plots.plot_map(self, statistic, ax)

    def __dir__(self) -> list[str]:
        return public(self)

    def __repr__(self) -> str:
        last = int(self.steps[-1]) if len(self.steps) else -1
        return f"<Run {self.name!r}: {count(len(self.layers), 'layer')}, last step {last}, {self.verdict}>"

    def _repr_html_(self) -> str:
        return notebook.of_run(self)


class Runs(Mapping[str, Run]):
    """Recorded runs by name, read only. What each said last is kept, so that only runs that have changed are read.

    Args:
        path: The directory, or an event file.
        fetch: Called with a directory before it is read, where only event files are there yet.
    """

    def __init__(self, path: Path, fetch: Callable[[Path], object] | None = None) -> None:
        self._path, self._fetch = path, fetch
        self._files: dict[str, list[Path]] = {}
        for name, file in run_files(path, lambda error: logger.warning("%s", error)):
            self._files.setdefault(name, []).append(file)
        for name, mine in self._files.items():
            self._files[name] = [file for file in mine if not is_of_flight(file)] or mine
        self._opened: dict[str, Run | None] = {}
        self._listed: dict[str, Entry] | None = None

    def _open(self, name: str) -> Run | None:
        """Open a run; None if it has no history."""
        if name not in self._opened:
            self._opened[name] = self._of_flight(name) if is_of_flight(self._files[name][0]) else self._of_events(name)
        return self._opened[name]

    def _of_events(self, name: str) -> Run | None:
        source = Files(self._path, [(name, file) for file in self._files[name]])
        recorded = History(source).all().get(name)
        for error in source.unreadable:
            logger.warning("%s", error)
        return None if recorded is None else Run(recorded, source.directory(name), self._fetch)

    def _of_flight(self, name: str) -> Run | None:
        flight = Flight.of(self._path / name)
        return None if flight is None else Run(FlightOnly(name, flight), self._path / name)

    def _entries(self) -> dict[str, Entry]:
        if self._listed is None:
            self._listed = dict(sorted(entries(None if self._fetch else self._path, self._files, self._open).items()))
        return self._listed

    def __contains__(self, name: object) -> bool:
        return name in self._files and self._open(str(name)) is not None

    def __getitem__(self, name: str) -> Run:
        run = self._open(name) if name in self._files else None
        if run is None:
            raise KeyError(f"there is no run {name!r}{nearest(name, tuple(self))}; there are {listing(self)}")
        return run

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    @property
    def only(self) -> Run:
        """The run, if there is one only.

        Raises:
            LookupError: There is none, or there are several.
        """
        if len(self) != 1:
            raise LookupError(f"there are {count(len(self), 'run')}: {listing(self)}" if self else "there is no run")
        return next(iter(self.values()))

    def __dir__(self) -> list[str]:
        return public(self)

    def __repr__(self) -> str:
        shown = [
            f"  {name!r}: {count(each.layers, 'layer')}, last step {each.last_step}, {each.verdict}"
            for name, each in list(self._entries().items())[:10]
        ]
        more = [f"  ... and {len(self) - 10} more"] if len(self) > 10 else []
        return "\n".join([f"<Runs: {len(self)}>", *shown, *more])

    def _repr_html_(self) -> str:
        return notebook.of_runs(self._entries())


def open(path: str | PathLike[str]) -> Runs:  # noqa: A001
    """Open the recorded runs in a directory: a run's own, or one of runs.

    Args:
        path: The directory, or an event file; also one that TensorBoard reads elsewhere, such as ``s3://bucket/logs``,
            of which event files are copied at once, and the rest of a run when its channels are first asked for.

    What each run of a directory said last is kept in ``$XDG_CACHE_HOME/bnmonitor`` or ``~/.cache/bnmonitor``, so that
    the next time only those that have changed are read for a list.

    Returns:
        The runs by name; that of the directory itself is ``"."``.

    Raises:
        FileNotFoundError: There is no such file or directory.
        ImportError: The library for a file system elsewhere is not installed.
        ValueError: There is no such file system.

    Example:
        >>> import bnmonitor
        >>> runs = bnmonitor.open("lightning_logs")  # doctest: +SKIP
        >>> steps, values = runs["version_0"].history("net.bn1", "batch_var")  # doctest: +SKIP
    """
    if isinstance(path, str) and is_remote(path):
        remote = Remote(path)
        return Runs(remote.folder, remote.fetch)
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"there is no file or directory {str(path)!r}: give a run's log directory")
    return Runs(place)
