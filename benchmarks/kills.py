"""Kill a training with ``kill -9`` at random moments, many times, and check its record afterwards.

The record of a killed run has survived if three conditions hold. Its history is readable and contains the first frames
of an uninterrupted run with the same seed, with the same numbers and without a gap. TensorBoard's own loader reads as
many frames. Its flight record has the same numbers at each step, within the stated error and without a gap. Every black
box in it is complete. A frame counts as lost if the training step that made it had ended. The
training opens an error halfway, so that some kills hit the writing of alerts and of a black box. Run
``python benchmarks/kills.py [KILLS] [SEED]``; it prints a line per kill and JSON at the end, and exits with 1 unless
all survived. It needs ``os.fork``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bnmonitor import Monitor
from bnmonitor.history.flight.reader import Flight
from bnmonitor.history.run import Frames, open_history
from bnmonitor.history.schema import FRAME
from bnmonitor.report.read import read
from bnmonitor.sinks import TensorBoard

STEPS = 400
POISONED = 60
LONGEST = 0.8
"""Seconds after its first step within which a run is killed."""


def train(log_dir: Path, stepped: Callable[[int], object] = lambda step: None, steps: int = STEPS) -> None:
    """Train a small network with a frame for every step; one batch holds a NaN."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings: dict[str, Any] = {"log_dir": log_dir, "log_every_n_steps": 1, "sinks": [TensorBoard(log_dir)]}
    with Monitor(model, optimizer=optimizer, on_alert=lambda alert: None, **settings) as monitor:
        for step in range(steps):
            x = torch.randn(32, 4)
            optimizer.zero_grad()
            loss = model(x * torch.nan if step == POISONED else x).square().mean()
            if loss.isfinite():
                loss.backward()
                optimizer.step()
            monitor.step()
            stepped(step)
            if step % 50 == 49:
                monitor.end_epoch()


def killed(log_dir: Path, wait: float) -> int:
    """Train in a separate process, kill it so many seconds after its first step, and return its last step."""
    ours, its = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        train(log_dir, lambda step: os.write(its, struct.pack("<q", step)), steps=10**6)
        os._exit(0)
    os.close(its)
    sent = os.read(ours, 8)
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(ours, 1 << 16):
        sent = more
    os.close(ours)
    return int(struct.unpack("<q", sent[-8:])[0])


def frames(log_dir: Path) -> Frames:
    """The frames of a run."""
    return open_history(log_dir).run(".").frames


def channels(log_dir: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The steps of the flight record, and the batch variance of each channel."""
    flight = Flight.of(log_dir)
    if flight is None:
        return np.zeros(0, np.int64), np.zeros((0, 8), np.float32)
    found = flight.series("1", "batch_var")
    return found.last, found.mean


def loaded(log_dir: Path) -> int:
    """Frames that TensorBoard's own loader reads."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    [file] = log_dir.glob("*tfevents*")
    return sum(
        value.tag.startswith(FRAME) for event in EventFileLoader(str(file)).Load() for value in event.summary.value
    )


def flight_fault(log_dir: Path, expected: np.ndarray[Any, Any]) -> str:
    """The fault in the flight record of a killed run; empty if there is none."""
    steps, variance = channels(log_dir)
    if steps.tolist() != list(range(len(steps))):
        return "there is a gap in its flight record"
    count = min(len(steps), len(expected))
    if not np.allclose(variance[:count], expected[:count], rtol=0.11, atol=0, equal_nan=True):
        return "its channels are not those of an uninterrupted run"
    return ""


def fault(log_dir: Path, expected: Frames) -> str:
    """The fault in the record of a killed run; empty if there is none."""
    from bnmonitor.sinks import read_black_box as read_box

    [report] = read(log_dir)
    found = frames(log_dir)
    count = min(len(found), len(expected))
    if report.ended:
        return "it says that it ended"
    if "what came after the last flush is missing" not in report.ending(report.written + 1e6):
        return "the report does not say that something is missing"
    if found.steps.tolist() != list(range(len(found))):
        return "there is a gap in its frames"
    # Readers lower the health of steps before an incident was noticed, so it depends on when the run was killed.
    kept = [i for i, metric in enumerate(found.metrics) if metric != "health"]
    if count and not np.array_equal(found.values[kept, :, :count], expected.values[kept, :, :count], equal_nan=True):
        return "its numbers are not those of an uninterrupted run"
    if loaded(log_dir) != len(found):
        return "TensorBoard reads other frames"
    for path in report.black_boxes:
        read_box(path)
    return ""


def main(kills: int, seed: int) -> int:
    """Kill so many times, and return the exit code."""
    torch.set_num_threads(1)
    draw, lost, whole = random.Random(seed), [], 0
    boxes = alerts = 0
    lost_steps: list[int] = []
    with tempfile.TemporaryDirectory() as directory:
        # A separate process trains the reference too: after a backward pass in this process, fork would fail.
        child = os.fork()
        if child == 0:
            train(Path(directory, "whole"))
            os._exit(0)
        os.waitpid(child, 0)
        expected = frames(Path(directory, "whole"))
        _, variance = channels(Path(directory, "whole"))
        for kill in range(kills):
            log_dir = Path(directory, str(kill))
            last = killed(log_dir, draw.uniform(0, LONGEST))
            wrong = fault(log_dir, expected) or flight_fault(log_dir, variance)
            lost_steps.append(last + 1 - len(channels(log_dir)[0]))
            kept = len(frames(log_dir))
            whole += not wrong
            lost.append(max(0, last + 1 - kept))
            boxes += len(read(log_dir)[0].black_boxes)
            alerts += len(read(log_dir)[0].alerts)
            said = f"kill {kill}: after step {last}, {kept} frames kept, {lost[-1]} lost"
            print(f"{said}, {lost_steps[-1]} steps of the flight record {wrong}", flush=True)
    result = {"tried": kills, "survived": whole, "lost_most": max(lost), "lost_mean": sum(lost) / kills}
    result |= {"steps_lost_most": max(lost_steps), "steps_lost_mean": sum(lost_steps) / kills}
    print(json.dumps({**result, "alerts": alerts, "black_boxes": boxes}))
    return 0 if whole == kills else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, int(sys.argv[2]) if len(sys.argv) > 2 else 0))
