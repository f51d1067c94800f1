"""The command line: ``bnmonitor demo | rules | explain``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bnmonitor import __version__

FINE, FOUND, USAGE = 0, 1, 2
"""Exit codes: nothing to say, something was found, the input cannot be used."""

_EXAMPLES = """examples:
  bnmonitor demo                      three short trainings on real data, two of them with a planted fault
  bnmonitor rules                     every rule in a line
  bnmonitor explain BN304             what a rule means, why it matters, what to do
  bnmonitor explain stale-statistics  the same by name
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except BrokenPipeError:
        sys.stderr.close()
        return FINE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bnmonitor",
        description="The flight recorder for batch normalization.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bnmonitor {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="train three small networks and watch what is found")
    demo.add_argument("--log-dir", type=Path, default=Path("bnmonitor_demo"), help="where the logs go (%(default)s)")
    demo.set_defaults(run=_demo)

    rules = commands.add_parser("rules", help="list every rule")
    rules.set_defaults(run=_rules)

    explain = commands.add_parser("explain", help="explain a rule")
    explain.add_argument("rule", help="code or name, such as BN304 or stale-statistics")
    explain.set_defaults(run=_explain)
    return parser


def _demo(parsed: argparse.Namespace) -> int:
    try:
        from bnmonitor.demo import demo
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != "sklearn":
            raise
        return _fail("the demo needs scikit-learn for its data: pip install 'bnmonitor[demo]'")
    try:
        return FINE if demo(parsed.log_dir) else FOUND
    except OSError as error:
        return _fail(f"cannot write to {parsed.log_dir}: {error.strerror or error}")


def _rules(parsed: argparse.Namespace) -> int:
    from rich import box, get_console
    from rich.table import Table

    from bnmonitor.rules import all_rules

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("code", "name", "severity", "what"):
        table.add_column(title, no_wrap=title != "what", overflow="fold")
    for rule in all_rules():
        table.add_row(rule.code, rule.name, str(rule.severity), (rule.__doc__ or "").splitlines()[0])
    get_console().print(table)
    return FINE


def _explain(parsed: argparse.Namespace) -> int:
    from bnmonitor.manual import plain
    from bnmonitor.rules import find

    try:
        rule = find(parsed.rule)
    except ValueError as error:
        return _fail(str(error))
    print(plain(rule))
    return FINE


def _fail(message: str) -> int:
    print(f"bnmonitor: {message}", file=sys.stderr)
    return USAGE
