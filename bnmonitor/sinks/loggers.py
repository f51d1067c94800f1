"""The run's few numbers for any Lightning logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bnmonitor.results import Severity
from bnmonitor.sinks.base import Run, Sink
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
    """Logs the numbers of the whole model to loggers that are not TensorBoard.

    Args:
        loggers: Objects with Lightning's ``log_metrics``; None: those of the Trainer.
    """

    def __init__(self, loggers: Sequence[Any] | None = None) -> None:
        self._given = loggers
        self._loggers: Sequence[Any] = loggers or ()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the Trainer's loggers."""
        return {**vars(self), "_loggers": self._given or ()}

    def open(self, run: Run) -> None:
        """Take the Trainer's loggers if none were given."""
        if self._given is None:
            self._loggers = [each for each in run.loggers if not _writes_events(each)]

    def frame(self, summary: Summary) -> None:
        """Log the totals."""
        for logger in self._loggers:
            logger.log_metrics(totals(summary), step=summary.step)
