"""TensorBoard's own readers see what was written, in both of its load modes."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tensorboard.data import provider, server_ingester
from tensorboard.util import grpc_util
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor, Summary
from bnmonitor.history.schema import FRAME, Schema
from bnmonitor.sinks import TensorBoard
from bnmonitor.summary import METRICS
from bnmonitor.testing import RecordingSink

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
]

STEPS = 24
EVERY = 2
FRAME_TAG = FRAME + Schema(("body.1", "body.4"), (8, 6), METRICS).key


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 6, bias=False),
            nn.BatchNorm1d(6, momentum=0.95),
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.body(batch[0]).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@dataclass
class Written:
    """A finished run, and what the sinks were told in it."""

    logdir: Path
    run: str
    frames: list[Summary]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    logdir = tmp_path_factory.mktemp("logs")
    torch.manual_seed(0)
    sink = RecordingSink()
    callback = BatchNormMonitor(sinks=[TensorBoard(), sink], on_alert="log")
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=pl.loggers.TensorBoardLogger(str(logdir), name="digits", version="a"),
        log_every_n_steps=EVERY,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(TensorDataset(torch.randn(32 * STEPS, 4)), batch_size=32))
    assert [a.code for a in callback.alerts] == ["BN301"]
    return Written(logdir, os.path.join("digits", "a"), [s for what, s in sink.events if what == "frame"])


def flags(logdir: Path) -> argparse.Namespace:
    return argparse.Namespace(
        logdir=str(logdir),
        logdir_spec="",
        samples_per_plugin={"bnmonitor": 5000},
        purge_orphaned_data=True,
        max_reload_threads=1,
        reload_multifile=False,
        reload_multifile_inactive_secs=86400,
        detect_file_replacement=None,
        reload_interval=0,
        reload_task="blocking",
        generic_data="auto",
    )


@pytest.fixture(scope="module", params=["python", "rust"])
def data(request: pytest.FixtureRequest, written: Written) -> Iterator[Any]:
    if request.param == "python":
        from tensorboard.backend.event_processing.data_ingester import LocalDataIngester

        local = LocalDataIngester(flags(written.logdir))
        local.start()
        yield local.data_provider
        return
    try:
        binary = server_ingester.get_server_binary()
    except server_ingester.NoDataServerError as error:
        pytest.skip(str(error))
    server = server_ingester.SubprocessServerDataIngester(
        binary,
        str(written.logdir),
        reload_interval=0,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
        samples_per_plugin={"bnmonitor": 5000},
    )
    server.start()
    yield server.data_provider


@pytest.fixture(scope="module")
def ask() -> dict[str, Any]:
    from tensorboard import context

    return {"ctx": context.RequestContext(), "experiment_id": ""}


def test_frames_are_listed_for_our_plugin_with_layers_and_metrics(
    data: Any, ask: dict[str, Any], written: Written
) -> None:
    listed = data.list_tensors(**ask, plugin_name="bnmonitor")
    assert set(listed) == {written.run}
    content = json.loads(listed[written.run][FRAME_TAG].plugin_content)
    assert content == {"v": 2, "layers": ["body.1", "body.4"], "channels": [8, 6], "metrics": list(METRICS)}
    kinds = {tag.split("/")[1] for tag in listed[written.run]}
    assert kinds == {"frame", "facts", "course", "channels", "alert", "incident", "about"}
    assert "bnmonitor" in data.list_plugins(**ask)


def test_every_frame_is_read_back_with_its_step_and_its_numbers(
    data: Any, ask: dict[str, Any], written: Written
) -> None:
    wanted = provider.RunTagFilter(runs=[written.run], tags=[FRAME_TAG])
    read = data.read_tensors(**ask, plugin_name="bnmonitor", downsample=5000, run_tag_filter=wanted)
    rows = read[written.run][FRAME_TAG]
    assert [row.step for row in rows] == [s.step for s in written.frames] == [0, *range(EVERY - 1, STEPS, EVERY)]
    for row, summary in zip(rows, written.frames, strict=True):
        assert row.numpy.dtype == np.float32
        assert row.numpy.shape == (2, len(METRICS))
        np.testing.assert_array_equal(row.numpy, summary.table.numpy())


def test_scalars_are_grouped_and_hold_the_numbers_of_the_frames(
    data: Any, ask: dict[str, Any], written: Written
) -> None:
    tags = data.list_scalars(**ask, plugin_name="scalars")[written.run]
    groups = {tag.split("/")[0] for tag in tags if tag.startswith("bn")}
    assert groups == {"bnmonitor", "bn_health", "bn_batch_var", "bn_running_gap"}
    wanted = provider.RunTagFilter(
        runs=[written.run], tags=["bnmonitor/errors", "bn_health/body.4", "bn_health/body.1"]
    )
    read = data.read_scalars(**ask, plugin_name="scalars", downsample=1000, run_tag_filter=wanted)[written.run]
    for position, layer in enumerate(("body.1", "body.4")):
        points = [(p.step, p.value) for p in read[f"bn_health/{layer}"]]
        assert points == [(s.step, pytest.approx(s.rows[position].health)) for s in written.frames]
    assert {p.value for p in read["bnmonitor/errors"]} == {1.0}
    assert {p.value for p in read["bn_health/body.4"]} == {20.0}


def test_alerts_are_a_text_with_the_fix(data: Any, ask: dict[str, Any], written: Written) -> None:
    tags = [t for t in data.list_tensors(**ask, plugin_name="text")[written.run] if t.startswith("bnmonitor/alerts")]
    assert len(tags) == 1
    read = data.read_tensors(
        **ask, plugin_name="text", downsample=10, run_tag_filter=provider.RunTagFilter(runs=[written.run], tags=tags)
    )
    text = read[written.run][tags[0]][-1].numpy.item().decode()
    assert text.startswith("**✗ ")
    assert "\nfix: " in text
    assert "- BN301 inverted-momentum · error · since step " in text
    assert " · body.4: " in text
    assert "momentum=0.05" in text


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def fetch(url: str, process: subprocess.Popen[bytes], seconds: float = 300) -> Any:
    """Ask until there is an answer with something in it."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)
            if found:
                return found
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail(f"TensorBoard gave no answer; it says: {process.stderr.read1().decode() if process.stderr else ''}")


@pytest.mark.parametrize("load_fast", ["true", "false"])
def test_tensorboard_itself_starts_and_serves_the_scalars(written: Written, load_fast: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(written.logdir), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), f"--load_fast={load_fast}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        tags = fetch(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", process)[written.run]
        assert {"bnmonitor/health", "bn_health/body.1", "bn_health/body.4"} <= set(tags)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr:
            process.stderr.close()
