"""A run of a million steps: bytes on disk against the budget, memory, and time per step from beginning to end.

There are two parts. In the first, the TensorBoard sink receives the frames of a network of 53 layers, one every 50
steps, with spikes of a single frame and alerts that open and clear; the benchmark then searches the history for them.
In the second, the monitor records a small layer that the benchmark updates without a network. Prints JSON, and exits
with 1 if the budget was exceeded or a spike or an alert is not in the history. Run
``python benchmarks/long.py [STEPS] [BUDGET_IN_BYTES]``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bnmonitor import Monitor
from bnmonitor.history.run import open_history
from bnmonitor.results import Alert, Severity
from bnmonitor.sinks import Run, TensorBoard
from bnmonitor.summary import METRICS, summarize
from bnmonitor.testing import make_window

EVERY = 50
CHANNELS = (64, 128, 256, 512) * 13 + (512,)


def resident() -> int:
    """Bytes of memory that the process occupies; 0 where the system does not say."""
    gc.collect()
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if path.exists() else 0


def parts(times: np.ndarray[Any, Any]) -> dict[str, float]:
    """Median microseconds in the second tenth and in the last one."""
    tenth = max(1, len(times) // 10)
    return {
        "begin_us": round(1e6 * float(np.median(times[tenth : 2 * tenth])), 1),
        "end_us": round(1e6 * float(np.median(times[-tenth:])), 1),
    }


def alert(layer: str, step: int) -> Alert:
    """An error in a layer."""
    text = {"message": "batch variance is 100 times its own baseline", "advice": "lower the learning rate", "url": ""}
    return Alert(
        code="BN106",
        rule="variance-explosion",
        severity=Severity.ERROR,
        layer=layer,
        layers=(layer,),
        channels=(),
        first_step=step,
        last_step=step,
        state="open",
        value=100.0,
        threshold=10.0,
        **text,
    )


def sink(directory: Path, steps: int, budget: int) -> dict[str, Any]:
    """Write the frames of a run of so many steps, and read them back."""
    torch.manual_seed(0)
    summary = summarize(make_window(channels=CHANNELS), (), {})
    variance, frames = METRICS.index("batch_var"), steps // EVERY
    spikes = set(range(frames // 7, frames, max(1, frames // 37)))
    opens = set(range(frames // 5, frames, max(1, frames // 11)))
    board = TensorBoard(directory, run_bytes=budget)
    board.open(Run(layers=summary.layers))
    alerts: list[Alert] = []
    times, early = np.full(frames, np.nan), 0
    for frame in range(frames):
        table = summary.table.clone()
        table[:, variance] *= torch.empty(len(CHANNELS)).normal_(0, 0.05).exp()
        if frame in spikes:
            table[frame % len(CHANNELS), variance] *= 100
        begin = time.thread_time()
        if frame in opens:
            alerts.append(alert(summary.layers.names[frame % len(CHANNELS)], frame * EVERY))
            board.alert(alerts[-1])
        if frame - 1 in opens:
            alerts[-1] = replace(alerts[-1], state="cleared")
            board.alert(alerts[-1])
        board.frame(replace(summary, step=frame * EVERY, table=table, alerts=tuple(alerts)))
        times[frame] = time.thread_time() - begin
        early = early or (resident() if frame == frames // 5 else 0)
    board.close(replace(summary, step=(frames - 1) * EVERY))
    grown = resident() - early
    run = open_history(directory).run(".")
    kept = set(run.frames.steps.tolist())
    return {
        "frames": frames,
        "frames_written": len(kept),
        "bytes": sum(path.stat().st_size for path in directory.rglob("*tfevents*")),
        "budget": budget,
        "spikes": len(spikes),
        "spikes_kept": sum(frame * EVERY in kept for frame in spikes),
        "alerts": len(opens),
        "alerts_kept": len(run.alerts),
        "alert_frames_kept": sum(frame * EVERY in kept for frame in opens),
        "last_frame_kept": (frames - 1) * EVERY in kept,
        "stride_at_the_end": board._thinning.stride,
        "memory_growth": grown,
        **parts(times),
    }


def monitor(steps: int) -> dict[str, Any]:
    """Monitor a layer for so many steps, with every default rule."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    norm.weight.grad, norm.bias.grad = torch.ones(8), torch.ones(8)
    mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None
    assert var is not None
    assert count is not None
    draws = torch.randn(1000, 8)
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.1)
    # Filled now, so that storing the times does not count as growth of memory.
    times, early, every = np.full(steps, np.nan), 0, 100
    with Monitor(norm, optimizer=optimizer, check_every_n_steps=every, sinks=[], on_alert=lambda alert: None) as watch:
        for step in range(steps):
            drawn = draws[step % 1000]
            mean.lerp_(drawn, 0.1)
            var.lerp_(drawn.abs(), 0.1)
            count += 1
            begin = time.thread_time()
            watch.step()
            times[step] = time.thread_time() - begin
            early = early or (resident() if step == steps // 5 else 0)
        grown = resident() - early
        state = len(json.dumps(watch.state_dict(), default=lambda tensor: tensor.tolist()))
        alerts = len(watch.alerts)
    return {
        "steps": steps,
        "memory_growth": grown,
        "state_characters": state,
        "alerts": alerts,
        "step": parts(times),
        "check": parts(times[every - 1 :: every]),
    }


def main(steps: int, budget: int) -> int:
    """Run both parts, and return the exit code."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        written = sink(Path(directory), steps, budget)
    print(json.dumps({"sink": written, "monitor": monitor(steps)}))
    kept = all(written[thing] == written[f"{thing}_kept"] for thing in ("spikes", "alerts"))
    fits = written["bytes"] <= budget + 65_536 * (2 + 2 * written["alerts"])
    return 0 if kept and fits and written["alert_frames_kept"] == written["alerts"] else 1


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    sys.exit(main(*(given + [10**6, 512 << 20][len(given) :])))
