"""Which lines of bnmonitor a training passes, and what happens if one of them raises."""

from __future__ import annotations

import json
import linecache
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import bnmonitor
from tests.end_to_end.test_promises import same
from tests.inject.trainings import TRAININGS, Ended

PACKAGE = os.path.dirname(bnmonitor.__file__) + os.sep
ERRORS: dict[str, type[BaseException]] = {"RuntimeError": RuntimeError, "KeyboardInterrupt": KeyboardInterrupt}
NOT_REACHED, IN_SHELL = "not reached", "in a line that checks arguments or calls what is guarded"
LONGEST = 300
"""Seconds after which a training counts as hung."""

SHELL: dict[str, tuple[str, ...]] = {
    "layers/hooks.py": ("__call__",),
    "results/state.py": (),
    "results/incidents.py": ("where", "extent", "lines", "__str__"),
    "monitor/monitor.py": (),
    "monitor/session.py": (
        "guard",
        "shielded",
        "begin",
        "close",
        "state_dict",
        "load_state_dict",
        "summary",
        "begin_evaluation",
        "end_evaluation",
    ),
    "monitor/settings.py": ("check_loss",),
    "lightning/harmless.py": (),
    "monitor/harmless.py": (),
    "lightning/callback.py": (
        "setup",
        "on_exception",
        "teardown",
        "state_dict",
        "state_key",
        "_end",
        "_leave",
    ),
}
"""Functions that the training calls, which check arguments and call what is guarded; with no name: all of a file.

Their own lines do nothing that can fail, and an error that is raised there all the same reaches the training.
"""

_NOTHING = re.compile(r"(try|with suppress\(.*\)):$|return (\"\"|None)$")
"""Lines that begin a guard, or return a constant, and do nothing else: no error comes from them, though Ctrl-C may."""

Line = tuple[str, int]
"""A file of the package, relative to it, and a line in it."""


@dataclass(frozen=True)
class Injection:
    """An error at a line of a training."""

    training: str
    line: Line
    error: str

    def __str__(self) -> str:
        return f"bnmonitor/{self.line[0]}:{self.line[1]} {self.error} in a {self.training}"


def passed(training: str) -> list[Line]:
    """Return the lines that a watched training passes, in the order of their first passing."""
    found: dict[Line, None] = {}

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            found[(frame.f_code.co_filename.removeprefix(PACKAGE), frame.f_lineno)] = None
        return local

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(PACKAGE) else None

    _traced(training, trace)
    return list(found)


def _traced(training: str, trace: Callable[[FrameType, str, Any], Any]) -> Ended:
    before = sys.gettrace()
    with tempfile.TemporaryDirectory() as folder:
        sys.settrace(trace)
        try:
            return TRAININGS[training](Path(folder), True)
        finally:
            sys.settrace(before)


def alone(training: str) -> Ended:
    """Return what the training without bnmonitor leaves behind."""
    with tempfile.TemporaryDirectory() as folder:
        return TRAININGS[training](Path(folder), False)


def outcome(injection: Injection, expected: Ended) -> list[str]:
    """Raise the error in a process of its own, and return what is wrong.

    :data:`NOT_REACHED` or :data:`IN_SHELL` alone says that nothing was tried, or that nothing is promised there.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        found = ["the child ended without a word"]
        try:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.alarm(LONGEST)
            found = _injected(injection, expected)
        except BaseException as error:
            found = [f"the test itself: {type(error).__name__}: {error}"]
        finally:
            os.write(writing, json.dumps(found).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    result: list[str] = json.loads(said) if said else [f"the process ended with status {status}"]
    return result


def _injected(injection: Injection, expected: Ended) -> list[str]:
    name, number = injection.line
    file = PACKAGE + name
    kind = ERRORS[injection.error]
    at: list[str] = []

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and frame.f_lineno == number and not at:
            at.append(frame.f_code.co_name)
            raise kind("injected")
        return local

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        return local if code.co_filename == file and code.co_firstlineno <= number else None

    ended = _traced(injection.training, trace)
    if not at:
        return [NOT_REACHED]
    problems = _problems(injection, at[0], ended, expected)
    return problems if problems == [IN_SHELL] else [f"in {at[0]}: {problem}" for problem in problems]


def _problems(injection: Injection, function: str, ended: Ended, expected: Ended) -> list[str]:
    found = list(ended.unclean)
    raised = "nothing" if ended.error is None else f"{type(ended.error).__name__}: {ended.error}"
    if injection.error == "KeyboardInterrupt":
        # A Trainer turns it into the exit of the program.
        if not isinstance(ended.error, KeyboardInterrupt | SystemExit):
            found.append(f"the training ended with {raised}")
        return found
    if ended.error is not None:
        file, number = injection.line
        if _NOTHING.match(linecache.getline(PACKAGE + file, number).strip()):
            return [IN_SHELL]
        shell = SHELL.get(file)
        if not (ended.constructing or (shell is not None and (not shell or function in shell))):
            found.append(f"the training ended with {raised}")
        return found or [IN_SHELL]
    return found + [f"{key} differs" for key in expected.left if not same(expected.left[key], ended.left[key])]
