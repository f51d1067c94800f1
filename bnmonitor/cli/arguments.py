"""The command line as data: every command with its options, what these take, and examples."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any, NoReturn

from bnmonitor._text import nearest
from bnmonitor._version import __version__
from bnmonitor.results import Severity

NEVER = "never"
"""The value of ``--fail-on`` that stands for no severity."""

_MAIN = """examples:
  bnmonitor demo                   three short trainings, two of them faulty
  bnmonitor run train.py           watch a script that nobody has to edit
  bnmonitor report lightning_logs  a report on the newest run there
  bnmonitor compare BEFORE AFTER   did the fix work?
  bnmonitor export RUN --csv       its numbers as a table
  bnmonitor audit model.ckpt       what is wrong with a checkpoint
  bnmonitor diagnose nan           what it may be, by what you see
  bnmonitor explain BN304          what a rule or a cause means, and what to do
  bnmonitor guide                  BatchNorm in practice, measured

every command has examples of its own: bnmonitor report --help
exit codes: 0 fine, 1 something was found, 2 the input cannot be used
"""

_EXAMPLES = {
    "demo": """examples:
  bnmonitor demo                      logs go to ./bnmonitor_demo
  bnmonitor demo --log-dir runs/demo  logs go there
  tensorboard --logdir bnmonitor_demo then look at them
""",
    "report": """examples:
  bnmonitor report lightning_logs            the newest run; a line for others
  bnmonitor report lightning_logs/version_3  one run
  bnmonitor report RUN --verbose             with evidence and notes
  bnmonitor report RUN --html page.html      one page to send to a colleague
  bnmonitor report RUN --markdown            for a pull request
  bnmonitor report RUN --json | jq .runs[0].health
  bnmonitor report RUN --fail-on error       in CI: exit with 1 on errors only
  bnmonitor report RUN --baseline known.json --junit report.xml
  ssh host cat run/events.out.* | bnmonitor report -
""",
    "compare": """examples:
  bnmonitor compare runs/before runs/after      layers and alerts of two runs
  bnmonitor compare lightning_logs              each run there against one
  bnmonitor compare epoch=1.ckpt epoch=9.ckpt   how far the layers have moved
  bnmonitor compare A B --json                  for a script
  bnmonitor compare A B && echo "no worse"      in CI
""",
    "export": """examples:
  bnmonitor export RUN --csv                    each layer at each logged step
  bnmonitor export RUN --csv t.csv --layer 'net.*'
  bnmonitor export RUN --json --statistic gamma each channel over the whole run
  bnmonitor export RUN --parquet t.parquet      for pandas
""",
    "audit": """examples:
  bnmonitor audit model.ckpt              one checkpoint
  bnmonitor audit checkpoints/            a directory of them, a line each
  bnmonitor audit package.models:make     a model, before it is trained
  bnmonitor audit package.models:make --input 2,3,224,224
  bnmonitor audit tuned.pt --reference pretrained.safetensors
  bnmonitor audit best.ckpt --model package.models:make --images some_images/
  bnmonitor audit model.safetensors --card CARD.md --badge batchnorm.svg
  bnmonitor audit models/ --baseline known.json --sarif audit.sarif
""",
    "structure": """examples:
  bnmonitor structure package.models:make
  bnmonitor structure torchvision.models:resnet18 --input 2,3,64,64
""",
    "run": """examples:
  bnmonitor run train.py --epochs 3       as python train.py --epochs 3
  bnmonitor run -m package.train          as python -m package.train
  bnmonitor run torchrun --nproc-per-node 2 train.py
  bnmonitor run --log-dir runs/a train.py the history goes there
  export PYTHONPATH=$(bnmonitor run --entry)
  BNMONITOR=1 python train.py             the same, without the command
""",
    "rules": """examples:
  bnmonitor rules               every rule, its severity and what it finds
  bnmonitor rules BN3           the rules on running averages
  bnmonitor rules momentum      the rules with a word in their name
  bnmonitor rules | grep batch  one line a rule, with its whole sentence
  bnmonitor rules --json        for a script
""",
    "diagnose": """examples:
  bnmonitor diagnose                         every symptom
  bnmonitor diagnose "nan after hours"       what it may be, most frequent first
  bnmonitor diagnose nan-after-hours --code  with wrong and right programs
  bnmonitor diagnose ema worse --json        for a script
""",
    "explain": """examples:
  bnmonitor explain BN304                   a rule, by its code
  bnmonitor explain stale-statistics        or by its name
  bnmonitor explain learning-rate-too-high  the cause of an incident
  bnmonitor explain BN304 --json            for a script
""",
    "guide": """examples:
  bnmonitor guide                every page, by what it is about
  bnmonitor guide learning-rate  one page
  bnmonitor guide --json         for a script
""",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that says what to do."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Exit with 2 after one line."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(each) for each in action.choices]
            hint = nearest(str(value), known) or f"; it takes {', '.join(known)}"
            raise argparse.ArgumentError(action, f"{value!r} is not known{hint}")


def parser() -> Parser:
    """Return the parser; what it parses has the command's name as ``command``."""
    main = Parser(prog="bnmonitor", description="The flight recorder for batch normalization.", epilog=_MAIN)
    main.add_argument("--version", action="version", version=f"bnmonitor {__version__}")
    commands = main.add_subparsers(required=True, metavar="command", dest="command")

    def command(name: str, does: str, description: str | None = None) -> Parser:
        about = description or f"{does[0].upper()}{does[1:]}."
        return commands.add_parser(name, help=does, description=textwrap.fill(about, 78), epilog=_EXAMPLES[name])

    demo = command("demo", "train three small networks and report what is found")
    demo.add_argument(
        "--log-dir", type=Path, default=Path("bnmonitor_demo"), metavar="DIR", help="where logs go (%(default)s)"
    )

    run = command(
        "run",
        "watch the models that a script trains, without a change to it",
        "Start a script, or any command that starts Python, so that every model with BatchNorm layers that it trains "
        "is watched. Its standard output, its exit code and its results stay what they are: what bnmonitor has to say "
        "goes to standard error.",
    )
    run.add_argument("--log-dir", type=Path, metavar="DIR", help="where the history goes (one in bnmonitor_runs)")
    run.add_argument("--quiet", action="store_true", help="print nothing, and only write the history")
    run.add_argument("--entry", action="store_true", help="print the directory to put on PYTHONPATH, and start nothing")
    run.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT [ARGUMENTS]", help="what to start")

    report = command("report", "report on a recorded run: finished, still running or killed")
    report.add_argument(
        "path",
        type=Path,
        metavar="RUN",
        help="a run's directory, one of runs, or an event file; - is standard input",
    )
    report.add_argument("--run", dest="run_name", metavar="NAME", help="only the run of this name, of several")
    _add_rows(report, 8, "layers")
    report.add_argument(
        "--verbose", action="store_true", help="also evidence, notes, and what was not checked or not recovered"
    )
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    form.add_argument(
        "--html", type=Path, metavar="FILE", help="write one page with the views of the BatchNorm tab; - prints it"
    )
    _add_fail_on(report, "an alert of this severity or worse is open")
    _add_gate(report)

    compare = command(
        "compare",
        "show which layers and incidents of runs differ",
        "Show which layers and incidents of two runs differ, how each of several runs differs from the first, or how "
        "far the layers of two checkpoints have moved.",
    )
    compare.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="directories or event files of two or more runs, or one directory that holds several; or two checkpoints",
    )
    _add_rows(compare, 12, "changes, or runs of more than two")
    compare.add_argument("--json", action="store_true", help="print JSON")
    _add_fail_on(compare, "an alert of this severity or worse came, or a layer got worse")

    export = command("export", "write the numbers of a recorded run as a table")
    export.add_argument("path", type=Path, metavar="RUN", help="a run's directory, or one of runs")
    export.add_argument("--run", dest="run_name", metavar="NAME", help="the run of this name, of several")
    export.add_argument("--layer", metavar="GLOB", help="only these layers")
    export.add_argument(
        "--statistic",
        metavar="NAME",
        help="only this one: a column such as health, or of every channel batch_mean, batch_var, running_mean, "
        "running_var, gamma or beta",
    )
    written = export.add_mutually_exclusive_group(required=True)
    written.add_argument("--csv", nargs="?", const="-", metavar="FILE", help="comma-separated; without FILE, printed")
    written.add_argument("--json", nargs="?", const="-", metavar="FILE", help="an object a line, likewise")
    written.add_argument("--parquet", metavar="FILE", help="Parquet; it needs pandas and pyarrow")

    audit = command(
        "audit",
        "judge a checkpoint or a model without training it",
        "Judge checkpoints (also in several files, exported or as ONNX), all checkpoints in a directory, or a model "
        "that package.module:factory is or makes. "
        "From a checkpoint only tensors are read, and nothing in it is executed.",
    )
    audit.add_argument("what", nargs="+", metavar="CHECKPOINT_OR_MODEL")
    audit.add_argument(
        "--model", metavar="MODEL", help="load checkpoints into this model: package.module:factory, or a name of timm"
    )
    audit.add_argument("--reference", metavar="FILE", help="also say what has moved since this checkpoint")
    audit.add_argument("--images", type=Path, metavar="DIR", help="also estimate the statistics on these images")
    audit.add_argument(
        "--pixels", choices=("imagenet", "half", "unit", "raw"), metavar="HOW", help="how the images are normalized: "
        "imagenet, half (-1 to 1), unit (0 to 1) or raw (0 to 255) (as the model says, else imagenet)",
    )  # fmt: skip
    _add_input(audit)
    _add_rows(audit, 8, "layers")
    audit.add_argument("--json", action="store_true", help="print JSON")
    audit.add_argument("--card", type=Path, metavar="FILE", help="write a card in Markdown")
    audit.add_argument("--badge", type=Path, metavar="FILE", help="write a badge, an SVG")
    _add_fail_on(audit, "something of this severity or worse is found")
    _add_gate(audit)

    structure = command(
        "structure",
        "show what feeds each layer of a model, and what reads it",
        "Show the layers of a model that package.module:factory is or makes, a line each in the order of execution, "
        "with what feeds it and what reads it. To learn this, bnmonitor runs one training step of a copy.",
    )
    structure.add_argument("what", metavar="MODEL", help="package.module:factory")
    _add_input(structure)

    rules = command("rules", "list the rules")
    rules.add_argument(
        "words", nargs="*", metavar="WORD", help="only rules whose code begins with it, or whose name contains it"
    )
    rules.add_argument("--json", action="store_true", help="print JSON")

    diagnose = command(
        "diagnose",
        "find the causes of what you see",
        "Find the causes of what you see, such as a NaN after hours, by words that describe it, or by the name of a "
        "page. Without words, list the pages. Nothing is looked up elsewhere.",
    )
    diagnose.add_argument("words", nargs="*", metavar="WORD", help="what you see, such as: validation explodes")
    shape = diagnose.add_mutually_exclusive_group()
    shape.add_argument("--code", action="store_true", help="also the wrong and the right programs")
    shape.add_argument("--json", action="store_true", help="print JSON")

    explain = command("explain", "explain a rule, or the cause of an incident")
    explain.add_argument("rule", help="code or name, such as BN304, stale-statistics or small-batch")
    explain.add_argument("--json", action="store_true", help="print JSON")

    guide = command(
        "guide",
        "read the guide to BatchNorm",
        "Read a page of the guide, which tries on real data what is said of batch normalization. Without a name, list "
        "the pages. Nothing is looked up elsewhere.",
    )
    guide.add_argument("page", nargs="?", metavar="PAGE", help="name of a page, such as learning-rate")
    guide.add_argument("--json", action="store_true", help="print JSON")

    return main


def _add_rows(parser: Parser, rows: int, what: str) -> None:
    parser.add_argument(
        "--rows", type=_positive, default=rows, metavar="N", help=f"{what} that the table shows (%(default)s)"
    )


def _add_input(parser: Parser) -> None:
    parser.add_argument("--input", type=_shape, metavar="2,3,224,224", help="shape that the model's forward takes")


def _add_fail_on(parser: Parser, event: str) -> None:
    levels = (*map(str, Severity), NEVER)
    parser.add_argument(
        "--fail-on", choices=levels, default="warning", metavar="LEVEL", help=f"exit with 1 if {event}: "
        "info, warning, error or never (%(default)s)",
    )  # fmt: skip


def _add_gate(parser: Parser) -> None:
    files = parser.add_argument_group("in CI")
    files.add_argument("--baseline", type=Path, metavar="FILE", help="let what this file holds as known pass")
    files.add_argument("--update-baseline", action="store_true", help="write what is found to that file, as known")
    files.add_argument("--sarif", type=Path, metavar="FILE", help="write SARIF, for GitHub's code scanning")
    files.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be sizes such as 2,3,224,224")
    return sizes
