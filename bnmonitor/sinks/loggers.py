"""The numbers, incidents and page of a run for other loggers than TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from bnmonitor.history.run import open_history
from bnmonitor.history.statistics import LAYER
from bnmonitor.report.page import page
from bnmonitor.results import Incident, Severity
from bnmonitor.sinks.base import Run, Sink
from bnmonitor.sinks.destinations import destination
from bnmonitor.summary import Summary


def totals(summary: Summary) -> dict[str, float]:
    """Return the numbers of the whole model: worst health, and the incidents that are open, by severity."""
    found = [incident.severity for incident in summary.open_incidents()]
    return {
        "bnmonitor/health": summary.health,
        "bnmonitor/errors": float(found.count(Severity.ERROR)),
        "bnmonitor/warnings": float(found.count(Severity.WARNING)),
    }


def torch_writer(logger: Any) -> Any:
    """Return the ``torch.utils.tensorboard`` writer of a TensorBoard logger; None for any other logger.

    Lightning falls back to tensorboardX. Its writer takes other protocol buffers, so it counts as another logger.
    """
    if not any(c.__name__ == "TensorBoardLogger" for c in type(logger).__mro__):
        return None
    writer = logger.experiment
    return writer if type(writer).__module__.startswith("torch.utils.tensorboard") else None


def _writes_events(logger: Any) -> bool:
    """Return whether the TensorBoard sink writes to this logger; it also reports a writer that cannot be made."""
    try:
        return torch_writer(logger) is not None
    except Exception:
        return True


class Loggers(Sink):
    """Logs to loggers that are not TensorBoard: the whole model, its worst layers, the incidents, and the page.

    Args:
        loggers: Loggers of Lightning, other objects with its ``log_metrics``, a run of W&B, Comet or Neptune, or the
            module ``mlflow``; None: the loggers of the Trainer.
        layers: How many layers have scalars of their own: the worst ones, of which each is logged from then on.
    """

    def __init__(self, loggers: Sequence[Any] | None = None, layers: int = 5) -> None:
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 0:
            raise ValueError(f"layers must be a number of layers, 0 or more, got {layers!r}")
        self._given, self._most = loggers, layers
        self._places = [destination(logger) for logger in loggers or ()]
        self._chosen: list[str] = []
        self._incidents: dict[int, str] = {}
        self._run: Run | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the Trainer's loggers."""
        return {**vars(self), "_places": self._places if self._given is not None else [], "_run": None}

    def open(self, run: Run) -> None:
        """Take the Trainer's loggers if none were given."""
        self._run = run
        if self._given is None:
            self._places = [destination(each) for each in run.loggers if not _writes_events(each)]

    def frame(self, summary: Summary) -> None:
        """Log the totals, and the numbers of the worst layers."""
        if self._places:
            numbers = {**totals(summary), **self._of_layers(summary)}
            for place in self._places:
                place.numbers(numbers, summary.step)

    def _of_layers(self, summary: Summary) -> dict[str, float]:
        """The statistics that TensorBoard draws, of the layers that were among the worst so far."""
        ill = [row.name for row in summary.ill() if row.name not in self._chosen]
        self._chosen += ill[: max(0, self._most - len(self._chosen))]
        places = {name: i for i, name in enumerate(summary.layers.names)}
        return {
            f"{statistic.tag}/{name}": value
            for name in self._chosen
            if name in places
            for column, statistic in enumerate(LAYER)
            if statistic.tag and isfinite(value := float(summary.table[places[name], column]))
        }

    def incident(self, incident: Incident) -> None:
        """Log all incidents so far as a text, where a logger takes texts."""
        self._incidents[incident.index] = f"{incident}\n  {incident.state}"
        for place in self._places:
            place.incidents(tuple(self._incidents.values()))

    def close(self, summary: Summary) -> None:
        """Log the page of the run, where a logger takes files and a history is on the disk."""
        takers = [place for place in self._places if place.takes_pages]
        histories = () if self._run is None else self._run.history
        if takers and histories:
            history = open_history(histories[0])
            if "." in history.names:
                html = page(history, ".")
                for place in takers:
                    place.page(html)
