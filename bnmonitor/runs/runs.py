"""What ``bnmonitor.open`` returns: runs by name, each of which can be tabulated and drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from bnmonitor._text import count, listing, nearest, public
from bnmonitor.history.run import History, open_history
from bnmonitor.history.source import Files
from bnmonitor.runs import notebook, plots, tables
from bnmonitor.runs.data import RunData

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


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
    """Recorded runs by name, read only.

    Args:
        history: The history.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._found: dict[str, Run] | None = None

    def _runs(self) -> dict[str, Run]:
        if self._found is None:
            source = self._history.source
            assert isinstance(source, Files)
            self._found = {name: Run(run, source.directory(name)) for name, run in self._history.all().items()}
        return self._found

    def __getitem__(self, name: str) -> Run:
        runs = self._runs()
        if name not in runs:
            raise KeyError(f"there is no run {name!r}{nearest(name, tuple(runs))}; there are {listing(runs)}")
        return runs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs())

    def __len__(self) -> int:
        return len(self._runs())

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
        shown = [f"  {run!r}" for run in list(self.values())[:10]]
        more = [f"  ... and {len(self) - 10} more"] if len(self) > 10 else []
        return "\n".join([f"<Runs: {len(self)}>", *shown, *more])

    def _repr_html_(self) -> str:
        return notebook.of_runs(self)


def open(path: str | PathLike[str]) -> Runs:  # noqa: A001
    """Open the recorded runs in a directory: a run's own, or one of runs.

    Args:
        path: The directory, or an event file.

    Returns:
        The runs by name; that of the directory itself is ``"."``.

    Raises:
        FileNotFoundError: There is no such file or directory.

    Example:
        >>> import bnmonitor
        >>> runs = bnmonitor.open("lightning_logs")  # doctest: +SKIP
        >>> steps, values = runs["version_0"].history("net.bn1", "batch_var")  # doctest: +SKIP
    """
    return Runs(open_history(Path(path)))
