"""Random trainings, settings, saves and exceptions: the parameters always equal those without a monitor."""

from __future__ import annotations

import contextlib
import copy
import io
import os
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from bnmonitor import Monitor
from bnmonitor.sinks import Sink
from tests.end_to_end.test_promises import AlwaysFinds, Faulty, Raises, same
from tests.models import ARCHITECTURES, train

MORE = int(os.environ.get("BNMONITOR_FUZZ", "1"))


@dataclass(frozen=True)
class Leg:
    """A stretch of training between two saves.

    Attributes:
        steps: Its steps.
        breaks: The step after which the training raises; -1: it does not.
        poisoned: The step with an infinity in its batch; -1: none.
        faulty: What the monitor's sink fails in.
        settings: The monitor's settings.
    """

    steps: int
    breaks: int
    poisoned: int
    faulty: str
    settings: dict[str, Any]


legs = st.builds(
    Leg,
    steps=st.integers(1, 8),
    breaks=st.integers(-4, 7),
    poisoned=st.integers(-8, 7),
    faulty=st.sampled_from(["", "open", "frame", "alert", "close"]),
    settings=st.fixed_dictionaries(
        {
            "check_every_n_steps": st.integers(1, 9),
            "log_every_n_steps": st.integers(0, 3),
            "sample_every_n_steps": st.integers(0, 4),
            "window": st.integers(9, 20),
            "probe": st.booleans(),
            "select": st.sampled_from([("default",), ("all",), ()]),
            "rules": st.sampled_from([None, (Raises(),), (AlwaysFinds(),), (Raises(), AlwaysFinds())]),
        }
    ),
)


class Broken(Exception):  # noqa: N818
    """The exception that a training raises."""


def run(name: str, momentum: float | None, course: list[Leg], *, watched: bool) -> list[Any]:
    """Train leg by leg, each from the state that the one before saved; return all that every leg leaves behind."""
    architecture = ARCHITECTURES[name]
    model: nn.Module = architecture.build(momentum)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    left, state = [], None
    for number, leg in enumerate(course):
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "monitor": state}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        model = architecture.build(momentum)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        batches = copy.deepcopy(architecture.batches(leg.steps))
        if 0 <= leg.poisoned < leg.steps and batches[0].is_floating_point():
            batches[leg.poisoned].view(-1)[0] = torch.inf
        torch.manual_seed(number)
        monitor = None
        if watched:
            sinks: list[Sink] = [Faulty(leg.faulty)]
            monitor = Monitor(model, optimizer=optimizer, sinks=sinks, on_alert=lambda alert: None, **leg.settings)
            if saved["monitor"] is not None:
                monitor.load_state_dict(saved["monitor"])

        def after(step: int, leg: Leg = leg) -> None:
            if step == leg.breaks:
                raise Broken

        with contextlib.suppress(Broken), monitor or contextlib.nullcontext():
            train(model, batches, optimizer=optimizer, monitor=monitor, evaluate_every=3, after_step=after)
        if monitor is not None:
            state = monitor.state_dict()
        left.append([dict(model.state_dict()), optimizer.state_dict(), torch.get_rng_state()])
    return left


@settings(max_examples=12 * MORE, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(ARCHITECTURES)),
    momentum=st.sampled_from([0.1, None]),
    course=st.lists(legs, min_size=1, max_size=3),
)
def test_no_setting_resume_or_exception_changes_a_training(
    name: str, momentum: float | None, course: list[Leg]
) -> None:
    alone, watched = (run(name, momentum, course, watched=on) for on in (False, True))
    assert len(alone) == len(watched) == len(course)
    for expected, found in zip(alone, watched, strict=True):
        assert same(expected, found)
