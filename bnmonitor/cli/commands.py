"""The command line: what each of its commands does."""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bnmonitor._text import CHECKPOINTS, INDEX, printable
from bnmonitor.cli.arguments import NEVER, parser
from bnmonitor.cli.gates import FINE, FOUND, USAGE, audit_target, gate, run_target
from bnmonitor.display import say, show
from bnmonitor.results import Severity

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor

    from bnmonitor.audit import Audited
    from bnmonitor.results import Alert, Incident


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
        return _fail("the input needs more memory than this machine gives")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _let_go()
        return _fail(f"cannot write what was found: {error.strerror}")
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
        return _fail("the demo needs scikit-learn for its data: pip install 'bnmonitor[demo]'")
    try:
        return FINE if demo(parsed.log_dir) else FOUND
    except OSError as error:
        return _fail(f"cannot write to {parsed.log_dir}: {error.strerror or error}")


def _run(parsed: argparse.Namespace) -> int:
    from bnmonitor.scripts import ENTRY, environment, program

    if parsed.entry:
        print(ENTRY)
        return FINE
    parsed.script = parsed.script[1:] if parsed.script[:1] == ["--"] else parsed.script
    if not parsed.script:
        return _fail("give a script to start: bnmonitor run train.py")
    try:
        command = program(parsed.script)
    except FileNotFoundError as error:
        return _fail(str(error))
    around = environment(os.environ, log_dir=parsed.log_dir, quiet=parsed.quiet)
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":  # there a process cannot become another
        os.execve(command[0], command, around)
    return subprocess.run(command, env=around, check=False).returncode


def _report(parsed: argparse.Namespace) -> int:
    from bnmonitor.report.read import SCHEMA, NoHistoryError, find, read_all, said
    from bnmonitor.report.show import markdown, terminal

    try:
        history, names = find(parsed.path, parsed.run_name)
    except NoHistoryError as error:
        return _fail(str(error))
    reports = read_all(history, names)
    for failed in getattr(history.source, "unreadable", ()):
        _fail(f"{said(failed)}, so it is left out")
    if parsed.json:
        print(json.dumps({"schema": SCHEMA, "runs": [each.to_dict() for each in reports]}, indent=2, allow_nan=False))
    elif parsed.html:
        from bnmonitor.report.page import page

        text = page(history, reports[0].run)
        if str(parsed.html) == "-":
            sys.stdout.buffer.write(text.encode())
        else:
            try:
                parsed.html.write_text(text, encoding="utf-8")
            except OSError as error:
                return _fail(f"cannot write {parsed.html}: {error.strerror or error}")
            say(f"{printable(reports[0].headline())}\nwritten to {parsed.html}")
    elif parsed.markdown:
        say(markdown(reports, rows=parsed.rows).rstrip("\n"))
    else:
        show(terminal(reports, rows=parsed.rows, verbose=parsed.verbose))
    return gate(parsed, [run_target(reports[0])])


def _compare(parsed: argparse.Namespace) -> int:
    checkpoints = (*CHECKPOINTS, INDEX)
    if len(parsed.runs) == 2 and all(path.is_file() and path.name.endswith(checkpoints) for path in parsed.runs):
        return _drift(parsed)
    from bnmonitor.report import several
    from bnmonitor.report.compare import compare, terminal
    from bnmonitor.report.read import NoHistoryError, find, said

    runs = []
    for path in parsed.runs:
        try:
            history, names = find(path)
        except NoHistoryError as error:
            return _fail(str(error))
        if len(names) > 1 and len(parsed.runs) > 1:
            return _fail(f"{path} holds {len(names)} runs: give the directory of one, such as {path / names[0]}")
        for failed in getattr(history.source, "unreadable", ()):
            _fail(f"{said(failed)}, so it is left out")
        for name in names:
            if overlap := history.run(name).overlap:
                _fail(f"{path}: {overlap}")
            runs.append((history, name))
    if len(runs) < 2:
        return _fail(f"{parsed.runs[0]} holds one run: give another one to compare it with")
    if len(runs) > 2:
        all_found = several.several(runs)
        if parsed.json:
            print(json.dumps(several.to_dict(all_found), indent=2, allow_nan=False))
        else:
            show(several.terminal(all_found, rows=parsed.rows))
        if any(each.worse for each in all_found) and parsed.fail_on != NEVER:
            return FOUND
        return _verdict(parsed, [incident for each in all_found for incident in each.came])
    found = compare(*runs)
    if parsed.json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        show(terminal(found, rows=parsed.rows))
    return FOUND if found.worse and parsed.fail_on != NEVER else _verdict(parsed, found.came)


def _drift(parsed: argparse.Namespace) -> int:
    from bnmonitor.audit import UnreadableError, drift, drift_table, read_checkpoint

    pair = []
    for path in parsed.runs:
        try:
            models = read_checkpoint(path)
        except UnreadableError as error:
            return _fail(str(error))
        if not models:
            return _fail(f"{path} holds no normalization layer with running statistics")
        pair.append(next(iter(models.values())))
    found = drift(*pair)
    if parsed.json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        show(drift_table(found, rows=parsed.rows))
    return _verdict(parsed, found.came)


def _export(parsed: argparse.Namespace) -> int:
    from bnmonitor.report.read import NoHistoryError, find
    from bnmonitor.runs import STATISTICS, rows, write_channels, write_csv, write_json, write_parquet
    from bnmonitor.runs import open as open_runs

    try:
        runs = open_runs(parsed.path)
        names = [parsed.run_name] if parsed.run_name in runs else list(runs)
        if parsed.run_name not in (None, *names) or not names:
            find(parsed.path, parsed.run_name)  # says what is there
    except (NoHistoryError, FileNotFoundError) as error:
        return _fail(str(error))
    if len(names) > 1:
        return _fail(f"{parsed.path} holds {len(names)} runs: choose one by --run, such as --run {names[0]}")
    place = parsed.csv or parsed.json or parsed.parquet
    file = None if place == "-" else Path(place)
    try:
        run, layer, statistic = runs[names[0]], parsed.layer, parsed.statistic
        if parsed.parquet:
            written = write_parquet(Path(place), run, layer, statistic)
        elif statistic in STATISTICS:
            form = "csv" if parsed.csv else "json"
            written = write_channels(file, run, layer, statistic, sys.stdout, form=form)
        else:
            written = (write_csv if parsed.csv else write_json)(file, rows(run, layer, statistic), sys.stdout)
    except LookupError as error:
        return _fail(str(error.args[0]))
    except ImportError as error:
        return _fail(str(error))
    except OSError as error:
        if file is None:
            raise
        return _fail(f"cannot write {file}: {error.strerror or error}")
    if file is not None:
        say(f"{written:,} rows written to {file}")
    return FINE


def _audit(parsed: argparse.Namespace) -> int:
    from bnmonitor.audit import Audited, Question, UnreadableError, audit_line, audit_table, checkpoint_files, examine
    from bnmonitor.gates import Target

    paths = []
    for what in parsed.what:
        there = [str(path) for path in checkpoint_files(Path(what))] if Path(what).is_dir() else [what]
        if not there:
            return _fail(f"no checkpoint in {what}: files that end with {', '.join(CHECKPOINTS)}")
        paths += there
    several = len(paths) > 1 or any(Path(what).is_dir() for what in parsed.what)
    asked = Question(
        shape=parsed.input,
        model=parsed.model,
        reference=parsed.reference,
        images=parsed.images,
        pixels=parsed.pixels,
    )
    audits: list[Audited] = []
    targets, bare = [], []
    for path in paths:
        file = Path(path) if Path(path).exists() else None
        try:
            found = examine(path, asked)
        except UnreadableError as error:
            _fail(str(error))
            targets.append(Target(name=path, path=file, error=str(error)))
            continue
        if not found and not several:
            return _fail(f"{path} {_nothing_to_judge(path)}")
        bare += [] if found else [path]
        for name, one in found:
            audits.append(Audited(name=name, path=file, audit=one))
            targets.append(audit_target(name, one, path))
    if parsed.json:
        plain = [{"name": each.name, **each.audit.to_dict()} for each in audits]
        print(json.dumps({"schema": 1, "audits": plain}, indent=2, allow_nan=False))
    elif several:
        for each in audits:
            say(audit_line(each.audit, each.name))
        for path in bare:
            say(f"{printable(path)}: {_nothing_to_judge(path)}")
    else:
        for each in audits:
            show(audit_table(each.audit, each.name, rows=parsed.rows))
    if audits and (code := _handed_on(parsed, audits)):
        return code
    return gate(parsed, targets)


def _nothing_to_judge(path: str) -> str:
    from bnmonitor.audit import is_shipped

    if is_shipped(path):
        return (
            "holds no normalization layer, so that nothing is left to judge: if the model had some, the export folded "
            "them into the layers before; audit the checkpoint that it was exported from"
        )
    return "holds no normalization layer with running statistics"


def _handed_on(parsed: argparse.Namespace, audits: Sequence[Audited]) -> int:
    """Write the card and the badge that are asked for; return an exit code if that fails."""
    from bnmonitor.audit import badge, card

    for file, write in ((parsed.card, card), (parsed.badge, badge)):
        if file is not None:
            try:
                file.write_text(write(audits), encoding="utf-8")
            except OSError as error:
                return _fail(f"cannot write {file}: {error.strerror or error}")
    return FINE


def _structure(parsed: argparse.Namespace) -> int:
    from bnmonitor.audit import UnreadableError, forward, locate
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
    say(str(monitor.structure()))
    return FINE


def _example(shape: tuple[int, ...] | None) -> Tensor | None:
    import torch

    return None if shape is None else torch.randn(*shape)


def _rules(parsed: argparse.Namespace) -> int:
    from bnmonitor.rules import all_rules, described, search

    try:
        found = [described(rule) for rule in (search(parsed.words) if parsed.words else all_rules())]
    except ValueError as error:
        return _fail(str(error))
    if parsed.json:
        print(json.dumps({"schema": 1, "rules": found}, indent=2))
    elif not sys.stdout.isatty():  # a line a rule, so that grep finds whole sentences
        for each in found:
            say(f"{each['code']}  {each['name']:<31}  {each['severity']:<7}  {each['finds']}")
    else:
        show(_table(found))
    return FINE


def _table(found: Sequence[Mapping[str, str]]) -> RenderableType:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("code", "name", "severity", "what it finds"):
        table.add_column(title, no_wrap=title != "what it finds", overflow="fold")
    for each in found:
        table.add_row(each["code"], each["name"], each["severity"], each["finds"])
    return table


def _diagnose(parsed: argparse.Namespace) -> int:
    from bnmonitor.symptoms import all_symptoms, described_symptom, plain_symptom, search_symptoms

    asked = " ".join(parsed.words)
    found = search_symptoms(asked) if asked.strip() else all_symptoms()
    if not found:
        return _fail(f"no symptom is like {asked!r}; `bnmonitor diagnose` lists them")
    if parsed.json:
        print(json.dumps({"schema": 1, "symptoms": [described_symptom(each) for each in found]}, indent=2))
        return FINE
    if not asked.strip():
        for each in found:
            say(f"{each.name:<23}  {each.title}")
        return FINE
    best, *others = found
    say(plain_symptom(best, code=parsed.code))
    for each in others[:3]:
        say(f"or is it: {each.title}? bnmonitor diagnose {each.name}")
    return FINE


def _guide(parsed: argparse.Namespace) -> int:
    from bnmonitor.guide import all_pages, described_page, find_page, near_page, parts

    if not parsed.page:
        if parsed.json:
            print(json.dumps({"schema": 1, "pages": [described_page(page) for page in all_pages()]}, indent=2))
            return FINE
        group = ""
        for page in all_pages():
            if page.group != group:
                say(("\n" if group else "") + page.group)
                group = page.group
            say(f"  {page.name:<19}  {page.title}")
        return FINE
    try:
        page = find_page(parsed.page)
    except ValueError as error:
        return _fail(f"{error}{near_page(parsed.page)}; `bnmonitor guide` lists the pages")
    if parsed.json:
        print(json.dumps({"schema": 1, **described_page(page)}, indent=2))
        return FINE
    for part in parts(page):
        if isinstance(part, str):
            say(part)
        else:
            show(_grid(part))
    return FINE


def _grid(rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in rows[0]:
        table.add_column(Text(title))
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def _explain(parsed: argparse.Namespace) -> int:
    from bnmonitor.diagnosis import CAUSES, Cause, explained_cause, find_cause, plain_cause
    from bnmonitor.rules import all_rules, explained, find, near, plain

    word, causes = parsed.rule.lower(), [cause.name for cause in CAUSES]
    try:
        found = find_cause(word) if word in causes else find(word)
    except ValueError:
        hint = near(word, all_rules(), causes)
        return _fail(f"nothing is called {parsed.rule!r}{hint}; `bnmonitor rules` lists the rules")
    if parsed.json:
        parts = explained_cause(found) if isinstance(found, Cause) else explained(found)
        print(json.dumps({"schema": 1, **parts}, indent=2))
    else:
        say(plain_cause(found) if isinstance(found, Cause) else plain(found))
    return FINE


def _verdict(parsed: argparse.Namespace, found: Sequence[Alert | Incident]) -> int:
    if parsed.fail_on == NEVER:
        return FINE
    least = Severity[parsed.fail_on.upper()]
    return FOUND if any(each.state == "open" and each.severity >= least for each in found) else FINE


def _fail(message: str) -> int:
    print(f"bnmonitor: {printable(message)}", file=sys.stderr)
    return USAGE


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "run": _run,
    "report": _report,
    "compare": _compare,
    "export": _export,
    "audit": _audit,
    "structure": _structure,
    "rules": _rules,
    "diagnose": _diagnose,
    "explain": _explain,
    "guide": _guide,
}
