"""The two constructors: the same arguments, the same defaults, and one clear sentence for bad input."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bnmonitor import Alert, BatchNormMonitor, BatchNormWarning, Monitor, Severity
from bnmonitor.monitor import Settings
from bnmonitor.sinks import Console, JsonLines
from bnmonitor.testing import RecordingSink

SHARED: dict[str, Any] = {
    "check_every_n_steps": 10,
    "log_every_n_steps": None,
    "sample_every_n_steps": 100,
    "window": 64,
    "probe": False,
    "gather_affine": False,
    "flight_bytes": 256 * 2**20,
    "max_overhead": 0.01,
    "include": ("*",),
    "exclude": (),
    "select": ("default",),
    "ignore": (),
    "rules": None,
    "on_alert": None,
    "sinks": None,
}
MONITOR_ONLY: dict[str, Any] = {
    "optimizer": None,
    "log_dir": None,
    "train_loader": None,
    "val_loader": None,
    "accumulate_grad_batches": 1,
    "scaler": None,
}


def a_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2))


def a_monitor(**arguments: Any) -> Monitor:
    return Monitor(a_model(), **{"sinks": [], **arguments})


def a_callback(**arguments: Any) -> BatchNormMonitor:
    return BatchNormMonitor(**{"sinks": [], **arguments})


Door = Callable[..., object]
both_doors = pytest.mark.parametrize("door", [a_monitor, a_callback])


# -- the two doors are one ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("door", "own"), [(Monitor, {"model": inspect.Parameter.empty, **MONITOR_ONLY}), (BatchNormMonitor, {})]
)
def test_doors_share_their_arguments_and_defaults(door: type, own: dict[str, Any]) -> None:
    parameters = dict(inspect.signature(door).parameters)
    assert {name: p.default for name, p in parameters.items()} == own | SHARED
    keyword_only = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert keyword_only == set(parameters) - {"model"}


def test_settings_have_the_same_defaults_and_both_doors_explain_every_argument() -> None:
    assert vars(Settings()) == SHARED
    for door, names in ((Monitor, {**MONITOR_ONLY, **SHARED}), (BatchNormMonitor, SHARED)):
        text = inspect.getdoc(door) or ""
        assert all(f"    {name}: " in text for name in names)


# -- cadences ----------------------------------------------------------------------------------------------------------


@both_doors
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *[(n, v) for n in ("check_every_n_steps", "window") for v in (0, -1, True, "10", 2.0, None, float("nan"))],
        ("window", 1),
        *[("sample_every_n_steps", v) for v in (-1, False, "never", 0.5, None)],
        *[("flight_bytes", v) for v in (-1, True, "256 MB", 1.5, None)],
        *[("log_every_n_steps", v) for v in (-5, True, "50", 1.5)],
    ],
)
def test_number_of_steps_that_is_none_is_refused(door: Door, name: str, bad: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be an int of at least \d.*, got {re.escape(repr(bad))}$"):
        door(**{name: bad})


@both_doors
@pytest.mark.parametrize(
    "good",
    [
        {"check_every_n_steps": 1},
        {"window": 2},
        {"sample_every_n_steps": 0},
        {"log_every_n_steps": 0},
        {"log_every_n_steps": 1},
        {"window": 4, "check_every_n_steps": 100},
    ],
)
def test_smallest_numbers_of_steps_are_taken(door: Door, good: dict[str, int]) -> None:
    door(**good)


@both_doors
@pytest.mark.parametrize("bad", ["yes", 1, None])
@pytest.mark.parametrize("name", ["probe", "gather_affine"])
def test_a_switch_is_true_or_false(door: Door, bad: object, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be True or False, got {bad!r}$"):
        door(**{name: bad})


# -- words -------------------------------------------------------------------------------------------------------------


@both_doors
@pytest.mark.parametrize("name", ["include", "exclude", "select", "ignore"])
def test_single_string_instead_of_a_tuple_is_refused_with_what_to_write(door: Door, name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"^{name} must be a sequence of strings, got the string 'BN3': pass \('BN3',\)$"
    ):
        door(**{name: "BN3"})


@both_doors
@pytest.mark.parametrize("name", ["include", "exclude", "select", "ignore"])
@pytest.mark.parametrize("bad", [None, 5, {"a"}])
def test_what_is_no_sequence_is_refused(door: Door, name: str, bad: object) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be a sequence of strings, got {re.escape(repr(bad))}$"):
        door(**{name: bad})


@both_doors
@pytest.mark.parametrize("name", ["include", "exclude", "select", "ignore"])
def test_sequence_of_something_else_is_refused(door: Door, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be a sequence of strings, got \('\*', 3\)$"):
        door(**{name: ("*", 3)})


@both_doors
@pytest.mark.parametrize("name", ["select", "ignore"])
def test_unknown_rule_is_refused_with_the_nearest(door: Door, name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^{name}='stale-statistic' matches no rule; did you mean 'stale-statistics'"
    ):
        door(**{name: ["stale-statistic"]})


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_pattern_that_matches_no_layer_is_refused_with_the_nearest(name: str) -> None:
    model = nn.ModuleDict({"backbone": a_model(), "head": nn.BatchNorm1d(2)})
    message = (
        rf"^{name}='heat' matches no BatchNorm layer; did you mean 'head'\?; the model has 3, the first is 'backbone.1'"
    )
    with pytest.raises(ValueError, match=message):
        Monitor(model, sinks=[], **{name: ("backbone.*", "heat")})  # type: ignore[arg-type]


def test_patterns_that_leave_nothing_warn_rather_than_watch_in_silence() -> None:
    with pytest.warns(UserWarning, match="nothing to watch"):
        Monitor(a_model(), include=("*",), exclude=("*",), sinks=[])


# -- rules -------------------------------------------------------------------------------------------------------------


@both_doors
def test_unknown_threshold_is_refused_with_the_nearest(door: Door) -> None:
    with pytest.raises(
        ValueError, match=r"rule 'small-batch' has no threshold 'warn_bellow'; did you mean 'warn_below'"
    ):
        door(rules={"small-batch": {"warn_bellow": 8}})
    with pytest.raises(ValueError, match=r"no rule is called 'smal-batch'; did you mean 'small-batch'"):
        door(rules={"smal-batch": {"warn_below": 8}})


@both_doors
def test_threshold_of_a_wrong_type_is_refused(door: Door) -> None:
    with pytest.raises(ValueError, match=r"threshold 'warn_below' of rule 'small-batch' must be a number, got '8'"):
        door(rules={"small-batch": {"warn_below": "8"}})
    with pytest.raises(ValueError, match=r"must be a number, got nan"):
        door(rules={"small-batch": {"warn_below": float("nan")}})


@both_doors
def test_something_that_is_no_rule_is_refused(door: Door) -> None:
    with pytest.raises(TypeError, match=r"^rules= must hold Rule instances or map rules to thresholds, got <function"):
        door(rules=[lambda window: []])


@both_doors
@pytest.mark.parametrize("bad", [5, {"small-batch": 8}, {5: {"warn_below": 8}}])
def test_rules_of_a_wrong_shape_are_refused_in_one_clear_sentence(door: Door, bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"rules="):
        door(rules=bad)


# -- on_alert ----------------------------------------------------------------------------------------------------------


@both_doors
@pytest.mark.parametrize("bad", ["warning", 5, [], ["warn", "panic"], [None], {"error": "explode"}, {"error": []}])
def test_unknown_action_is_refused_with_what_there_is(door: Door, bad: object) -> None:
    message = (
        r"^on_alert must be 'log', 'warn', 'stop', 'raise', 'checkpoint', 'rollback', 'save-batch', 'wandb', "
        r"a callable, a list of these, "
        "or a mapping of these by severity, got "
    )
    with pytest.raises(ValueError, match=message):
        door(on_alert=bad)


@both_doors
def test_misspelled_action_is_refused_with_the_nearest(door: Door) -> None:
    with pytest.raises(ValueError, match=r"^on_alert must be .*, got 'rase'; did you mean 'raise'\?$"):
        door(on_alert="rase")


@both_doors
@pytest.mark.parametrize(("bad", "hint"), [("eror", "; did you mean 'error'\\?"), (30, ""), (None, "")])
def test_unknown_severity_is_refused_with_what_there_is(door: Door, bad: object, hint: str) -> None:
    message = rf"^a mapping of on_alert must have the keys 'info', 'warning', 'error', got {bad!r}{hint}"
    with pytest.raises(ValueError, match=message):
        door(on_alert={bad: "log"})


def test_actions_by_severity_fill_up_with_the_default_and_a_single_word_leaves_infos_to_the_log() -> None:
    def call(alert: Alert) -> None: ...

    info, warning, error = Severity
    assert Settings(on_alert="stop").actions() == {info: ("log",), warning: ("stop",), error: ("stop",)}
    assert Settings(on_alert=call).actions() == {info: (call,), warning: (call,), error: (call,)}
    assert Settings(on_alert={"ERROR": "raise"}).actions() == {info: ("log",), warning: ("warn",), error: ("raise",)}
    by_enum: Any = {Severity.INFO: "warn", "warning": call}
    assert Settings(on_alert=by_enum).actions() == {info: ("warn",), warning: (call,), error: ("warn",)}
    assert Settings(on_alert={}).actions() == {info: ("log",), warning: ("warn",), error: ("warn",)}
    several: Any = ["stop", call]
    assert Settings(on_alert=several).actions() == {info: (call,), warning: ("stop", call), error: ("stop", call)}
    assert Settings(on_alert={"error": several}).words() == {"log", "warn", "stop"}


def test_default_action_is_a_warning_and_without_any_sink_it_is_silence() -> None:
    info, warning, error = Severity
    warned = {info: ("log",), warning: ("warn",), error: ("warn",)}
    assert Settings().actions() == Settings(sinks=[Console()]).actions() == warned
    assert Settings(sinks=[]).actions() == {info: ("log",), warning: (), error: ()}
    assert Settings(sinks=[], on_alert={"error": "stop"}).actions() == {info: ("log",), warning: (), error: ("stop",)}
    assert Settings(sinks=[], on_alert="warn").actions() == warned


class Faulty(nn.Module):
    """A model on which BN301 opens an alert at the first check: its momentum is one minus the usual one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.99))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def train(**arguments: Any) -> list[str]:
    model = Faulty()
    with Monitor(model, **arguments) as monitor:
        model(torch.randn(8, 3)).sum().backward()
        monitor.step()
    return [alert.code for alert in monitor.alerts]


def fit(**arguments: Any) -> list[str]:
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = Faulty()

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return self.model(batch).sum()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    callback = BatchNormMonitor(**arguments)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", callbacks=[callback], **off)
    trainer.fit(Module(), torch.utils.data.DataLoader(list(torch.randn(8, 3)), batch_size=8))
    return [alert.code for alert in callback.alerts]


both_trainings = pytest.mark.parametrize("training", [train, fit])


@both_trainings
def test_no_sinks_and_no_action_is_silent_at_both_doors(
    training: Callable[..., list[str]], recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training(sinks=[], select=("BN301",)) == ["BN301"]
    assert [w for w in recwarn if issubclass(w.category, BatchNormWarning)] == []
    assert "BN301" not in "".join(capsys.readouterr())


@both_trainings
def test_no_sinks_and_an_explicit_warning_warns_at_both_doors(training: Callable[..., list[str]]) -> None:
    with pytest.warns(BatchNormWarning, match="^momentum is too large"):
        assert training(sinks=[], select=("BN301",), on_alert="warn") == ["BN301"]


@both_trainings
def test_default_action_warns_at_both_doors_if_no_sink_shows_alerts_to_a_person(
    training: Callable[..., list[str]],
) -> None:
    with pytest.warns(BatchNormWarning, match="^momentum is too large"):
        assert training(sinks=[RecordingSink()], select=("BN301",)) == ["BN301"]


def test_monitor_of_an_adapter_uses_the_settings_and_the_words_that_it_is_given() -> None:
    called: list[str] = []
    settings = Settings(on_alert="checkpoint", sinks=[], select=("BN301",))
    with pytest.raises(ValueError, match=r"^on_alert=\"checkpoint\" needs a Lightning Trainer"):
        Monitor.from_settings(Faulty(), settings)
    model = Faulty()
    words = {"checkpoint": lambda alert: called.append(alert.code)}
    with Monitor.from_settings(model, settings, words=words) as monitor:
        assert monitor.settings is settings
        model(torch.randn(8, 3)).sum().backward()
        monitor.step()
    assert called == ["BN301"]


# -- model, optimizer, sinks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, "model", a_model, {}, {"a": 3}, [nn.BatchNorm1d(2)]])
def test_model_of_a_wrong_type_is_refused(bad: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^model must be a torch\.nn\.Module or a mapping of names to modules, got \w+$"
    ):
        Monitor(bad, sinks=[])


@pytest.mark.parametrize("bad", ["adam", 5, {"a": 1}, [5], torch.optim.SGD])
def test_optimizer_of_a_wrong_type_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"^optimizer must be an optimizer or a sequence of them, got \w+$"):
        a_monitor(optimizer=bad)


@both_doors
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("console", r"^sinks must be a sequence of sinks, got str: pass \[sink\]$"),
        (Console(), r"^sinks must be a sequence of sinks, got Console: pass \[sink\]$"),
        (5, r"^sinks must be a sequence of sinks, got int"),
        ([JsonLines], r"^sinks must hold sinks only, got <class .*>: pass an instance$"),
        ([print], r"^sinks must hold sinks only, got <.*>: derive it from bnmonitor\.sinks\.Sink$"),
    ],
)
def test_sinks_of_a_wrong_type_are_refused(door: Door, bad: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        door(sinks=bad)


@pytest.mark.parametrize("bad", [0, -1, True, "2"])
def test_number_of_micro_batches_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"^accumulate_grad_batches must be an int of at least 1, got {bad!r}$"):
        a_monitor(accumulate_grad_batches=bad)


def test_log_dir_of_a_wrong_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^log_dir must be a path, or None to write nothing, got 5$"):
        a_monitor(log_dir=5)


# -- calls -------------------------------------------------------------------------------------------------------------


def test_step_before_start_and_after_close_says_what_to_write() -> None:
    monitor = a_monitor()
    with pytest.raises(RuntimeError, match=r"called before start\(\): write `with monitor:`, or call start\(\) first"):
        monitor.step()
    with monitor:
        monitor.step()
    with pytest.raises(RuntimeError, match=r"called before start\(\)"):
        monitor.step()


@pytest.mark.parametrize("bad", ["3", 3.0, True])
def test_step_number_of_a_wrong_type_is_refused(bad: Any) -> None:
    with (
        a_monitor() as monitor,
        pytest.raises(TypeError, match=r"^global_step must be an int, or None to count calls, got .+$"),
    ):
        monitor.step(global_step=bad)


def test_steps_are_counted_on_from_a_number_that_was_given() -> None:
    with a_monitor() as monitor:
        with pytest.raises(ValueError, match=r"^global_step must be at least 0, or None to count calls, got -1$"):
            monitor.step(global_step=-1)
        monitor.step()
        monitor.step(global_step=100)
        monitor.step()
        state = monitor.state_dict()
    assert monitor.steps == (0, 100, 101)
    with a_monitor() as monitor:
        monitor.load_state_dict(state)
        monitor.step()
    assert monitor.steps == (0, 100, 101, 102)


def test_state_of_something_else_is_refused() -> None:
    for bad in ({}, {"state_dict": {}}):
        with pytest.raises(ValueError, match=r"^the state is not one of Monitor.state_dict\(\), it has .+$"):
            a_monitor().load_state_dict(bad)


@pytest.mark.parametrize(("bad", "hint"), [("validate", "; did you mean 'validation'\\?"), (None, ""), (["test"], "")])
def test_unknown_phase_is_refused_with_what_there_is(bad: Any, hint: str) -> None:
    with a_monitor() as monitor:
        with pytest.raises(ValueError, match=rf"must be 'validation', 'test', 'predict', 'sanity', got .+{hint}$"):
            monitor.begin_evaluation(bad)
        with pytest.raises(ValueError, match="must be 'validation'"), monitor.evaluation(bad):
            pass


def test_history_of_something_unknown_is_refused_with_the_nearest() -> None:
    monitor = a_monitor()
    with pytest.raises(KeyError, match=r"no statistic is named 'batch_means'; did you mean 'batch_mean'\?; there are "):
        monitor.history("1", "batch_means")
    with pytest.raises(KeyError, match=r"no BatchNorm layer is named '11'; did you mean '1'"):
        monitor.history("11", "batch_mean")


def test_callback_before_its_first_fit_says_so() -> None:
    callback = a_callback()
    assert callback.alerts == ()
    with pytest.raises(RuntimeError, match=r"exists after a fit has begun: call trainer\.fit"):
        _ = callback.monitor
