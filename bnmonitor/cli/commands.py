"""The command line: what its commands are, and how it ends."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from bnmonitor.cli.answers import FINE, FOUND, USAGE, fail
from bnmonitor.cli.arguments import parser
from bnmonitor.cli.files import audit, structure
from bnmonitor.cli.manuals import diagnose, explain, guide, rules
from bnmonitor.cli.recorded import compare, export, report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        parser().print_help()
        return USAGE
    parsed = parser().parse_args(_apart(given))
    try:
        code = _COMMANDS[parsed.command](parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go()
        return FINE
    except MemoryError:
        return fail("the input needs more memory than this machine gives")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _let_go()
        return fail(f"cannot write what was found: {error.strerror}")
    return code


def _apart(given: Sequence[str]) -> list[str]:
    """Part the options of ``run`` from what it starts, whose options are its own."""
    if given[0] != "run":
        return list(given)
    at = 1
    while at < len(given) and given[at].startswith("--") and given[at] != "--":
        at += 2 if given[at] == "--log-dir" else 1
    return [*given[:at], "--", *given[at:]] if at < len(given) else list(given)


def _let_go() -> None:
    """Discard the rest of the output: the interpreter would try again to write it at exit, and print an error."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _demo(parsed: argparse.Namespace) -> int:
    try:
        from bnmonitor.cli.demo import demo
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != "sklearn":
            raise
        return fail("the demo needs scikit-learn for its data: pip install 'bnmonitor[demo]'")
    try:
        return FINE if demo(parsed.log_dir) else FOUND
    except OSError as error:
        return fail(f"cannot write to {parsed.log_dir}: {error.strerror or error}")


def _run(parsed: argparse.Namespace) -> int:
    from bnmonitor.scripts import ENTRY, environment, program

    if parsed.entry:
        print(ENTRY)
        return FINE
    parsed.script = parsed.script[1:] if parsed.script[:1] == ["--"] else parsed.script
    if not parsed.script:
        return fail("give a script to start: bnmonitor run train.py")
    try:
        command = program(parsed.script)
    except FileNotFoundError as error:
        return fail(str(error))
    around = environment(os.environ, log_dir=parsed.log_dir, quiet=parsed.quiet)
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":  # there a process cannot become another
        os.execve(command[0], command, around)
    return subprocess.run(command, env=around, check=False).returncode


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "run": _run,
    "report": report,
    "compare": compare,
    "export": export,
    "audit": audit,
    "structure": structure,
    "rules": rules,
    "diagnose": diagnose,
    "explain": explain,
    "guide": guide,
}
