"""The command line: ``bnmonitor demo | report | compare | audit | structure | rules | explain``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnmonitor._text import CHECKPOINTS, printable
from bnmonitor._version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from bnmonitor.verdict import Alert

FINE, FOUND, USAGE = 0, 1, 2
"""Exit codes: nothing to say, something was found, the input cannot be used."""

_EXAMPLES = """examples:
  bnmonitor demo                      three short trainings on real data, two of them with a planted fault
  bnmonitor report lightning_logs     what the newest run there says, and a line for each of the others
  bnmonitor report RUN --html page.html   one page with maps and alerts, to send to a colleague
  bnmonitor report RUN --markdown     the same for a pull request; --json for a script
  bnmonitor compare BEFORE AFTER      did the fix work? 1 if a layer got worse or an alert came
  bnmonitor audit model.ckpt          what is wrong with a checkpoint; nothing in the file is executed
  bnmonitor audit package.models:make what is wrong with a model before it is trained
  bnmonitor structure package.models:make  what feeds each layer of it, and what reads it
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

    report = commands.add_parser("report", help="show what a recorded run says, be it finished, running or broken off")
    report.add_argument("path", type=Path, metavar="RUN", help="a run's directory, one of runs, or an event file")
    report.add_argument("--run", dest="run_name", help="only the run of this name, where there are several")
    report.add_argument("--rows", type=_positive, default=8, help="layers that the table shows (%(default)s)")
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    form.add_argument("--html", type=Path, metavar="FILE", help="write one page with the views of the BatchNorm tab")
    _add_fail_on(report)
    report.set_defaults(run=_report)

    compare = commands.add_parser("compare", help="show which layers and alerts of two runs differ")
    compare.add_argument("before", type=Path, help="a run's directory or event file, or a checkpoint")
    compare.add_argument("after", type=Path, help="another")
    compare.add_argument("--rows", type=_positive, default=12, help="changes that the table shows (%(default)s)")
    compare.add_argument("--json", action="store_true", help="print JSON")
    _add_fail_on(compare, "exit with 1 if an alert of this severity or worse came, or a layer got worse (%(default)s)")
    compare.set_defaults(run=_compare)

    audit = commands.add_parser(
        "audit",
        help="judge a checkpoint or a model without training it",
        description="Judge a checkpoint, every one in a directory, or a model that package.module:factory is or makes. "
        "Of a checkpoint only tensors are read, and nothing in it is executed.",
    )
    audit.add_argument("what", metavar="CHECKPOINT_OR_MODEL")
    audit.add_argument("--input", type=_shape, metavar="2,3,224,224", help="shape that the model's forward takes")
    audit.add_argument("--rows", type=_positive, default=8, help="layers that the table shows (%(default)s)")
    audit.add_argument("--json", action="store_true", help="print JSON")
    _add_fail_on(audit, "exit with 1 if something of this severity or worse is found (%(default)s)")
    audit.set_defaults(run=_audit)

    structure = commands.add_parser(
        "structure",
        help="show what feeds each layer of a model, and what reads it",
        description="Show the layers of a model that package.module:factory is or makes, a line each in the order of "
        "execution, with what feeds it and what reads it. One training step of a copy is run for that.",
    )
    structure.add_argument("what", metavar="MODEL", help="package.module:factory")
    structure.add_argument("--input", type=_shape, metavar="2,3,224,224", help="shape that the model's forward takes")
    structure.set_defaults(run=_structure)

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


def _report(parsed: argparse.Namespace) -> int:
    from bnmonitor.report.read import SCHEMA, NoHistoryError, find, read_all
    from bnmonitor.report.show import markdown, terminal

    try:
        history, names = find(parsed.path, parsed.run_name)
    except NoHistoryError as error:
        return _fail(str(error))
    reports = read_all(history, names)
    if parsed.json:
        print(json.dumps({"schema": SCHEMA, "runs": [each.to_dict() for each in reports]}, indent=2, allow_nan=False))
    elif parsed.html:
        from bnmonitor.report.page import page

        try:
            parsed.html.write_text(page(history, reports[0].run), encoding="utf-8")
        except OSError as error:
            return _fail(f"cannot write {parsed.html}: {error.strerror or error}")
        print(f"{reports[0].headline()}\nwritten to {parsed.html}")
    elif parsed.markdown:
        print(markdown(reports, rows=parsed.rows), end="")
    else:
        from rich import get_console

        get_console().print(terminal(reports, rows=parsed.rows))
    return _verdict(parsed, reports[0].alerts)


def _compare(parsed: argparse.Namespace) -> int:
    if all(path.is_file() and path.suffix in CHECKPOINTS for path in (parsed.before, parsed.after)):
        return _drift(parsed)
    from bnmonitor.report.compare import compare, terminal
    from bnmonitor.report.read import NoHistoryError, find

    pair = []
    for path in (parsed.before, parsed.after):
        try:
            history, names = find(path)
        except NoHistoryError as error:
            return _fail(str(error))
        if len(names) > 1:
            return _fail(f"{path} holds {len(names)} runs: give the directory of one, such as {path / names[0]}")
        pair.append((history, names[0]))
    found = compare(*pair)
    if parsed.json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        from rich import get_console

        get_console().print(terminal(found, rows=parsed.rows))
    return FOUND if found.worse and parsed.fail_on != "never" else _verdict(parsed, found.came)


def _drift(parsed: argparse.Namespace) -> int:
    from bnmonitor.audit.drift import drift, terminal
    from bnmonitor.checkpoint import UnreadableError, read

    pair = []
    for path in (parsed.before, parsed.after):
        try:
            models = read(path)
        except UnreadableError as error:
            return _fail(str(error))
        if not models:
            return _fail(f"{path} holds no normalization layer with running statistics")
        pair.append(next(iter(models.values())))
    found = drift(*pair)
    if parsed.json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        from rich import get_console

        get_console().print(terminal(found, rows=parsed.rows))
    return _verdict(parsed, found.came)


def _audit(parsed: argparse.Namespace) -> int:
    from bnmonitor.audit.find import locate
    from bnmonitor.audit.judge import audit
    from bnmonitor.audit.show import line, terminal
    from bnmonitor.checkpoint import UnreadableError, files

    directory = Path(parsed.what).is_dir()
    paths = [str(p) for p in files(Path(parsed.what))] if directory else [parsed.what]
    if not paths:
        return _fail(f"no checkpoint in {parsed.what}: files that end with {', '.join(CHECKPOINTS)}")
    audits, failed, bare = [], False, []
    for path in paths:
        try:
            found = locate(path)
        except UnreadableError as error:
            failed = True
            _fail(str(error))
            continue
        if not found and not directory:
            return _fail(f"{path} holds no normalization layer with running statistics")
        bare += [] if found else [path]
        audits += [(each.name, audit(each.model, settings=each.real, inputs=_example(parsed.input))) for each in found]
    if parsed.json:
        told = [{"name": name, **found.to_dict()} for name, found in audits]
        print(json.dumps({"schema": 1, "audits": told}, indent=2, allow_nan=False))
    elif directory:
        for name, one in audits:
            print(line(one, name))
        for path in bare:
            print(f"{printable(path)}: no normalization layer with running statistics")
    else:
        from rich import get_console

        for name, one in audits:
            get_console().print(terminal(one, name, rows=parsed.rows))
    return USAGE if failed else _verdict(parsed, [alert for _, one in audits for alert in one.alerts])


def _structure(parsed: argparse.Namespace) -> int:
    from bnmonitor.audit.find import locate
    from bnmonitor.audit.forward import forward
    from bnmonitor.checkpoint import UnreadableError
    from bnmonitor.layers import discover

    try:
        found = locate(parsed.what)
    except UnreadableError as error:
        return _fail(str(error))
    if not found or not found[0].real:
        return _fail(f"{parsed.what} is a checkpoint, which does not say how layers are connected: give module:factory")
    model = found[0].model
    if not len(discover({"": model}).table):
        return _fail(f"{parsed.what} has no BatchNorm layer")
    monitor, why = forward(model, _example(parsed.input), select=())
    if monitor is None:
        return _fail(f"{parsed.what} {why}")
    print(monitor.structure())
    return FINE


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be sizes such as 2,3,224,224")
    return sizes


def _example(shape: tuple[int, ...] | None) -> Tensor | None:
    import torch

    return None if shape is None else torch.randn(*shape)


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


def _add_fail_on(
    parser: argparse.ArgumentParser,
    meaning: str = "exit with 1 if an alert of this severity or worse is open (%(default)s)",
) -> None:
    parser.add_argument("--fail-on", choices=("info", "warning", "error", "never"), default="warning", help=meaning)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


def _verdict(parsed: argparse.Namespace, alerts: Sequence[Alert]) -> int:
    if parsed.fail_on == "never":
        return FINE
    open_ones = {str(alert.severity) for alert in alerts if alert.state == "open"}
    order = ("info", "warning", "error")
    return FOUND if open_ones & set(order[order.index(parsed.fail_on) :]) else FINE


def _fail(message: str) -> int:
    print(f"bnmonitor: {printable(message)}", file=sys.stderr)
    return USAGE
