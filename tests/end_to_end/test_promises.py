"""The promises of the design, each with the tests that would show it broken."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bnmonitor import Alert, AlertError, BatchNormWarning, Finding, Monitor, Rule, Severity
from bnmonitor.recording.tape import Tape
from bnmonitor.sinks import Run, Sink
from bnmonitor.summary import Summary
from bnmonitor.testing import RecordingSink
from bnmonitor.window import Recovery, Window
from tests.models import ARCHITECTURES, train

STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Raises(Rule):
    """A rule that always raises."""

    code: ClassVar[str] = "BN990"
    name: ClassVar[str] = "raises"
    severity: ClassVar[Severity] = Severity.ERROR

    def check(self, window: Window) -> list[Finding]:
        raise ZeroDivisionError("on purpose")


@dataclass(frozen=True, kw_only=True)
class AlwaysFinds(Rule):
    """A rule that always finds the first layer at fault."""

    code: ClassVar[str] = "BN991"
    name: ClassVar[str] = "always-finds"
    severity: ClassVar[Severity] = Severity.ERROR

    def check(self, window: Window) -> list[Finding]:
        return [
            Finding(
                severity=self.severity,
                layer=0,
                first_step=window.steps[0],
                value=1.0,
                threshold=0.0,
                message="always",
                advice="nothing",
            )
        ]


@dataclass(frozen=True, kw_only=True)
class NeedsSamples(AlwaysFinds):
    """A rule that cannot run without activation samples."""

    code: ClassVar[str] = "BN992"
    name: ClassVar[str] = "needs-samples"
    needs: ClassVar[frozenset[str]] = frozenset({"samples"})


class Faulty(Sink):
    """A sink that raises in one of its methods, and counts the calls."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.calls: list[str] = []

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if method == self.method:
            raise OSError(28, "No space left on device")

    def open(self, run: Run) -> None:
        self._called("open")

    def frame(self, summary: Summary) -> None:
        self._called("frame")

    def alert(self, alert: Alert) -> None:
        self._called("alert")

    def epoch(self, summary: Summary) -> None:
        self._called("epoch")

    def close(self, summary: Summary) -> None:
        self._called("close")


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())


def same(a: Any, b: Any) -> bool:
    """Whether two nests of plain values and tensors are equal to the bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The state of every module: names and types of attributes, and the contents of the registries."""
    return {
        name: {
            key: sorted(value) if isinstance(value, dict | set) else type(value) for key, value in vars(module).items()
        }
        for name, module in model.named_modules()
    }


def outcome(name: str, momentum: float | None, **settings: Any) -> dict[str, Any]:
    """Everything that a training leaves behind, monitored if there are settings."""
    architecture = ARCHITECTURES[name]
    model = architecture.build(momentum)
    before = attributes(model)
    if "depthwise" in name:
        model[1].eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = architecture.batches(STEPS)
    random.seed(5)
    torch.manual_seed(5)
    sinks = [RecordingSink()]
    monitor = Monitor(model, optimizer=optimizer, sinks=sinks, **settings) if settings else None
    with monitor or contextlib.nullcontext():
        losses = train(model, batches, optimizer=optimizer, monitor=monitor, evaluate_every=4)
        if monitor is not None:
            monitor.end_epoch(0)
    if monitor is not None:
        assert monitor.steps == tuple(range(STEPS))
        assert {what for what, _ in sinks[0].events} >= {"open", "frame", "alert", "epoch", "close"}
    assert attributes(model) == before
    return {
        "losses": losses,
        "state": dict(model.state_dict()),
        "gradients": [p.grad for p in model.parameters() if p.grad is not None],
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "modes": [m.training for m in model.modules()],
        "grad": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_does_not_change_training(name: str, momentum: float | None) -> None:
    alone = outcome(name, momentum)
    watched = outcome(
        name,
        momentum,
        sample_every_n_steps=1,
        check_every_n_steps=3,
        log_every_n_steps=1,
        select=("all",),
        rules=[AlwaysFinds()],
        on_alert="log",
    )
    for key, value in alone.items():
        assert same(value, watched[key]), key


def test_it_does_not_change_training_under_automatic_mixed_precision() -> None:
    def run(watch: bool) -> dict[str, Tensor]:
        architecture = ARCHITECTURES["residual"]
        model = architecture.build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1) if watch else None
        with monitor or contextlib.nullcontext():
            for x in architecture.batches(4):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    model(x).square().sum().backward()
                optimizer.step()
                if monitor is not None:
                    monitor.step()
        assert monitor is None or monitor.steps == (0, 1, 2, 3)
        return dict(model.state_dict())

    assert same(run(False), run(True))


def hooks(model: nn.Module) -> int:
    return sum(
        len(value) for m in model.modules() for key, value in vars(m).items() if key.endswith("_hooks") and value
    )


@pytest.mark.parametrize("where", ["forward", "training", "evaluation"])
def test_it_does_not_change_training_hooks_are_released_on_exceptions(where: str) -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    model = nn.Sequential(nn.BatchNorm1d(3), Fails() if where == "forward" else nn.ReLU())
    monitor = Monitor(model, sinks=[], sample_every_n_steps=1)

    def run() -> None:
        with monitor:
            assert hooks(model) > 0
            model(torch.randn(4, 3))
            if where == "evaluation":
                with monitor.evaluation():
                    raise KeyboardInterrupt
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert hooks(model) == 0
    monitor.close()
    with pytest.raises(RuntimeError, match="start"):
        monitor.step()


def test_it_does_not_change_training_hooks_are_released_when_an_alert_raises() -> None:
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    monitor = Monitor(
        model, sinks=[], rules=[AlwaysFinds()], select=("BN991",), on_alert="raise", sample_every_n_steps=1
    )
    with pytest.raises(AlertError, match="BN991"), monitor:
        train(model, architecture.batches(3), monitor=monitor)
    assert hooks(model) == 0
    assert len(monitor.alerts) == 1


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: saved_and_loaded(model),
}


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("how", COPIES)
def test_it_does_not_change_training_a_copy_made_while_hooks_are_there_works_and_records_nothing(how: str) -> None:
    model = ARCHITECTURES["mlp"].build()
    batches = ARCHITECTURES["mlp"].batches(3)
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        train(model, batches[:1], monitor=monitor)
        assert hooks(model) > 0
        twin = COPIES[how](model)
        assert same(dict(twin.state_dict()), dict(model.state_dict()))
        train(twin, batches[1:])
        assert torch.is_tensor(twin(batches[0] * 100))
        train(model, batches[1:2], monitor=monitor)
        window = monitor.window()
    assert window is not None
    assert window.sample is not None
    assert window.sample.calls.tolist() == [1, 1]
    assert float(window.sample.input.max.max()) < 50
    assert monitor.steps == (0, 1)


def test_it_does_not_change_training_a_model_pickled_in_a_sampled_step_does_not_need_bnmonitor() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    with Monitor(model, sinks=[], sample_every_n_steps=1):
        assert hooks(model) > 0
        assert b"bnmonitor" not in pickle.dumps(model)


def test_it_does_not_change_training_a_shallow_copy_records_nothing_either() -> None:
    bn = nn.BatchNorm1d(3)
    model = nn.Sequential(bn)
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        twin = copy.copy(bn)
        assert len(twin._forward_hooks) == 1
        twin(torch.randn(4, 3) + 100)
        monitor.step()
        assert monitor.samples == ()


class Operations(TorchDispatchMode):
    """Lists the tensor operations that are carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def operations_of_a_step(layers: int, *, watched: bool = True) -> tuple[list[str], list[str]]:
    """The operations of a training step without check and sample, and those that record it."""
    torch.manual_seed(0)
    blocks = [m for _ in range(layers) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())]
    model = nn.Sequential(*blocks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = Monitor(model, optimizer=optimizer, sinks=[])
    training, recording = Operations(), Operations()
    with monitor if watched else contextlib.nullcontext():
        for step in range(4):
            with training if step == 3 else contextlib.nullcontext():
                optimizer.zero_grad()
                model(torch.randn(16, 8)).square().mean().backward()
                optimizer.step()
            if watched:
                with recording if step == 3 else contextlib.nullcontext():
                    monitor.step()
                assert hooks(model) == 0
    return training.seen, recording.seen


def test_it_does_not_slow_training_a_step_is_recorded_by_two_operations_however_many_layers() -> None:
    few, many = (operations_of_a_step(layers)[1] for layers in (2, 60))
    copies = [op for op in few if op.startswith(("aten.cat", "aten.stack"))]
    assert len(copies) == 2
    assert few == many
    # Nothing reads a number from a device, which would wait for it.
    assert not [op for op in few if "_local_scalar_dense" in op or "_to_copy" in op or "nonzero" in op]


def test_it_does_not_slow_training_the_step_itself_runs_the_same_operations() -> None:
    assert operations_of_a_step(3)[0] == operations_of_a_step(3, watched=False)[0]


def test_it_does_not_stop_training_when_a_rule_raises() -> None:
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    monitor = Monitor(model, sinks=[], rules=[Raises(), AlwaysFinds()], on_alert="log", check_every_n_steps=2)
    with monitor:
        train(model, architecture.batches(9), monitor=monitor)
    reported = [alert for alert in monitor.alerts if alert.code == "BN001"]
    assert len(reported) == 1
    assert "BN990" in reported[0].message
    assert "ZeroDivisionError: on purpose" in reported[0].message
    assert reported[0].first_step == 0
    assert "BN991" in {alert.code for alert in monitor.alerts}
    assert monitor.steps == tuple(range(9))


def watch_with(*sinks: Sink) -> Monitor:
    """Train for some steps with the sinks, and close."""
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    monitor = Monitor(
        model,
        sinks=list(sinks),
        rules=[AlwaysFinds()],
        select=("BN991",),
        on_alert="log",
        check_every_n_steps=2,
        log_every_n_steps=1,
    )
    with monitor:
        train(model, architecture.batches(6), monitor=monitor)
        monitor.end_epoch(0)
        train(model, architecture.batches(4), monitor=monitor)
    return monitor


@pytest.mark.parametrize("method", ["open", "frame", "alert", "epoch", "close"])
def test_it_does_not_stop_training_when_a_sink_raises(method: str) -> None:
    faulty, healthy = Faulty(method), RecordingSink()
    monitor = watch_with(faulty, healthy)
    reported = [alert for alert in monitor.alerts if alert.code == "BN002"]
    assert len(reported) == 1
    assert "Faulty" in reported[0].message
    assert "No space left" in reported[0].message
    assert faulty.calls.count(method) == 1
    assert faulty.calls[-1] == method
    events = [what for what, _ in healthy.events]
    assert events.count("open") == events.count("epoch") == events.count("close") == 1
    assert events.count("frame") == 10
    assert {argument.code for what, argument in healthy.events if what == "alert"} == {"BN002", "BN991"}
    assert monitor.steps == tuple(range(10))


@pytest.mark.parametrize(
    "method",
    [
        "open",
        "frame",
        "alert",
        "epoch",
        "close",
    ],
)
def test_it_does_not_stop_training_when_two_sinks_raise(method: str) -> None:
    first, second = Faulty(method), Faulty(method)
    monitor = watch_with(first, second)
    assert len([alert for alert in monitor.alerts if alert.code == "BN002"]) == 2
    assert first.calls.count(method) == second.calls.count(method) == 1
    assert monitor.steps == tuple(range(10))


def test_it_does_not_stop_training_when_the_on_alert_function_raises() -> None:
    calls: list[str] = []

    def on_alert(alert: Alert) -> None:
        calls.append(alert.code)
        raise ValueError("my own mistake")

    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    monitor = Monitor(
        model, sinks=[], rules=[AlwaysFinds(), Raises()], select=("BN99",), on_alert=on_alert, check_every_n_steps=2
    )
    with monitor:
        train(model, architecture.batches(9), monitor=monitor)
    assert len(calls) == 1
    reported = [alert for alert in monitor.alerts if alert.code == "BN002"]
    assert len(reported) == 1
    assert "my own mistake" in reported[0].message
    assert {alert.code for alert in monitor.alerts} == {"BN001", "BN002", "BN991"}
    assert monitor.steps == tuple(range(9))


def test_it_does_not_stop_training_when_the_monitor_itself_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    monitor = Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1)

    def broken(*_: object, **__: object) -> None:
        raise IndexError("a bug of ours")

    with monitor:
        train(model, architecture.batches(2), monitor=monitor)
        monkeypatch.setattr(Tape, "step", broken)
        with pytest.warns(
            UserWarning, match="stopped watching, training goes on: IndexError: a bug of ours"
        ) as reported:
            train(model, architecture.batches(3), monitor=monitor)
        assert len(reported) == 1
        assert hooks(model) == 0


def test_it_is_honest_about_layers_that_cannot_be_recovered() -> None:
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    model[1].momentum = 0.0
    monitor = Monitor(model, sinks=[], on_alert="log")
    assert {row.recovery for row in monitor.summary()} == {"no step was recorded yet"}
    with monitor:
        train(model, architecture.batches(4), monitor=monitor)
    rows = {row.name: row.recovery for row in monitor.summary()}
    assert rows == {"1": Recovery.NO_MOMENTUM.reason, "5": ""}
    assert monitor.history("1", "batch_mean").isnan().all()
    assert not monitor.history("5", "batch_mean").isnan().any()
    plain = monitor.summary().to_dict()["layers"]
    assert plain[0]["recovery"] == Recovery.NO_MOMENTUM.reason


def test_it_is_honest_about_rules_that_cannot_run() -> None:
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    monitor = Monitor(model, sinks=[], rules=[NeedsSamples()], on_alert="log", sample_every_n_steps=0)
    why = monitor.skipped["needs-samples"]
    assert "sample_every_n_steps" in why
    assert monitor.skipped.keys() >= {rule.name for rule in monitor.settings.chosen_rules() if "samples" in rule.needs}
    with monitor:
        train(model, architecture.batches(3), monitor=monitor)
    assert monitor.summary().skipped == monitor.skipped
    assert monitor.summary().to_dict()["skipped"]["needs-samples"] == why
    assert "BN992" not in {alert.code for alert in monitor.alerts}


def test_it_is_honest_and_does_not_list_a_rule_as_skipped_that_runs() -> None:
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    monitor = Monitor(model, sinks=[], rules=[NeedsSamples()], on_alert="log")
    assert "needs-samples" not in monitor.skipped
    with monitor:
        train(model, architecture.batches(3), monitor=monitor)
    assert "BN992" in {alert.code for alert in monitor.alerts}


def test_it_is_honest_about_a_name_it_does_not_know() -> None:
    monitor = Monitor(ARCHITECTURES["mlp"].build(), sinks=[])
    with pytest.raises(KeyError, match=r"batch_meen.*did you mean 'batch_mean'"):
        monitor.history("1", "batch_meen")
    with pytest.raises(KeyError, match="no BatchNorm layer is named '11'"):
        monitor.history("11", "batch_mean")


def test_it_is_honest_and_history_cannot_be_written_through() -> None:
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        train(model, architecture.batches(3), monitor=monitor)
    monitor.history("1", "gamma").fill_(7)
    assert not (monitor.history("1", "gamma") == 7).any()


def with_a_fault(**arguments: Any) -> Monitor:
    """A training with an inverted momentum, monitored without any sink."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, momentum=0.99), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Monitor(model, optimizer=optimizer, sinks=[], **arguments) as monitor:
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.randn(32, 4)).square().mean().backward()
            optimizer.step()
            monitor.step()
    return monitor


def test_without_any_sink_nothing_is_printed_unless_requested(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = with_a_fault()
    assert [alert.code for alert in monitor.alerts] == ["BN301"]
    assert capsys.readouterr() == ("", "")
    with pytest.warns(BatchNormWarning, match="BN301"):
        with_a_fault(on_alert="warn")
