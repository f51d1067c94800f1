"""Cost of a check, rule by rule, on layers that the benchmark updates without a network.

Measured in a healthy run with a full window, a sample and a chain of layers: processor time on one thread, medians over
some checks at which the rules judge. A value that several rules need is computed once, and counted for the first of
these rules. Prints Markdown. Run ``python benchmarks/rules.py``.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scaling import Layers, clock

from bnmonitor import Monitor
from bnmonitor.testing import in_a_row, make_sample
from bnmonitor.window import Structure

RESNET_50 = (
    64,
    *(3 * (64, 64, 256) + (256,)),
    *(4 * (128, 128, 512) + (512,)),
    *(6 * (256, 256, 1024) + (1024,)),
    *(3 * (512, 512, 2048) + (2048,)),
)
"""Channels of its 53 layers, 26 560 in all."""
SIZES = (RESNET_50, 1000 * (256,))
WARM_UP = 110
JUDGED = 10
"""Checks at which the rules judge, one in 50 steps."""
QUIET: dict[str, Any] = {"sample_every_n_steps": 0, "log_every_n_steps": 0, "sinks": [], "max_overhead": None}
PARTS = {"collect": "read the tape, at each check", "advance": "count the updates", "settle": "follow the baseline"}


def timed(call: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    """Return the call, which also notes its seconds of processor time."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = []
        into.append(clock(lambda: result.append(call(*args, **kwargs))))
        return result[0]

    return noted


def chained(monitor: Monitor) -> None:
    """Tell a monitor that its layers lie in a chain, and give it a sample, as a network would."""
    recorder, count = monitor._recorder, len(monitor.layers)
    recorder.sampling.sampler._tracer.structure = Structure(
        producer_trains=(True,) * count, consumers=(("relu",),) * count, places=in_a_row(count)
    )
    recorder.sampling.samples.append(make_sample(recorder.layers, values=100_000))
    monitor._session.absent = dict


def measure(channels: Sequence[int]) -> dict[str, float]:
    """Return the milliseconds of each part of a check."""
    model, seconds = Layers(channels), defaultdict[str, list[float]](list)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer=optimizer, **QUIET) as monitor:
        recorder = monitor._recorder
        chained(monitor)
        for rule in monitor._session.book.rules:
            object.__setattr__(rule, "check", timed(rule.check, seconds[f"{rule.code} {rule.name}"]))
        for name, part in PARTS.items():
            setattr(recorder, name, timed(getattr(recorder, name), seconds[part]))
        monitor._session.book.check = timed(monitor._session.book.check, seconds["all rules"])
        monitor._session._judge = timed(monitor._session._judge, seconds["all that is done when the rules judge"])
        for _ in range(WARM_UP + 50 * JUDGED):
            model.update()
            monitor.step()
        assert not monitor.alerts, monitor.alerts[0]
        medians = {part: 1e3 * statistics.median(each[-JUDGED:]) for part, each in seconds.items() if each}
        monitor._session.book.rules.clear()
    return medians


def main() -> None:
    torch.set_num_threads(1)
    found = [measure(channels) for channels in SIZES]
    print("| part | " + " | ".join(f"{len(c)} layers, {sum(c)} channels" for c in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    for part in sorted(found[0], key=lambda p: -found[0][p]):
        print(f"| {part} | " + " | ".join(f"{each.get(part, 0.0):.2f} ms" for each in found) + " |")


if __name__ == "__main__":
    main()
