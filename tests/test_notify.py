"""What happens when an alert opens: several actions, checkpoints, webhooks, Weights & Biases, metrics for callbacks."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import pickle
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bnmonitor import Alert, AlertError, BatchNormMonitor, BatchNormWarning, Finding, Monitor, Rule, Severity
from bnmonitor.notify import Notifier, Webhook
from bnmonitor.sinks import Sink
from bnmonitor.summary import Summary
from bnmonitor.window import Window
from tests.sinks.test_sinks import an_alert

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
]
SECRET = "T0P-S3CRET"
GUARD = 120.0
"""Seconds after which a test that hangs is given up."""


# -- a server that does as it is told ----------------------------------------------------------------------------------


class Server:
    """TrainerActions with the codes it is given, in turn, the last one for ever; code 0: not at all."""

    def __init__(self) -> None:
        self.codes = [200]
        self.headers: dict[str, str] = {}
        self.got: list[tuple[str, dict[str, str], Any]] = []
        self.stop, self.asked = threading.Event(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, dict(self.headers), json.loads(body)))
                outer.asked.set()
                code = outer.codes.pop(0) if len(outer.codes) > 1 else outer.codes[0]
                if code == 0:
                    outer.stop.wait(GUARD)
                    return
                self.send_response(code)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/hooks/{SECRET}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    it = Server()
    monkeypatch.setenv("BNMONITOR_WEBHOOK_URL", it.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield it
    it.stop.set()
    it.http.shutdown()
    it.http.server_close()


def quick(**more: Any) -> Webhook:
    return Webhook(**{"backoff": 0.01, "timeout": GUARD, **more})


def test_chat_tools_get_a_text(server: Server) -> None:
    hook = quick()
    hook(an_alert())
    hook.flush()
    [(path, headers, body)] = server.got
    assert path.endswith(SECRET)
    assert headers["Content-Type"] == "application/json"
    assert list(body) == ["text"]
    assert body["text"].startswith("WARNING on ")
    assert "BN106 variance-explosion · layer1" in body["text"]
    assert "\nfix: lower the peak" in body["text"]
    assert hook.failure() is None


def test_each_chat_tool_gets_what_it_takes(server: Server) -> None:
    for payload in ("slack", "discord", "teams"):
        hook = quick(payload=payload)
        hook(an_alert(layer="<!channel>&co", message="much " * 1000))
        hook.flush()
    slack, discord, teams = (body for _, _, body in server.got)
    assert list(slack) == ["text"]
    assert "&lt;!channel&gt;&amp;co" in slack["text"]
    assert discord["allowed_mentions"] == {"parse": []}
    assert len(discord["content"]) <= 2000
    assert teams["type"] == "message"
    [attachment] = teams["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert attachment["content"]["type"] == "AdaptiveCard"
    assert "BN106 variance-explosion" in attachment["content"]["body"][0]["text"]


def test_json_holds_the_whole_alert_and_the_token_goes_into_a_header(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    alert = an_alert(value=float("inf"))
    hook = quick(payload="json", token_env="TOKEN")
    hook(alert)
    hook.flush()
    [(_, headers, body)] = server.got
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert Alert.from_dict(body["alert"]) == alert
    assert (body["version"], body["withheld"]) == (1, 0)


@pytest.mark.parametrize("code", [500, 503, 429, 408])
def test_failure_of_the_server_is_tried_again(server: Server, code: int) -> None:
    server.codes = [code, code, 200]
    hook = quick()
    hook(an_alert())
    hook.flush()
    assert len(server.got) == 3
    assert hook.failure() is None


@pytest.mark.parametrize(
    ("codes", "tries", "why"), [([500], 4, "HTTP 500"), ([404], 1, "HTTP 404"), ([302], 1, "HTTP 302")]
)
def test_what_is_final_is_said_once_and_without_the_secret(
    server: Server, codes: list[int], tries: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.codes, server.headers = codes, {"Location": "http://127.0.0.1:9/elsewhere"}
    hook = quick()
    hook(an_alert())
    hook.flush()
    assert len(server.got) == tries
    failure = str(hook.failure())
    assert failure == f"an alert was not delivered to 127.0.0.1: {why}"
    hook(an_alert())
    hook.flush()
    assert hook.failure() is None, "once is enough"
    assert SECRET not in failure + caplog.text


def failure_of(hook: Webhook) -> Exception:
    """Wait until a delivery has failed."""
    until = time.monotonic() + GUARD
    while (failure := hook.failure()) is None:
        assert time.monotonic() < until, "no delivery has failed"
        time.sleep(0.01)
    return failure


def test_refused_connection_and_a_slow_server_are_failures_in_plain_words(server: Server) -> None:
    refused = quick(url=f"http://127.0.0.1:1/{SECRET}", attempts=2)
    refused(an_alert())
    refused.flush()
    assert "refused" in str(refused.failure())
    server.codes = [0]
    slow = quick(timeout=0.1, attempts=1)
    slow(an_alert())
    assert "timed out" in str(failure_of(slow))


def test_the_caller_does_not_wait_for_the_server(server: Server) -> None:
    server.codes = [0]
    hook = quick(attempts=1)
    hook(an_alert())
    assert server.asked.wait(GUARD)
    # The call has returned, and the server has not answered yet.
    assert not server.stop.is_set()
    assert hook.failure() is None


def test_flush_gives_up_on_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(Webhook, "_post", lambda self, body: answered.wait(GUARD))
    hook = quick(url=f"http://127.0.0.1:1/{SECRET}", timeout=0.1)
    for _ in range(5):
        hook(an_alert())
    hook.flush()  # returns although the server never answers
    assert "in time" in str(hook.failure())
    answered.set()


def test_server_says_when_to_come_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = types.SimpleNamespace(sleep=slept.append, monotonic=time.monotonic)
    monkeypatch.setattr("bnmonitor.notify.time", clock)
    server.codes, server.headers = [429, 200], {"Retry-After": "1"}
    hook = quick()
    hook(an_alert())
    hook.flush()
    assert len(server.got) == 2
    assert 1.0 in slept  # the thread of an earlier test may sleep too


def test_no_more_than_so_many_a_minute_and_the_rest_is_counted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("bnmonitor.notify.time", types.SimpleNamespace(sleep=time.sleep, monotonic=lambda: clock[0]))
    hook = quick(per_minute=2, payload="json")
    for _ in range(5):
        hook(an_alert())
    hook.flush()
    assert len(server.got) == 2
    clock[0] += 61
    hook(an_alert())
    hook.flush()
    assert [body["withheld"] for _, _, body in server.got] == [0, 0, 3]


def test_secrets_are_shown_nowhere(server: Server) -> None:
    hook = Webhook(url=server.url)
    assert repr(hook) == "Webhook(host='127.0.0.1', payload='text')"
    assert SECRET not in f"{hook} {hook!r} {vars(hook)}"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda hook: pickle.loads(pickle.dumps(hook))])
def test_copies_post_on_their_own(server: Server, copied: Any) -> None:
    hook = quick()
    hook(an_alert())
    hook.flush()
    other = copied(hook)
    other(an_alert())
    other.flush()
    assert len(server.got) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url_env": "NO_SUCH_THING"}, "environment variable NO_SUCH_THING is not set"),
        ({"token_env": "NO_SUCH_THING"}, "environment variable NO_SUCH_THING is not set"),
        ({"url": f"https://user:{SECRET}@example.com/x"}, "url holds an address with a user name or a password in it"),
        (
            {"url": f"https://{SECRET}@example.com"},
            "put a token into an environment variable and name it with token_env",
        ),
        ({"url": f"https://[{SECRET}/"}, "url must hold an address that begins with https:// or http://"),
        ({"url": f"https://example.com:{SECRET}/"}, "url must hold an address that begins with https:// or http://"),
        ({"url": f"https://exämple.com/{SECRET}"}, "url must hold an address that begins with https:// or http://"),
        ({"url": f"file:///{SECRET}"}, "url must hold an address that begins with https:// or http://"),
        ({"url": SECRET}, "url must hold an address"),
        ({"payload": "xml"}, "payload must be 'text', 'slack', 'discord', 'teams', 'json', got 'xml'"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0 and below 3600, got 0$"),
        ({"backoff": "1"}, "backoff must be a number of seconds above 0 and below 3600, got '1'$"),
        ({"attempts": 0}, "attempts must be an int of at least 1, got 0$"),
        ({"per_minute": True}, "per_minute must be an int of at least 1, got True$"),
    ],
)
def test_bad_argument_of_a_webhook_is_refused_without_the_secret(
    server: Server, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Webhook(**given)
    assert SECRET not in str(caught.value)


# -- through the monitor -----------------------------------------------------------------------------------------------


def a_model(momentum: float = 0.99) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, momentum=momentum), nn.ReLU(), nn.Linear(4, 2))


def trained(on_alert: Any, steps: int = 4, **more: Any) -> Monitor:
    """A run whose momentum is wrong: BN301, an error, at the first step."""
    model = a_model()
    with Monitor(model, sinks=[], on_alert=on_alert, **more) as monitor:
        for _ in range(steps):
            model(torch.randn(32, 3)).sum().backward()
            monitor.step()
    return monitor


def test_several_actions_are_taken_and_raising_comes_last(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Alert] = []
    with pytest.raises(AlertError), caplog.at_level(logging.INFO, "bnmonitor"):
        trained(["raise", seen.append, "log"])
    assert [alert.code for alert in seen] == ["BN301"]
    assert "BN301" in caplog.text


def test_mapping_takes_lists_too() -> None:
    seen: list[Alert] = []
    monitor = trained({"error": ["stop", seen.append], "warning": "log"})
    assert monitor.should_stop
    assert len(seen) == 1


def test_alert_reaches_the_webhook_before_the_run_is_over(server: Server) -> None:
    trained([quick()])
    assert ["BN301" in body["text"] for _, _, body in server.got] == [True]


def test_webhook_that_fails_is_reported_once_and_training_goes_on(server: Server) -> None:
    server.codes = [404]
    monitor = trained(["log", quick()], steps=30, log_every_n_steps=1)
    told = [a for a in monitor.alerts if a.code == "BN002"]
    assert len(told) == 1
    assert "HTTP 404" in told[0].message
    assert SECRET not in str(told[0])


def test_one_action_that_raises_is_left_out_and_the_others_stay() -> None:
    seen: list[str] = []

    def broken(alert: Alert) -> None:
        raise OSError("gone")

    monitor = trained([broken, lambda alert: seen.append(alert.code)])
    assert seen == ["BN002", "BN301"]
    assert [a.code for a in monitor.alerts] == ["BN301", "BN002"]


def test_notifier_is_flushed_at_the_end() -> None:
    class Mine(Notifier):
        calls: list[str] = []  # noqa: RUF012

        def __call__(self, alert: Alert) -> None:
            self.calls.append(alert.code)

        def flush(self) -> None:
            self.calls.append("flush")

    trained(Mine())
    assert Mine.calls == ["BN301", "flush"]


def test_checkpoint_in_plain_pytorch_is_refused_with_what_to_do() -> None:
    for on_alert in ("checkpoint", ["log", "checkpoint"], {"error": ["checkpoint"]}):
        with pytest.raises(ValueError, match=r"needs a Lightning Trainer.*pass a callable that saves"):
            Monitor(a_model(), on_alert=on_alert)  # type: ignore[arg-type]


# -- Weights & Biases --------------------------------------------------------------------------------------------------


class FakeRun:
    def __init__(self) -> None:
        self.alerts: list[dict[str, str]] = []

    def alert(self, **given: str) -> None:
        self.alerts.append(given)


@dataclass(frozen=True, kw_only=True)
class Explodes(Rule):
    """Finds the same fault in every window."""

    code: ClassVar[str] = "BN106"
    name: ClassVar[str] = "variance-explosion"
    severity: ClassVar[Severity] = Severity.ERROR

    def check(self, window: Window) -> list[Finding]:
        words = {"message": "the variance has exploded", "advice": "lower the peak learning rate"}
        return [Finding(severity=self.severity, layer=0, first_step=0, value=250.0, threshold=100.0, **words)]


@dataclass(frozen=True, kw_only=True)
class Grows(Explodes):
    """The same as a warning."""

    code: ClassVar[str] = "XY106"
    name: ClassVar[str] = "variance-growth"
    severity: ClassVar[Severity] = Severity.WARNING


def test_wandb_is_told_through_the_trainers_logger() -> None:
    class WandbLogger:
        experiment = FakeRun()

    model, rules = a_model(momentum=0.1), [Explodes(), Grows()]
    monitor = Monitor(model, sinks=[], on_alert={"error": ["wandb", "log"], "warning": "log"}, rules=rules)
    monitor.connect(loggers=[object(), WandbLogger()])
    with monitor:
        model(torch.randn(32, 3)).sum().backward()
        monitor.step()
    assert {a.code: a.severity for a in monitor.alerts} == {"BN106": Severity.ERROR, "XY106": Severity.WARNING}
    [told] = WandbLogger.experiment.alerts
    assert (told["title"], told["level"]) == ("the batch variance exploded", "ERROR")
    assert "fix: lower the peak" in told["text"]


def test_wandb_without_a_run_says_so_at_the_start() -> None:
    with pytest.warns(BatchNormWarning, match="give the Trainer a WandbLogger, or call wandb.init"):
        monitor = trained("wandb")
    assert [a.code for a in monitor.alerts] == ["BN301"]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=str(tmp_path), project="bnmonitor", offline=True)
    told: list[Any] = []
    monkeypatch.setattr(type(logger.experiment), "alert", lambda self, **given: told.append(given))
    fit(BatchNormMonitor(on_alert="wandb"), root=tmp_path, logger=logger)
    assert told[0]["title"] == "BN301 inverted-momentum"
    assert logger.experiment.summary["bnmonitor/errors"] == 1.0
    import wandb

    wandb.finish()


# -- Lightning ---------------------------------------------------------------------------------------------------------


class Module(pl.LightningModule):
    """The learning rate becomes far too high in the second epoch."""

    def __init__(self, momentum: float, explode: bool) -> None:
        super().__init__()
        self.net, self.explode = a_model(momentum), explode

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.explode and self.current_epoch >= 1:
            with torch.no_grad():
                self.net[0].weight *= 1.5
        return self.net(batch).square().mean()  # type: ignore[no-any-return]

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.net(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(
    *callbacks: Any, root: Path, momentum: float = 0.99, explode: bool = False, logger: Any = False, **more: Any
) -> pl.Trainer:
    torch.manual_seed(0)
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=list(callbacks), default_root_dir=root,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=5,
        **{"max_epochs": 2, "enable_checkpointing": False, **more},
    )  # fmt: skip
    data = DataLoader(torch.randn(1280, 3), 64)  # type: ignore[arg-type]
    trainer.fit(Module(momentum, explode), data, DataLoader(torch.randn(64, 3), 32))  # type: ignore[arg-type]
    return trainer


def quiet(**more: Any) -> BatchNormMonitor:
    return BatchNormMonitor(**{"on_alert": "log", "sinks": [], **more})


def test_checkpoint_is_saved_when_the_alert_opens_and_can_be_loaded(tmp_path: Path) -> None:
    fit(quiet(on_alert=["checkpoint", "log"]), root=tmp_path)
    [path] = (tmp_path / "checkpoints").iterdir()
    assert path.name == "bnmonitor-step=0.ckpt" or path.name == "bnmonitor-step=1.ckpt"
    state = torch.load(path, weights_only=False)
    assert state["epoch"] == 0
    [mine] = [s for key, s in state["callbacks"].items() if key.startswith("BatchNormMonitor")]
    assert [a["code"] for a in mine["book"]["alerts"]] == ["BN301"]


def test_fault_of_bnmonitor_itself_gives_a_warning_and_saves_no_checkpoint(tmp_path: Path) -> None:
    class Broken(Sink):
        def frame(self, summary: Summary) -> None:
            raise OSError("disk full")

    callback = BatchNormMonitor(on_alert="checkpoint", sinks=[Broken()], select=("BN301",))
    with pytest.warns(BatchNormWarning, match="^a sink of bnmonitor failed"):
        fit(callback, root=tmp_path, momentum=0.1)
    assert [alert.code for alert in callback.alerts] == ["BN002"]
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoint_is_saved_before_raising_and_goes_into_the_loggers_directory(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="run")
    with pytest.raises(AlertError):
        fit(quiet(on_alert=["raise", "checkpoint"]), root=tmp_path / "other", logger=logger)
    assert len(list(Path(logger.log_dir, "checkpoints").iterdir())) == 1
    assert not (tmp_path / "other").exists()


def test_metrics_are_there_for_other_callbacks_from_the_start(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Look(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    trainer = fit(Look(), quiet(), root=tmp_path, momentum=0.1)
    healthy = pytest.approx(100, abs=20)
    metrics = {"bnmonitor/health": healthy, "bn_health": healthy, "bnmonitor/errors": 0, "bnmonitor/warnings": 0}
    assert seen == [metrics] * 2
    assert set(trainer.callback_metrics) == set(seen[0])


def an_early_stopping() -> EarlyStopping:
    return EarlyStopping("bnmonitor/errors", mode="min", stopping_threshold=-1, divergence_threshold=0.5, patience=99)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("val", [True, False])
def test_early_stopping_stops_on_an_error(tmp_path: Path, first: bool, val: bool) -> None:
    stopping = an_early_stopping()
    callbacks = [quiet(check_every_n_steps=5), stopping]
    more = {} if val else {"limit_val_batches": 0}
    trainer = fit(
        *(callbacks if first else callbacks[::-1]), root=tmp_path, momentum=0.1, explode=True, max_epochs=8, **more
    )
    assert 2 <= trainer.current_epoch < 8
    assert stopping.stopped_epoch >= 1
    assert float(trainer.callback_metrics["bnmonitor/errors"]) >= 1


def test_model_checkpoint_keeps_the_healthiest(tmp_path: Path) -> None:
    saving = ModelCheckpoint(
        tmp_path,
        "{epoch}-{bnmonitor/health:.0f}",
        monitor="bnmonitor/health",
        mode="max",
        auto_insert_metric_name=False,
    )
    trainer = fit(quiet(check_every_n_steps=5), saving, root=tmp_path, momentum=0.1, explode=True, max_epochs=5,
        enable_checkpointing=True)  # fmt: skip
    assert saving.best_model_score is not None
    assert float(saving.best_model_score) > 60
    assert float(trainer.callback_metrics["bnmonitor/health"]) <= 60
    assert "epoch" in torch.load(saving.best_model_path, weights_only=False)
    assert torch.load(saving.best_model_path, weights_only=False)["epoch"] <= 1


def test_configuration_file_takes_a_webhook_and_a_list(server: Server, tmp_path: Path) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BatchNormMonitor, "callback")
    hook = {"class_path": "bnmonitor.notify.Webhook", "init_args": {"payload": "json"}}
    for on_alert in (["stop", "checkpoint", hook], {"error": ["stop", hook], "warning": "wandb"}, hook):
        given = {
            "class_path": "bnmonitor.BatchNormMonitor",
            "init_args": {"on_alert": copy.deepcopy(on_alert), "sinks": []},
        }
        made = parser.instantiate_classes(parser.parse_object({"callback": given})).callback
        assert isinstance(made, BatchNormMonitor)
        actions = made.settings.actions()[Severity.ERROR]
        assert isinstance(actions[-1], Webhook)


def test_a_password_in_an_address_from_the_environment_is_refused_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOOK", f"https://user:{SECRET}@example.com/")
    with pytest.raises(ValueError, match="the environment variable HOOK holds an address with a user name") as caught:
        Webhook(url_env="HOOK")
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text
    monkeypatch.setenv("HOOK", "https://example.com/")
    copied = pickle.dumps(Webhook(url_env="HOOK"))
    monkeypatch.setenv("HOOK", f"https://user:{SECRET}@example.com/")
    with pytest.raises(ValueError, match="user name or a password"):
        pickle.loads(copied)
