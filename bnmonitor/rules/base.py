"""What a rule is: a check over a window that yields findings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from bnmonitor._text import number
from bnmonitor.results import Severity as Severity
from bnmonitor.window import Window

Moment = Literal["check", "evaluation", "end"]
"""When a rule is judged."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a rule says about one layer, or about the whole model, at one check.

    Attributes:
        severity: How bad it is now.
        layer: Position of the layer; None if there is no layer to name.
        first_step: The step when it began, as far as the window reaches.
        value: The number that was judged.
        threshold: The number it was judged by.
        message: What is wrong, with the value and the likely cause.
        advice: One concrete fix.
        channels: Channels within ``layer``; empty means the whole layer.
        layers: All layers concerned, if one fault of the whole model is told once; ``layer`` is its first.
        modules: Dotted paths of other modules, to be named in place of the layers.
        certain: False for the first sign of a fault that nobody should be told of yet; it dates the alert.
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


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A check over the window of all layers. Its thresholds are its fields.

    A rule is a pure function: it keeps no state and changes nothing. What it needs to remember is in the
    window's baseline; that a finding must last before anyone is told is the engine's work.

    Class attributes:
        code: ``BN304``; public, never changes its meaning.
        name: ``stale-statistics``; likewise.
        severity: The severity it usually has.
        needs: What must be there for it to run, in the words of :data:`bnmonitor.rules.NEEDS`. It is left out, and
            listed as skipped with the reason, for as long as something is missing.
        confirm: Steps for which it must hold before an alert opens; 0: at once.
        exact: Whether ``first_step`` is exact. If not, the first layer in execution order is blamed among
            those that began within one check of each other.
        holds: Whether an open alert keeps the layer's baseline from following.
        yields_to: Codes of the rules that know better: while one of them has found something in a layer, this one is
            silent there.
        follows: Codes of the rules whose alerts explain this one: what it finds in any layer after such an alert has
            begun, and while that is in the window, is counted there and opens no alert of its own.
        moment: When it is judged: at each ``"check"`` with new steps, when an ``"evaluation"`` begins, or at the
            ``"end"``.
        default: Whether it runs when nothing is selected.
        untrained: Whether it can judge an evaluation without a training step before it.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]
    needs: ClassVar[frozenset[str]] = frozenset()
    confirm: ClassVar[int] = 0
    exact: ClassVar[bool] = False
    holds: ClassVar[bool] = False
    yields_to: ClassVar[frozenset[str]] = frozenset()
    follows: ClassVar[frozenset[str]] = frozenset()
    moment: ClassVar[Moment] = "check"
    default: ClassVar[bool] = True
    untrained: ClassVar[bool] = False

    @abstractmethod
    def check(self, window: Window) -> list[Finding]:
        """Judge the window; return one finding per layer concerned, worst or not."""


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


def run_note(window: Window, layer: int, step: int) -> str:
    """Say under which learning rate, batch size and momentum it happened, as far as they are known."""
    samples, momentum = float(window.baseline.sizes[layer]), float(window.momentum[-1, layer])
    batches = f"; batches of {number(samples)}" if samples == samples else ""
    average = f"; momentum {number(momentum)}" if momentum == momentum else "; a cumulative average"
    return f"{rate_note(window, step)}{batches}{average}"


def rate_note(window: Window, step: int) -> str:
    """Say which learning rate was in force at a step, and whether it had just changed; empty if unknown."""
    rates = window.facts.learning_rates
    if len(rates) != len(window) or step not in window.steps:
        return ""
    at = window.steps.index(step)
    now, before = rates[at], rates[max(0, at - 20)]
    if now != now:
        return ""
    if before == before and now >= 2 * before > 0:
        return f"; learning rate {number(now)} in force, {number(before)} shortly before"
    return f"; learning rate {number(now)} in force"
