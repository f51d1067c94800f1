"""Which single steps a flight record keeps by itself: those around a spike of a layer's batch mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bnmonitor.history.flight.reader import Flight
from bnmonitor.sinks.flight_record import FlightRecord
from bnmonitor.testing import make_window

CHECKS, NEW, SPIKE = 30, 10, 253


@pytest.mark.parametrize("height", [0.0, 20.0])
@pytest.mark.parametrize("unknown", [None, float("nan"), float("inf")])
def test_the_steps_around_a_spike_are_kept_for_its_layer_alone(
    tmp_path: Path, height: float, unknown: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    window = make_window(channels=[200, 200, 200], steps=NEW)
    record = FlightRecord(tmp_path)
    for start in range(0, CHECKS * NEW, NEW):
        means = 0.1 * torch.randn(NEW, 600, generator=generator)
        if start <= SPIKE < start + NEW:
            means[SPIKE - start, 300] += height
        if unknown is not None:
            means[3, 500] = unknown
        steps = tuple(range(start, start + NEW))
        record.take(replace(window, steps=steps, fresh=NEW, batch_mean=means), ())
    record.close()
    assert record.failures() == []
    flight = Flight.of(tmp_path)
    assert flight is not None
    for place, layer in enumerate(flight.layers):
        series = flight.series(layer, "batch_mean")
        single = series.first[series.first == series.last].tolist()
        assert single == (list(range(250, 260)) if place == 1 and height else []), layer
