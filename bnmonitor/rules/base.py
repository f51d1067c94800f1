"""What a rule is: a check over a window that returns findings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import exp
from typing import ClassVar, Literal

from torch import Tensor

from bnmonitor._text import number, weight
from bnmonitor.results import Severity as Severity
from bnmonitor.window import EVALUATIONS, Window

Moment = Literal["check", "evaluation", "end"]
"""When a rule is judged."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a rule reports about one layer, or about the whole model, at one check.

    Attributes:
        severity: How bad the fault is now.
        layer: Position of the layer; None if there is no layer to name.
        first_step: The step when the fault began, as far as the window reaches.
        value: The number that was judged.
        threshold: The number that ``value`` was compared with.
        message: What is wrong, with the value and the likely cause.
        advice: One concrete fix.
        channels: Channels within ``layer``; empty means the whole layer.
        layers: All affected layers, if one finding reports a fault of the whole model; ``layer`` is the first of them.
        modules: Dotted paths of other modules, which the alert names instead of the layers.
        certain: False for a first sign that opens no alert yet; if the fault is confirmed, the alert begins here.
        lasting: Steps for which it must hold before an alert opens, if those are more than the rule's ``confirm``.
    """

    severity: Severity
    layer: int | None
    first_step: int
    value: float
    threshold: float
    message: str
    advice: str
    channels: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()
    certain: bool = True
    lasting: int = 0


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A check over the window of all layers. Its thresholds are its fields.

    A rule is a pure function: it keeps no state and changes nothing. The window's baseline remembers the past, and the
    engine waits until a finding has lasted long enough before it opens an alert.

    Class attributes:
        code: ``BN304``; public, never changes its meaning.
        name: ``stale-statistics``; public as well.
        severity: The severity it usually has.
        needs: What the rule requires, in the words of :data:`bnmonitor.rules.NEEDS`. While something is missing, the
            rule does not run, and is listed as skipped with the reason.
        confirm: Steps for which a finding must hold before an alert opens; 0: at once.
        every: Steps after which the rule judges again while it finds nothing; 0: at each check. For what costs much and
            judges the whole window, so that a few new steps hardly change it. Once it has found something it judges at
            each check.
        exact: Whether ``first_step`` is exact. If not, the alert names the first layer in execution order among
            those whose findings began within one check of each other.
        own: Whether what the rule measures in a layer does not depend on the layers before it: among findings that
            began together, the alert then names the one that is furthest beyond its threshold, and not the first.
        holds: Whether the baseline of a layer stops following while the rule has an open alert there.
        yields_to: Codes of more specific rules: while one of them has a finding in a layer, this rule reports nothing
            there.
        follows: Codes of the rules whose alerts explain this rule's findings: a finding in any layer that begins after
            such an alert, while the alert is in the window, is counted under it and opens no alert of its own.
        moment: When the rule runs: at each ``"check"`` with new steps, when an ``"evaluation"`` begins, or at the
            ``"end"``.
        at_end: Whether a rule that runs at each check, or at each evaluation, also runs at the end.
        default: Whether the rule runs when nothing is selected.
        untrained: Whether the rule can judge an evaluation without a training step before it.
        without_layers: Whether the rule can judge a model without a layer to watch.
        silences_downstream: Whether a finding makes the layers after it in execution order impossible to judge.
        about_monitor: Whether the rule reports a fault of bnmonitor itself, or what it has done, neither of which stops
            a training.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]
    needs: ClassVar[frozenset[str]] = frozenset()
    confirm: ClassVar[int] = 0
    every: ClassVar[int] = 0
    exact: ClassVar[bool] = False
    own: ClassVar[bool] = False
    holds: ClassVar[bool] = False
    yields_to: ClassVar[frozenset[str]] = frozenset()
    follows: ClassVar[frozenset[str]] = frozenset()
    moment: ClassVar[Moment] = "check"
    at_end: ClassVar[bool] = False
    default: ClassVar[bool] = True
    untrained: ClassVar[bool] = False
    without_layers: ClassVar[bool] = False
    silences_downstream: ClassVar[bool] = False
    about_monitor: ClassVar[bool] = False

    @abstractmethod
    def check(self, window: Window) -> list[Finding]:
        """Judge the window; return one finding for every affected layer."""


@dataclass(frozen=True, kw_only=True)
class MonitorFault(Rule):
    """A fault of bnmonitor itself, or what it has done. The engine reports it, so no check ever finds it."""

    severity: ClassVar[Severity] = Severity.WARNING
    about_monitor: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Find nothing."""
        return []

    @classmethod
    def raised(cls, who: str, error: Exception, step: int, advice: str) -> Finding:
        """Return the finding that something raised an exception."""
        return Finding(
            severity=cls.severity,
            layer=None,
            first_step=step,
            value=1.0,
            threshold=0.0,
            message=f"{who} raised {type(error).__name__}: {error}",
            advice=advice,
        )


def last_run(mask: Tensor) -> Tensor:
    """Only the run of True at the end of a ``[T]`` condition."""
    return mask.flip(0).long().cumprod(0).flip(0).bool()


def onset(mask: Tensor, window: Window) -> int:
    """The step at which a ``[T]`` condition that holds at the end began to hold."""
    run = int(last_run(mask).sum())
    return window.steps[max(0, len(window) - max(run, 1))]


def first(mask: Tensor, window: Window) -> int:
    """The first step of the window at which a ``[T]`` condition holds."""
    return window.steps[int(mask.long().argmax())]


def sampled(window: Window) -> int:
    """The step of the sample, or the first of the window if that was before it."""
    step = window.sample.step if window.sample is not None else window.steps[0]
    return step if step in window.steps else window.steps[0]


def unused(window: Window, layer: int) -> bool:
    """Whether nothing is known to evaluate a layer, as a discriminator in a training with several optimizers."""
    return window.facts.optimizer_count > 1 and not window.ledger.evaluated[EVALUATIONS, layer].any()


def apart(shift: float, ratio: float) -> str:
    """Return in words how far the means of two inputs are apart, in deviations, and the logs of their variances."""
    return f"the means differ by {number(shift)} standard deviations, the variances by a factor {number(exp(ratio))}"


def run_note(window: Window, layer: int, step: int) -> str:
    """Return the learning rate, batch size and momentum at a step as text, as far as they are known."""
    samples, momentum = window.baseline.sizes[layer].item(), window.momentum[-1, layer].item()
    batches = f"; batches of {number(samples)}" if samples == samples else ""
    average = f"; momentum {weight(momentum)}" if momentum == momentum else "; a cumulative average"
    return f"{rate_note(window, step)}{batches}{average}"


def rate_note(window: Window, step: int) -> str:
    """Return the learning rate at a step as text, and whether it had just changed; empty if unknown."""
    rates = window.facts.learning_rates
    if len(rates) != len(window) or step not in window.steps:
        return ""
    at = window.steps.index(step)
    now, before = rates[at], rates[max(0, at - 20)]
    if now != now:
        return ""
    if before == before and now >= 2 * before > 0:
        return f"; lr = {number(now)} (was {number(before)})"
    return f"; lr = {number(now)}"
