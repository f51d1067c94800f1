"""The pages of the guide: the texts, with numbers, verdicts and tables filled in from the results.

A text has ``{{metric | series | place}}`` where a mean stands, ``{{name}}`` for a fact of the experiment, and comments
for the picture, the verdicts and the table. So a page cannot say another number than the one that was measured. A text
ends with the outcomes that it was written for, so that one which no longer fits its results is noticed.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bnmonitor.diagnosis import CAUSES
from bnmonitor.rules import CATALOGUE

from .experiment import Experiment, Interval, Key, Results, Verdict, number, path_of
from .experiments import EXPERIMENTS, GROUPS
from .pictures import MODES, draw

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TEXTS = HERE / "texts"
PAGES = ROOT / "docs" / "guide"
PACKAGED = ROOT / "bnmonitor" / "guide" / "texts"
PICTURES = ROOT / "docs" / "pictures" / "guide"

MARK = re.compile(r"\{\{([^}]+)\}\}")
SHORT = re.compile(r"<!-- short: (.*?) -->\n\n", re.DOTALL)
WRITTEN_FOR = re.compile(r"\n<!-- written for: (.*?) -->\n", re.DOTALL)
OUTCOMES = {"holds": "holds", "does not hold": "**does not hold**", "not shown": "not shown"}
SETUP = "The program begins with [the setup of all programs](../guide.md#the-setup-of-the-programs)."


def filled(text: str, results: Results) -> str:
    """Put numbers where a text asks for them."""
    outcomes = [verdict.outcome for verdict in results.verdicts()]
    facts = {
        "claims": str(len(outcomes)),
        "holds": str(outcomes.count("holds")),
        **results.experiment.facts(results),
    }
    places = {f"{series} | {_place(x)}": (series, x) for series, x in results.experiment.settings}

    def value(found: re.Match[str]) -> str:
        metric, _, setting = (part.strip() for part in found[1].partition("|"))
        if not setting and metric in facts:
            return facts[metric]
        series, _, x = (part.strip() for part in setting.partition("|"))
        key = places[f"{series} | {facts.get(x, x)}"]
        mean = results.of(*key, metric)
        return number(mean.mean, mean.digits)

    paragraphs = (
        textwrap.fill(re.sub(MARK, value, part), 120, break_long_words=False, break_on_hyphens=False)
        if re.search(MARK, part)
        else part
        for part in text.split("\n\n")
    )
    return "\n\n".join(paragraphs)


def verdicts(results: Results) -> str:
    """The table of the claims."""
    lines = ["| claim | it is | against | difference, with its 95 % interval | at this size |", "|---|---|---|---|---|"]
    for each in results.verdicts():
        metric = results.experiment.metric(each.claim.metric)
        lines.append(
            f"| {each.claim.text} | {_mean(each.left)} | {_mean(each.right)} | {_difference(each, metric.log)} | "
            f"{OUTCOMES[each.outcome]} |"
        )
    return "\n".join(lines)


def _mean(interval: Interval) -> str:
    return number(interval.mean, interval.digits)


def _difference(verdict: Verdict, ratio: bool) -> str:
    d = verdict.difference
    ends = f"[{number(d.low, 2)}, {number(d.high, 2)}]"
    return f"{'×' if ratio else ''}{number(d.mean, 2)} {ends}".replace("-", "−")


def numbers(results: Results) -> str:
    """The table of the settings."""
    experiment = results.experiment
    axis = [experiment.axis] if experiment.axis else []
    head = ["", *axis, *(metric.label for metric in experiment.metrics), "bnmonitor says, of the seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for key in experiment.settings:
        cells = [key[0], *([_place(key[1])] if axis else [])]
        cells += [str(results.of(*key, metric.name)) for metric in experiment.metrics]
        lines.append(f"| {' | '.join([*cells, causes(results, key)])} |")
    return "\n".join(lines)


def causes(results: Results, key: Key) -> str:
    """The incidents of a setting, each with a link and the seeds that had it."""
    found = results.causes(key)
    return ", ".join(f"{_linked(cause)} {times} of {results.seeds}" for cause, times in found.items()) or "nothing"


def _linked(cause: str) -> str:
    if cause in {each.name for each in CAUSES}:
        return f"[{cause}](../causes/{cause}.md)"
    codes = {rule.name: rule.code for rule in CATALOGUE}
    return f"[{cause}](../rules/{codes[cause]}.md)" if cause in codes else cause


def _place(x: float | str) -> str:
    return x if isinstance(x, str) else f"{x:g}"


def page(experiment: Experiment, results: Results) -> str:
    """The Markdown page of an experiment."""
    source = (TEXTS / f"{experiment.name}.md").read_text(encoding="utf-8")
    text = filled(WRITTEN_FOR.sub("", SHORT.sub("", source)), results)
    title = text.partition("\n")[0].removeprefix("# ")
    seeds = (
        f"Each setting is measured with {results.seeds} seeds, which change the data held out, the weights and the "
        "order of the batches. Numbers are means, with the 95 % interval of Student's t. A claim holds if the interval "
        "of the difference, taken seed by seed, is on its side of zero (of one, for a ratio). "
        f"Again: `python -m benchmarks.guide {experiment.name}`."
    )
    for mark, written in {
        "picture": f"![{title} {caption(experiment)}](../pictures/guide/{experiment.name}-light.svg)",
        "claims": verdicts(results),
        "numbers": numbers(results),
        "setup": SETUP,
        "seeds": textwrap.fill(seeds, 120, break_long_words=False, break_on_hyphens=False),
    }.items():
        text = text.replace(f"<!-- {mark} -->", written)
    return text


def caption(experiment: Experiment) -> str:
    """What the picture shows, in words."""
    parts = [
        f"{panel.y or experiment.metric(panel.metric).label} by {panel.x or experiment.axis}"
        for panel in experiment.panels
    ]
    maps = [f"the map of {', '.join(filter(None, map(str, key)))}" for key in experiment.maps]
    return "; ".join([*parts, *maps])


def index(results: Mapping[str, Results]) -> str:
    """The first page: every question with its answer in short."""
    text = (TEXTS / "index.md").read_text(encoding="utf-8")
    lines = []
    for group, members in GROUPS.items():
        lines += [f"## {group}", "", "| question | in short | claims: hold, do not, not shown |", "|---|---|---|"]
        for experiment in (each for each in members if each.name in results):
            source = (TEXTS / f"{experiment.name}.md").read_text(encoding="utf-8")
            title = source.partition("\n")[0].removeprefix("# ")
            short = " ".join(filled(SHORT.findall(source)[0], results[experiment.name]).split())
            outcomes = [each.outcome for each in results[experiment.name].verdicts()]
            counts = ", ".join(str(outcomes.count(outcome)) for outcome in OUTCOMES)
            lines.append(f"| [{title}](guide/{experiment.name}.md) | {short} | {counts} |")
        lines.append("")
    every = [each.outcome for result in results.values() for each in result.verdicts()]
    times = {outcome.replace(" ", "_"): str(every.count(outcome)) for outcome in OUTCOMES}
    for name, value in {"experiments": str(len(results)), "claims": str(len(every)), **times}.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    setup = (TEXTS / "setup.txt").read_text(encoding="utf-8")
    return text.replace("<!-- pages -->\n", "\n".join(lines)).replace("<!-- setup -->", f"```python\n{setup}```")


def pages(experiments: Iterable[Experiment] = EXPERIMENTS) -> dict[Path, str]:
    """Every page of which there are results, by its path."""
    known = {each.name: Results.read(each) for each in experiments if path_of(each).is_file()}
    found = {}
    for each in experiments:
        if each.name in known:
            text = page(each, known[each.name])
            found[PAGES / f"{each.name}.md"] = text
            found[PACKAGED / f"{each.name}.md"] = text
    first = index(known)
    return {ROOT / "docs" / "guide.md": first, PACKAGED / "index.md": first, **found}


def unexpected(experiments: Iterable[Experiment] = EXPERIMENTS) -> Iterator[str]:
    """Texts that were written for other outcomes than those of the results, and so need a look."""
    for each in (each for each in experiments if path_of(each).is_file()):
        text = (TEXTS / f"{each.name}.md").read_text(encoding="utf-8")
        written = WRITTEN_FOR.findall(text)
        outcomes = ", ".join(verdict.outcome for verdict in Results.read(each).verdicts())
        if written != [outcomes]:
            yield f"benchmarks/guide/texts/{each.name}.md, for it ends with <!-- written for: {outcomes} -->"


def write(experiments: Iterable[Experiment]) -> Iterator[str]:
    """Write the pages and pictures, and return what was written and what needs a look."""
    experiments = tuple(experiments)
    for path, text in pages(experiments).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8", newline="\n")
            yield path.relative_to(ROOT).as_posix()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for each in experiments:
        if path_of(each).is_file():
            for mode in MODES:
                draw(each, Results.read(each), mode, PICTURES / f"{each.name}-{mode}.svg")
    yield from (f"needs a look: {each}" for each in unexpected(experiments))
