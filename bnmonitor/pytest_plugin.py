"""The pytest plugin: with ``pytest --bnmonitor``, a test that trains fails on an incident.

pytest imports this file in every project of an environment with bnmonitor, so that it loads nothing before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bnmonitor.monitor import Monitor
    from bnmonitor.results import Incident

_LEVELS = ("warning", "error")


class Watching:
    """What bnmonitor sees of the trainings of one test; nothing without ``--bnmonitor``."""

    def __init__(self) -> None:
        self._monitors: list[Monitor] = []

    @property
    def monitors(self) -> tuple[Monitor, ...]:
        """The monitors of the test: one for each model that it trains, or those that the test has started itself."""
        return tuple(self._monitors)

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """Every incident so far, resolved ones too."""
        return tuple(incident for monitor in self.monitors for incident in monitor.incidents)


class _Watching(Watching):
    """Watches, from the beginning of a test to its end.

    Args:
        folder: The directory for the histories.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from bnmonitor.monitor import running
        from bnmonitor.scripts.finder import Finder, optimizers_in_memory

        self._folder, self._end = folder, ExitStack()
        self._monitors = self._end.enter_context(running.kept())
        self._finder = Finder(folder, quiet=True, others=optimizers_in_memory())
        self._end.callback(self._finder.close)

    @property
    def monitors(self) -> tuple[Monitor, ...]:
        """Without those of models that were taken for one until the whole was found."""
        found = [each.monitor for each in self._finder.watched]
        own = [each for each in self._monitors if each.log_dir is None or not each.log_dir.is_relative_to(self._folder)]
        return (*found, *own)

    def close(self) -> None:
        """End the watch; a second call does nothing."""
        self._end.close()

    def verdict(self, level: str, root: Path) -> str:
        """Return what is wrong: three lines an incident, and where the rest is; empty if nothing is.

        Args:
            level: The least severity that counts.
            root: Where the settings of the project are.
        """
        from bnmonitor.gates import GateError, Problem, read_suppressions
        from bnmonitor.results import Severity, still_open

        try:
            suppressions = read_suppressions(root)
        except GateError as error:
            return f"bnmonitor: {error}"
        lines = [f"bnmonitor: {monitor.failure}" for monitor in self.monitors if monitor.failure]
        for monitor in self.monitors:
            found = [each for each in still_open(monitor.incidents) if each.severity >= Severity[level.upper()]]
            found = [each for each in found if not suppressions.reason(Problem.of_incident(each))]
            lines += map(str, found)
            if found and monitor.log_dir is not None:
                lines.append(f"bnmonitor report {monitor.log_dir}")
        return "\n".join(lines)


_KEY = pytest.StashKey[_Watching]()
_COUNT = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("bnmonitor", "batch normalization")
    group.addoption(
        "--bnmonitor",
        action="store_true",
        help="watch what tests with the fixture `bnmonitor` train: an incident that is open at the end fails the test",
    )
    group.addoption(
        "--bnmonitor-fail-on",
        choices=_LEVELS,
        default="warning",
        help="the least severity that fails a test (warning)",
    )


@pytest.fixture
def bnmonitor(request: pytest.FixtureRequest) -> Iterator[Watching]:
    """Watch every model with BatchNorm layers that the test trains, by Lightning or in a loop of its own.

    With ``--bnmonitor``, the test fails on an incident that is open at its end, with the incident as the message.
    Without the option nothing happens.
    """
    if not request.config.getoption("bnmonitor"):
        yield Watching()
        return
    factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    watching = _Watching(factory.mktemp("bnmonitor"))
    request.node.stash[_KEY] = watching
    request.config.stash[_COUNT] = request.config.stash.get(_COUNT, 0) + 1
    try:
        yield watching
    finally:
        watching.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that has passed, if what it has trained has an incident."""
    outcome: Any = yield
    watching = item.stash.get(_KEY, None)
    if watching is None:
        return
    watching.close()
    text = watching.verdict(item.config.getoption("bnmonitor_fail_on"), item.config.rootpath)
    if text and outcome.excinfo is None:
        error = pytest.fail.Exception(text, pytrace=False)
        if not hasattr(outcome, "force_exception"):  # pluggy before 1.1
            raise error
        outcome.force_exception(error)
    elif text:
        item.add_report_section("call", "bnmonitor", text)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say so if the option had no effect."""
    elsewhere = config.getoption("numprocesses", None)  # of xdist, whose tests run in other processes
    if config.getoption("bnmonitor") and not elsewhere and not config.stash.get(_COUNT, 0):
        terminalreporter.write_line("bnmonitor: no test has the fixture `bnmonitor`, so nothing was watched")
