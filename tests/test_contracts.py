"""The contracts find what breaks them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from bnmonitor import Finding, Monitor, Rule, Severity, Sink
from bnmonitor.measures import median
from bnmonitor.rules import Window
from bnmonitor.testing import make_window
from bnmonitor.testing.contracts import (
    IntegrationContract,
    LayerCase,
    LayerKindContract,
    RuleContract,
    SinkContract,
)
from bnmonitor.testing.contracts.integrations import Batch


@dataclass(frozen=True, kw_only=True)
class Large(Rule):
    """Finds layers whose gamma is large."""

    code: ClassVar[str] = "MY001"
    name: ClassVar[str] = "large-gamma"
    severity: ClassVar[Severity] = Severity.WARNING

    broken: str = ""

    def check(self, window: Window) -> list[Finding]:
        if self.broken == "mutates":
            window.gamma.add_(1)
        if self.broken == "loops":
            spans = [window.layers.span(layer) for layer in range(len(window.layers))]
            middle = torch.stack([window.gamma[-1, span].median() for span in spans])
        else:
            middle = median(window.gamma[-1], window)
        limit = -1.0 if self.broken == "cries wolf" else 10.0
        found = (middle > limit).nonzero().flatten().tolist()
        return [self._finding(window, layer, float(middle[layer])) for layer in found]

    def _finding(self, window: Window, layer: int, value: float) -> Finding:
        finding = Finding(
            severity=self.severity,
            layer=layer,
            first_step=window.steps[0],
            value=value,
            threshold=10.0,
            message="gamma is large",
            advice="a smaller gamma." if self.broken == "advice" else "lower gamma",
        )
        return replace(finding, value=torch.tensor(value)) if self.broken == "tensors" else finding  # type: ignore[arg-type]


class OfRules(RuleContract):
    def faulty(self, rule: Rule) -> Window:
        return make_window(gamma=[1.0, 20.0, 20.0])


def promises(contract: type) -> list[str]:
    return [name for name in vars(contract) if name.startswith("test_")]


BROKEN_RULES = {
    "mutates": "test_it_changes_nothing_and_repeats_itself",
    "cries wolf": "test_it_is_silent_on_healthy_windows",
    "advice": "test_its_advice_is_one_imperative_sentence",
    "loops": "test_it_does_not_loop_over_healthy_layers",
    "tensors": "test_it_reports_plain_numbers",
}


def test_a_rule_that_keeps_its_promises_passes() -> None:
    names = promises(RuleContract)
    assert {*BROKEN_RULES.values()} <= {*names}
    for promise in names:
        getattr(OfRules(), promise)(Large())


@pytest.mark.parametrize("broken", BROKEN_RULES)
def test_a_rule_that_breaks_a_promise_is_found(broken: str) -> None:
    with pytest.raises(AssertionError):
        getattr(OfRules(), BROKEN_RULES[broken])(Large(broken=broken))


class Bad(Sink):
    broken = ""

    def __init__(self, broken: str) -> None:
        self.broken = broken

    def frame(self, summary: Any) -> None:
        if self.broken == "prints":
            print("here I am")
        if self.broken == "mutates":
            summary.window.gamma.zero_()

    def open(self, run: Any) -> None:
        if self.broken == "history":
            self.history = (str(run.log_dir / "nowhere"),)

    def close(self, summary: Any) -> None:
        if self.broken == "closes once":
            self.broken = "closed"
        elif self.broken == "closed":
            raise ValueError("closed")


BROKEN_SINKS = {
    "prints": "test_it_prints_nothing_unless_it_shows_alerts",
    "mutates": "test_it_changes_nothing_that_it_gets",
    "closes once": "test_it_can_be_closed_twice",
    "history": "test_it_names_only_directories_that_exist",
}


@pytest.mark.parametrize("broken", BROKEN_SINKS)
def test_a_sink_that_breaks_a_promise_is_found(broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class OfSinks(SinkContract):
        def make_sink(self, folder: Path) -> Sink:
            return Bad(broken)

    more = (capsys,) if broken == "prints" else ()
    with pytest.raises((AssertionError, ValueError)):
        getattr(OfSinks(), BROKEN_SINKS[broken])(tmp_path, *more)


class Shifted(nn.BatchNorm2d):
    """Writes statistics that are not those of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 1)


@pytest.mark.parametrize(
    ("promise", "case"),
    [
        ("test_it_is_found_once", LayerCase(make=lambda: nn.BatchNorm2d(6), layers=("norm",))),
        ("test_what_is_recorded_is_the_truth", LayerCase(make=lambda: Shifted(6))),
        ("test_evaluation_mode_is_reported", LayerCase(make=lambda: AlwaysTraining(6))),
    ],
)
def test_a_layer_that_breaks_a_promise_is_found(promise: str, case: LayerCase) -> None:
    with pytest.raises(AssertionError):
        getattr(LayerKindContract(), promise)(case)


class AlwaysTraining(nn.BatchNorm2d):
    """Ignores ``eval()``."""

    def train(self, mode: bool = True) -> AlwaysTraining:
        return super().train(True)


def integration(step: Callable[[Monitor], None], *, keeps: bool = False, evaluates: bool = False) -> type:
    class Of(IntegrationContract):
        def fit(
            self, model: nn.Module, batches: Sequence[Batch], *, watch: bool, held_out: Sequence[Batch] = ()
        ) -> Monitor | None:
            monitor = Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1) if watch else None
            if monitor is not None:
                monitor.start()
            for x, y in [*batches, *(held_out if evaluates else ())]:
                with contextlib.suppress(FloatingPointError):
                    nn.functional.cross_entropy(model(x), y).backward()
                if monitor is not None:
                    step(monitor)
            if monitor is not None and not keeps:
                monitor.close()
            return monitor

    return Of


@pytest.mark.parametrize(
    ("promise", "broken"),
    [
        ("test_training_is_bit_identical", integration(lambda monitor: (torch.rand(1), monitor.step())[1])),
        ("test_every_step_is_recorded_once", integration(lambda monitor: (monitor.step(), monitor.step())[1])),
        ("test_no_hook_is_left_after_the_training", integration(Monitor.step, keeps=True)),
        ("test_no_hook_is_left_after_an_exception", integration(Monitor.step, keeps=True)),
        ("test_an_evaluation_is_not_counted_as_training", integration(Monitor.step, evaluates=True)),
    ],
)
def test_an_integration_that_breaks_a_promise_is_found(promise: str, broken: type) -> None:
    with pytest.raises(AssertionError):
        getattr(broken(), promise)()


def test_a_promise_is_a_sentence() -> None:
    for contract in (RuleContract, SinkContract, LayerKindContract, IntegrationContract):
        assert promises(contract)
        for name in promises(contract):
            assert (getattr(contract, name).__doc__ or "").endswith("."), name
