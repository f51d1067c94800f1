"""The commands that read recorded runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bnmonitor._text import CHECKPOINTS, INDEX, printable
from bnmonitor.cli.answers import FINE, FOUND, fail, verdict
from bnmonitor.cli.arguments import NEVER
from bnmonitor.cli.files import drift
from bnmonitor.cli.gates import gate, run_target
from bnmonitor.display import say, show


def report(parsed: argparse.Namespace) -> int:
    """Report on a run."""
    from bnmonitor.report.read import SCHEMA, NoHistoryError, find, read_all, said
    from bnmonitor.report.show import markdown, terminal

    try:
        history, names = find(parsed.path, parsed.run_name)
    except NoHistoryError as error:
        return fail(str(error))
    reports = read_all(history, names)
    for failed in getattr(history.source, "unreadable", ()):
        fail(f"{said(failed)}, so it is left out")
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
                return fail(f"cannot write {parsed.html}: {error.strerror or error}")
            say(f"{printable(reports[0].headline())}\nwritten to {parsed.html}")
    elif parsed.markdown:
        say(markdown(reports, rows=parsed.rows).rstrip("\n"))
    else:
        show(terminal(reports, rows=parsed.rows, verbose=parsed.verbose))
    return gate(parsed, [run_target(reports[0])])


def compare(parsed: argparse.Namespace) -> int:
    """Compare runs, or two checkpoints."""
    checkpoints = (*CHECKPOINTS, INDEX)
    if len(parsed.runs) == 2 and all(path.is_file() and path.name.endswith(checkpoints) for path in parsed.runs):
        return drift(parsed)
    from bnmonitor.report import several
    from bnmonitor.report.compare import compare, terminal
    from bnmonitor.report.read import NoHistoryError, find, said

    runs = []
    for path in parsed.runs:
        try:
            history, names = find(path)
        except NoHistoryError as error:
            return fail(str(error))
        if len(names) > 1 and len(parsed.runs) > 1:
            return fail(f"{path} holds {len(names)} runs: give the directory of one, such as {path / names[0]}")
        for failed in getattr(history.source, "unreadable", ()):
            fail(f"{said(failed)}, so it is left out")
        for name in names:
            if overlap := history.run(name).overlap:
                fail(f"{path}: {overlap}")
            runs.append((history, name))
    if len(runs) < 2:
        return fail(f"{parsed.runs[0]} holds one run: give another one to compare it with")
    if len(runs) > 2:
        all_found = several.several(runs)
        if parsed.json:
            print(json.dumps(several.to_dict(all_found), indent=2, allow_nan=False))
        else:
            show(several.terminal(all_found, rows=parsed.rows))
        if any(each.worse for each in all_found) and parsed.fail_on != NEVER:
            return FOUND
        return verdict(parsed, [incident for each in all_found for incident in each.came])
    found = compare(*runs)
    if parsed.json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        show(terminal(found, rows=parsed.rows))
    return FOUND if found.worse and parsed.fail_on != NEVER else verdict(parsed, found.came)


def export(parsed: argparse.Namespace) -> int:
    """Write the numbers of a run."""
    from bnmonitor.report.read import NoHistoryError, find
    from bnmonitor.runs import STATISTICS, rows, write_channels, write_csv, write_json, write_parquet
    from bnmonitor.runs import open as open_runs

    try:
        runs = open_runs(parsed.path)
        names = [parsed.run_name] if parsed.run_name in runs else list(runs)
        if parsed.run_name not in (None, *names) or not names:
            find(parsed.path, parsed.run_name)  # says what is there
    except (NoHistoryError, FileNotFoundError) as error:
        return fail(str(error))
    if len(names) > 1:
        return fail(f"{parsed.path} holds {len(names)} runs: choose one by --run, such as --run {names[0]}")
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
        return fail(str(error.args[0]))
    except ImportError as error:
        return fail(str(error))
    except OSError as error:
        if file is None:
            raise
        return fail(f"cannot write {file}: {error.strerror or error}")
    if file is not None:
        say(f"{written:,} rows written to {file}")
    return FINE
