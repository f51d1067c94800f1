"""The files of a run besides its history: the flight record, and the black boxes of its errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bnmonitor.results import Alert, Incident, Severity
from bnmonitor.sinks import BlackBox, FlightRecord
from bnmonitor.window import Window


class RunFiles:
    """Writes windows that rules have judged to files in the run's directory. An error ends the file, not the training.

    Args:
        log_dir: The run's directory; None: no file is written.
        flight_bytes: Most bytes of the flight record; 0: there is none.
        failed: Called with the name of a file and the error that ended it.
    """

    def __init__(self, log_dir: Path | None, flight_bytes: int, failed: Callable[[str, Exception], None]) -> None:
        self._failed = failed
        self.black_box = None if log_dir is None else BlackBox(log_dir)
        """Writes the whole window when an error opens; None without a directory."""
        self.flight = None if log_dir is None or not flight_bytes else FlightRecord(log_dir, flight_bytes)
        """Writes the flight record; None if there is none, or it has failed."""

    @property
    def black_boxes(self) -> Sequence[Path]:
        """The black boxes written so far, or being written."""
        return () if self.black_box is None else self.black_box.files

    def judged(self, window: Window, alerts: Sequence[Alert], incidents: Sequence[Incident] = ()) -> None:
        """Take in a window, before its steps are settled, and the alerts and incidents that have changed."""
        opened = [alert for alert in alerts if alert.state == "open"]
        self._record(lambda flight: flight.take(window, opened))
        if alerts or incidents:
            self._record(lambda flight: flight.note(alerts, incidents))
        for alert in opened:
            if self.black_box is not None and alert.severity is Severity.ERROR:
                self.black_box.write(window, alert)

    def end_epoch(self, epoch: int | None) -> None:
        """Note that an epoch has ended."""
        self._record(lambda flight: flight.end_epoch(epoch))

    def close(self) -> None:
        """Wait until everything is written."""
        if self.black_box is not None:
            self.black_box.close()
            for error in self.black_box.failures():
                self._failed("the black box", error)
        self._record(lambda flight: flight.close())

    def _record(self, call: Callable[[FlightRecord], object]) -> None:
        if self.flight is None:
            return
        errors: list[Exception] = []
        try:
            call(self.flight)
        except Exception as error:
            errors.append(error)
        errors += self.flight.failures()
        if errors:
            self.flight = None
            self._failed("the flight record", errors[0])
