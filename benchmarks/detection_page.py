"""The result of benchmarks/detection.py as a page, and its confusion matrix as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from detection_power import Graded, section

from bnmonitor._text import count
from bnmonitor.rules import CATALOGUE, find
from tests.end_to_end.faults.power import most_expected, wilson
from tests.end_to_end.faults.trial import Outcome

Sound = Sequence[tuple[str, Outcome]]

INTRODUCTION = """\
# Detection: what is found, and what is falsely said

<!-- Written by benchmarks/detection.py; do not edit. -->

How well the rules find faults is measured as accuracy is: by injecting known faults into trainings that would be well,
and by counting alarms on trainings that are. The networks are small and learn from the data sets of scikit-learn; they
have what makes real ones hard: residual with zero-initialized gamma, pre-activation, depthwise, dense, U-Net,
squeeze-and-excite, plain chain, MLP, 1-d and 3-d convolution, ghost batches, siamese, transformer with a BatchNorm
stem, GAN. An injection knows nothing of the rule that should find it, and proves by evidence of its own that it took
place; a training where it did not is left out, and counted as void. All rules run in every training, with their
default thresholds. `make detection` runs everything again; `tests/end_to_end/faults` has the networks, the faults and
the sound trainings.
"""

LIMITS = """\
## What these figures do not cover

- **Faults of strangers.** Every fault here was injected by the people who wrote the rules. That an injection does not
  know its rule keeps it from being tuned to a threshold, but not from being a fault that somebody here has thought of.
  `benchmarks/public_faults` has faults that others have published.
- **Size.** Networks of 2 to 15 layers with 4 to 64 channels, 40 to 1,000 steps, batches of 2 to 256. Statistics of wide
  layers, large pictures and long trainings have another noise; the thresholds are derived for it and not measured here.
- **Hardware.** Everything runs on a CPU in one process, save the faults of ranks, which run in two. No GPU, no fp16 but
  simulated, no compiled or captured graphs, no cluster.
- **Data.** Digits, tables and two photographs. A stream of video, speech, text or medical volumes correlates otherwise.
- **Independence.** Intervals take trainings for independent. Those of one fault differ by network and seed only, and
  those of one rule share its faults, so that the true uncertainty about a fault of another kind is larger. Steps of one
  training are not independent either: the bound of the rate a step means trainings like these.
- **Rules without a row** are not measured: they have no injection, or their fault cannot be made on this machine.
"""

FAULTS = """\
## Faults

Detected: the rule spoke after the fault was injected, no milder than it should. Right layer: of those, it named the
layer that was injected. Right channels: of those of faults that are in some channels, it named all channels that had
crossed the threshold a check before, and no sound one. In parentheses Wilson's 95 % interval. Delay: steps from the
step at which the injected value crossed the threshold to the alert (rules run every 10 steps, samples are taken every
100); below zero where the rule needs less than the definition asks for. Also fired: other rules that gave a warning or
error in these trainings, with the share of trainings; a fault has consequences, which other rules may rightly name.

| rule | runs | void | detected | right layer | right channels | delay, median | worst | also fired |
|---|---|---|---|---|---|---|---|---|
"""

SOUND = """\
## Sound trainings

A false alarm is a warning, an error, or a second info of the same rule, in a training where nothing is wrong: warm-up
from zero, high but stable rates, the last batch kept, a small momentum, accumulation, correct freezes, linear probes,
pruning, re-estimated statistics, dropout in evaluation, averaged weights with averaged statistics, test-time views,
teachers that stand still, fits under Lightning, and the plain recipes; and what people do besides: SAM, MoCo, BYOL,
SimCLR, mean teachers, distillation, mixup, CutMix, several scales, L-BFGS, stochastic depth, a GAN with five steps of
the discriminator, FedAvg, Lookahead, Reptile, pseudo-labels, adversarial training, one cycle, warm restarts, growing
batches, gradual unfreezing, balanced sampling, BatchNorm behind ReLU, narrow layers. One training was taken out,
because an alarm on it was right: squeeze-and-excite at batches of 16, whose gate lags (BN304); with statistics
estimated anew it classified up to 36 points more of the validation set.
"""

QUIET = """\
| rule | false alarms | per 1,000 steps | trainings with an info |
|---|---|---|---|
"""


def page(faults: Sequence[Outcome], sound: Sound, graded: Graded = (), unfinished: str = "", measured: str = "") -> str:
    """Return docs/detection.md; ``unfinished`` says what has not been run, ``measured`` when and at which commit."""
    steps = sum(outcome.steps for _, outcome in sound)
    alarms = [(key, alert) for key, outcome in sound for alert in outcome.alarms()]
    valid = [outcome for outcome in faults if outcome.took_place]
    found = [outcome for outcome in valid if outcome.detected]
    lines = [
        INTRODUCTION,
        f"{len(valid)} trainings with a fault: {_share(valid, 'detected')} detected, of these "
        f"{_share(found, 'right_layer')} in the right layer. {len(sound)} sound trainings, {steps:,} steps: "
        f"{count(len(alarms), 'false alarm')}.",
        "",
        *([measured, ""] if measured else []),
        f"Each fault was put into up to {_most(faults, 'network')} of the networks that it fits, with "
        f"{_most(faults, 'seed')} seed{'s' * (_most(faults, 'seed') != 1)} each (0 to {_most(faults, 'seed') - 1}, "
        "none chosen by its result).",
        "",
        *([unfinished, ""] if unfinished else []),
        FAULTS.rstrip(),
        *(_row(code, [o for o in faults if o.code == code]) for code in sorted({o.code for o in faults})),
        "",
        "![Share of trainings with a fault, by row, in which a rule, by column, spoke](pictures/confusion.svg)",
        "",
        *_misses(valid),
        *section(graded),
        SOUND,
        *_bounds(sound, steps, alarms),
        QUIET.rstrip(),
        *_quiet(sound, steps),
        "",
    ]
    if alarms:
        lines += ["| training | rule | severity | layer | step | what it said |", "|---|---|---|---|---|---|"]
        for key, a in alarms:
            lines.append(f"| {key} | {a['code']} | {a['severity']} | {a['layer']} | {a['opened']} | {a['message']} |")
        lines.append("")
    return "\n".join([*lines, LIMITS])


def _bounds(sound: Sound, steps: int, alarms: Sequence[object]) -> Iterable[str]:
    """How many alarms there may be at most, with 95 % confidence."""
    if not sound:
        return
    wrong = sum(bool(outcome.alarms()) for _, outcome in sound)
    seeds = len({outcome.seed for _, outcome in sound})
    rate, share = most_expected(len(alarms)) / steps, min(1.0, most_expected(wrong) / len(sound))
    yield (
        f"{len(alarms)} alarms in {steps:,} steps of {len(sound)} trainings with {seeds} seeds, {wrong} of which had "
        f"one: with 95 % confidence at most {1e5 * rate:.2g} alarms in 100,000 steps of trainings like these, and at "
        f"most {100 * share:.2g} % of trainings with one (the rule of three, where there was none)."
    )
    yield ""


def _most(faults: Sequence[Outcome], what: str) -> int:
    """Largest number of networks, or seeds, that a fault was tried with."""
    tried: dict[str, set[object]] = {}
    for outcome in faults:
        tried.setdefault(outcome.name, set()).add(getattr(outcome, what))
    return max(map(len, tried.values()), default=0)


def _share(outcomes: Sequence[Outcome], what: str) -> str:
    """The share with its interval, in percent, to a tenth."""
    found = sum(getattr(o, what) for o in outcomes)
    low, high = wilson(found, len(outcomes))
    return f"{100 * found / max(1, len(outcomes)):.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def _row(code: str, outcomes: Sequence[Outcome]) -> str:
    valid = [o for o in outcomes if o.took_place]
    found = [o for o in valid if o.detected]
    channels = [o for o in found if o.channels is not None]
    delays = [o.delay for o in found if o.delay is not None]
    others: dict[str, int] = {}
    for outcome in valid:
        for other in outcome.others():
            others[other] = others.get(other, 0) + 1
    cells = [
        f"[{code}](rules/{code}.md) {find(code).name}",
        str(len(valid)),
        str(len(outcomes) - len(valid)),
        _share(valid, "detected") if valid else "–",
        _share(found, "right_layer") if found else "–",
        _share(channels, "right_channels") if channels else "–",
        f"{statistics.median(delays):g}" if delays else "–",
        str(max(delays)) if delays else "–",
        ", ".join(f"{other} {100 * n / len(valid):.0f} %" for other, n in sorted(others.items())) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def _misses(valid: Sequence[Outcome]) -> Iterable[str]:
    wrong = [o for o in valid if not (o.detected and o.right_layer and o.right_channels)]
    if not wrong:
        return
    yield "What went wrong:"
    yield ""
    yield "| fault | network | seed | rule | what |"
    yield "|---|---|---|---|---|"
    for o in wrong:
        alert = o.alert()
        if alert is None:
            what = f"not detected{': ' + o.skipped if o.skipped else ''}"
        elif not o.right_layer:
            what = f"named {alert['layer']} instead of {' or '.join(o.blamed)}"
        else:
            what = f"named channels {list(alert['channels'])} instead of {list(o.channels or ())}"
        yield f"| {o.name} | {o.network} | {o.seed} | {o.code} | {what} |"
    yield ""


def _quiet(sound: Sound, steps: int) -> Iterable[str]:
    for code in (rule.code for rule in CATALOGUE if not rule.code.startswith("BN0")):
        wrong = sum(a["code"] == code for _, o in sound for a in o.alarms())
        infos = sum(any(a["code"] == code and a["level"] == 10 for a in o.told) for _, o in sound)
        rate = 1000 * wrong / max(1, steps)
        yield f"| [{code}](rules/{code}.md) {find(code).name} | {wrong} | {rate:.3g} | {infos} |"


STYLE = """\
text { font: 11px ui-monospace, SFMono-Regular, Menlo, monospace; fill: #1f2328; }
.empty { fill: #818b98; fill-opacity: .10; }
.right { fill: #1a7f37; } .other { fill: #bc4c00; }
.in { fill: #ffffff; } .faint { fill: #59636e; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; } .faint { fill: #9198a1; }
  .empty { fill: #9198a1; fill-opacity: .12; } .right { fill: #3fb950; } .other { fill: #db6d28; }
  .in { fill: #0d1117; }
}
"""


def matrix(faults: Sequence[Outcome], sound: Sound) -> str:
    """Return the confusion matrix as SVG: the share of trainings with a fault (row) that a rule (column) reported."""
    valid = [o for o in faults if o.took_place]
    codes = sorted({o.code for o in valid})
    side, left, top = 26, 78, 64
    rows = [(code, [_spoken(o) for o in valid if o.code == code]) for code in codes]
    rows.append(("sound", [{a["code"] for a in o.alarms()} for _, o in sound]))
    width, height = left + side * len(codes) + 12, top + side * len(rows) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" aria-label="Confusion matrix: faults by row, rules by column">',
        f"<style>{STYLE}</style>",
        f'<text class="faint" x="{left}" y="12">rule that spoke, in % of the trainings</text>',
    ]
    for j, code in enumerate(codes):
        x = left + side * j + side / 2 + 4
        parts.append(f'<text transform="rotate(-90 {x} {top - 6})" x="{x}" y="{top - 6}">{code}</text>')
    for i, (name, spoken) in enumerate(rows):
        y = top + side * i + (6 if name == "sound" else 0)
        parts.append(f'<text text-anchor="end" x="{left - 8}" y="{y + side / 2 + 4}">{name}</text>')
        for j, code in enumerate(codes):
            share = sum(code in said for said in spoken) / max(1, len(spoken))
            x = left + side * j
            box = f'x="{x + 1}" y="{y + 1}" width="{side - 2}" height="{side - 2}" rx="3"'
            parts.append(f'<rect class="empty" {box}/>')
            if share:
                kind = "right" if name == code else "other"
                ink = "in" if share > 0.5 else "strong"
                middle = f'x="{x + side / 2}" y="{y + side / 2 + 4}"'
                parts.append(f'<rect class="{kind}" fill-opacity="{0.15 + 0.85 * share:.2f}" {box}/>')
                parts.append(f'<text class="{ink}" text-anchor="middle" {middle}>{max(1, round(100 * share))}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _spoken(outcome: Outcome) -> set[str]:
    own = {outcome.code} if outcome.detected else set()
    return own | set(outcome.others())
