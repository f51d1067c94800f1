"""From an alert to the rescue: back to the last state that was calm, with a lower learning rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from bnmonitor._text import number, thousands
from bnmonitor.context import rate_of
from bnmonitor.distributed import world_size
from bnmonitor.monitor.session import Session
from bnmonitor.monitor.snapshots import Snapshot, restore, scale_rates, take
from bnmonitor.results import Alert, Incident, advised_rate
from bnmonitor.rules.monitor.rolled_back import RolledBack

MOST = 3
"""How often a run goes back: a training that needs more of it needs a person."""

ABOUT_RATE = frozenset({"changed-weights", "dead-channels", "learning-rate-too-high", "unfreeze-shock"})
"""Causes whose fix is a lower learning rate: where the incident derives none, it is a third."""

UNDONE = ABOUT_RATE | {
    "half-precision-overflow",
    "non-finite-input",
    "non-finite-statistics",
    "outlier-batch",
    "ruined-statistics",
    "variance-collapse",
}
"""Causes whose damage is undone by going back; any other, such as a small batch, would be there again."""


class Plan(NamedTuple):
    """Where to go back to.

    Attributes:
        incident: The position of the incident.
        cause: Its cause.
        step: The step of the snapshot.
        factor: What the learning rates are multiplied with.
        message: What is written down of it.
        advice: What a person should do now.
    """

    incident: int
    cause: str
    step: int
    factor: float
    message: str
    advice: str


class Rollback:
    """The action ``"rollback"``: an alert asks for it, and it happens when the step has ended.

    States are kept on the host every ``every`` steps: the newest ones, and one from before these. Which of them was
    calm is decided when it is needed, because an incident begins before it is found.

    Args:
        modules: The models.
        every: Steps between two states.
    """

    session: Session
    """What is set back as well, and where it is written down."""

    def __init__(self, modules: Iterable[nn.Module], every: int) -> None:
        self._modules, self._every = list(modules), every
        self.further: Callable[[], list[nn.Module]] = list
        """Returns modules that are restored besides, such as averages of the weights."""
        self.done: Counter[str] = Counter()
        """How often the training went back, by cause."""
        self._kept: list[Snapshot] = []
        self._wanted: Incident | None = None
        self._said: set[str] = set()
        self._used: set[int] = set()
        self._unclear: set[int] = set()
        self._last: tuple[int, int] | None = None
        self.automatic = True
        """Whether it happens at the end of the step; else an adapter says when."""

    def __call__(self, alert: Alert) -> None:
        """Ask for it, if going back undoes what the incident of an alert has done."""
        incident = alert.incident
        if incident is None:
            return
        if incident.cause not in UNDONE:
            self._unclear.add(incident.index)  # another cause may explain it as evidence comes in
        elif self._wanted is None:
            self._wanted = incident

    def resume(self, done: object) -> None:
        """Take from a checkpoint how often the training went back before it was saved; forget all other states."""
        self._kept = []
        if isinstance(done, Mapping):
            self.done = Counter({str(cause): n for cause, n in done.items() if isinstance(n, int)})

    @property
    def wanted(self) -> bool:
        """Whether an alert asked for it."""
        return self._wanted is not None

    def step(self, number: int, count: int) -> None:
        """Go back if an alert asked for it, or keep the state if it is time.

        Args:
            number: The step that has ended.
            count: Steps so far.
        """
        known = self.session.diagnosis.incidents
        if self._last is not None and self._lasts(*self._last, number):
            self._wanted = known[self._last[0]]
        for incident in [known[i] for i in self._unclear if i < len(known)]:
            if incident.state != "open" or incident.cause in UNDONE:
                self._unclear.discard(incident.index)
            if incident.state == "open" and incident.cause in UNDONE:
                self._wanted = incident
        if not self.wanted:
            self.keep(number, count)
        elif self.automatic:
            plan = self.plan()
            if plan is not None:
                self.go(plan)

    def keep(self, step: int, count: int) -> None:
        """Keep the state after a step, if it is time; of lazy layers, once the first step has made them.

        Args:
            step: The step.
            count: Steps so far; 0 at the start.
        """
        if count % self._every and not (count == 1 and self._kept and not self._kept[-1].complete):
            return
        session = self.session
        found = take(step, self._all(), session.optimizers, session.facts.scaler, session.recorder.state_dict())
        self._kept = [each for each in self._kept if each.step < step and each.complete] + [found]
        # What began a window ago may be found only now.
        old = [each for each in self._kept if each.step < step - self._every]
        self._kept = [*old[-1:], *(each for each in self._kept if each.step >= step - self._every)]

    def plan(self) -> Plan | None:
        """Take the wish that an alert had, and return where to go back to; None if that is nowhere."""
        incident, self._wanted, self._last = self._wanted, None, None
        if incident is None:
            return None
        if self.automatic and world_size() > 1:
            self._tell(
                "going back needs Lightning where several processes train: the training goes on as it is",
                incident.advice,
            )
            return None
        total = sum(self.done.values())
        if total >= MOST:
            self._tell(f"went back {MOST} times, which is the most: the training goes on as it is", incident.advice)
            return None
        calm = [each for each in self._kept if self._is_calm(each)]
        if not calm:
            at = thousands(incident.first_step)
            self._tell(f"no calm state is known from before step {at}: the training goes on as it is", incident.advice)
            return None
        # What did not help once may have been damaged already.
        fresh = [each for each in calm if each.step not in self._used]
        now, before = _rate(self.session.optimizers), (fresh or calm)[-1].step
        advised = advised_rate(incident.advice, now)
        again = self.done[incident.cause] > 0
        part = 1 / 3 if incident.cause in ABOUT_RATE or again else 1.0
        factor = part if advised is None or not now > 0 else advised / now
        where = f"after step {thousands(before)}" if before >= 0 else "before the first step"
        rate = f"learning rate {number(now)} → {number(now * factor)}" if now == now else ""
        rates = (f", {rate}" if rate else ", with a lower learning rate") if factor < 1 else ""
        return Plan(
            incident.index,
            incident.cause,
            before,
            factor,
            f"weights, optimizer and statistics are those {where} again{rates} ({total + 1} of at most {MOST}), "
            f"because of {incident.cause} since step {thousands(incident.first_step)}",
            "train the next time with that rate, or clip gradients: Trainer(gradient_clip_val=1.0)"
            if factor < 1
            else "keep such batches out, and clip gradients: Trainer(gradient_clip_val=1.0)",
        )

    def go(self, plan: Plan) -> bool:
        """Go back; return whether that was possible. In a training of several processes, all of them go together."""
        snapshot = next((each for each in self._kept if each.step == plan.step), None)
        if snapshot is None:
            return False
        try:
            restore(snapshot, self._all(), self.session.optimizers, self.session.facts.scaler)
        except ValueError as error:
            self._kept = []
            self._tell(f"cannot go back: {error}", "train again from a checkpoint")
            return False
        if plan.factor < 1:
            _lower(self.session.optimizers, plan.factor)
        self._kept = [each for each in self._kept if each.step <= plan.step]
        self.done[plan.cause] += 1
        self._used.add(plan.step)
        self._last = plan.incident, max(0, self.session.recorder.number - 1)
        self.session.rewind(snapshot.record)
        self._note(plan.message, plan.advice, plan.factor)
        return True

    def _all(self) -> list[nn.Module]:
        return [*self._modules, *self.further()]

    def _lasts(self, index: int, since: int, number: int) -> bool:
        """Whether an incident that the training went back for is there again, which opens no other and acts no more."""
        if number - since < self._every or index >= len(self.session.diagnosis.incidents):
            return False
        incident = self.session.diagnosis.incidents[index]
        return any(alert.state == "open" and alert.last_step > since for alert in incident.evidence)

    def _is_calm(self, snapshot: Snapshot) -> bool:
        """Whether the weights are numbers, and no incident has damaged them by then."""
        spans = [
            (each.first_step, each.last_step if each.state == "resolved" else float("inf"))
            for each in self.session.diagnosis.incidents
            if each.cause in UNDONE
        ]
        return snapshot.is_finite and not any(first <= snapshot.step <= last for first, last in spans)

    def _note(self, message: str, advice: str, factor: float) -> None:
        step = max(0, self.session.recorder.number - 1)
        self.session.write_down(RolledBack.report(message, advice, factor, step), RolledBack())

    def _tell(self, message: str, advice: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._note(message, advice, 1.0)


def _lower(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Lower the largest rate by a factor, and no optimizer below that: it may have been at a sound rate."""
    limit = factor * _rate(optimizers)
    for optimizer, rate in [(each, _rate([each])) for each in optimizers]:
        if not rate <= limit:
            known = rate == rate and limit == limit
            scale_rates([optimizer], limit / rate if known else factor)


def _rate(optimizers: Sequence[Optimizer]) -> float:
    """The largest learning rate in force; NaN if it is unknown."""
    rates = [rate_of(group) for optimizer in optimizers for group in optimizer.param_groups]
    return max((rate for rate in rates if rate == rate), default=float("nan"))
