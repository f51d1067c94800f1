"""The data that TensorBoard gets besides frames: facts of each layer, and channels of some layers within a budget."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from bnmonitor.history import encode
from bnmonitor.history import statistics as catalogue
from bnmonitor.history.schema import CHANNELS, FACTS
from bnmonitor.measures import BY_CHANNEL
from bnmonitor.results import Severity
from bnmonitor.summary import Summary
from bnmonitor.window import Window

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto

STATISTICS = tuple(statistic.name for statistic in catalogue.CHANNEL)
_BYTES = 4 * len(STATISTICS)
_PAUSE = 2
_HURRY = 8
_FULL = 2000


class ChannelDetail:
    """Chooses the layers whose channels are written with a frame.

    Layers are written in turn, each with every second frame at most, as far as the budget reaches; one with an open
    warning or error may be written with every frame, and waits an eighth as long as the others. TensorBoard's writer
    checksums in Python, 0.2 microseconds a byte while holding the interpreter: bytes are time. After 2,000 frames the
    budget shrinks as ``1 / frames``, so that the file grows only with the logarithm of the run's length.

    Args:
        budget: Bytes per frame; 0: nothing is written. A layer larger than that is written once enough is saved.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self._saved, self._frames = budget, 0.0, 0
        self._last: dict[str, int] = {}
        self._described: set[str] = set()

    def reopen(self) -> None:
        """Describe every tag again, in the next file."""
        self._described.clear()

    def values(self, summary: Summary, key: str) -> list[SummaryProto.Value]:
        """Return the channels of the layers that are next in turn, under tags with the key of the schema."""
        window, layers = summary.window, summary.layers
        if not self._budget or window is None:
            return []
        self._frames += 1
        largest = _BYTES * max(layers.channels, default=0)
        self._saved += self._budget * min(1.0, _FULL / self._frames)
        self._saved = min(self._saved, max(largest, 4 * self._budget))
        values = []
        for index in self._turn(summary):
            cost = _BYTES * layers.channels[index]
            if cost > self._saved:
                break
            self._saved -= cost
            self._last[layers.names[index]] = self._frames
            values.append(self._value(window, index, f"{CHANNELS}{key}/{index}"))
        return values

    def _turn(self, summary: Summary) -> list[int]:
        """Return the layers that may be written, the most overdue first."""
        flagged = {name for alert in summary.open(Severity.WARNING) for name in alert.layers}
        waited = [
            (self._frames - self._last.get(name, -self._frames)) * (_HURRY if name in flagged else 1)
            for name in summary.layers.names
        ]
        return sorted((i for i, w in enumerate(waited) if w >= _PAUSE), key=lambda i: -waited[i])

    def _value(self, window: Window, index: int, tag: str) -> SummaryProto.Value:
        span, about = window.layers.span(index), b""
        if tag not in self._described:
            self._described.add(tag)
            about = json.dumps({"v": 2, "layer": window.layers.names[index], "statistics": STATISTICS}).encode()
        rows = [BY_CHANNEL[name](window, span).float() for name in STATISTICS]
        return encode.floats(tag, torch.stack(rows).numpy(), about)


class LayerFacts:
    """Writes the facts of each layer, and again when they change."""

    def __init__(self) -> None:
        self._written: dict[str, list[dict[str, Any]]] = {}

    def reopen(self) -> None:
        """Write the facts again, into the next file."""
        self._written.clear()

    def values(self, summary: Summary, key: str) -> list[SummaryProto.Value]:
        """Return the facts if they changed."""
        if summary.window is None:
            return []
        facts = facts_of(summary.window)
        if self._written.get(key) == facts:
            return []
        self._written[key] = facts
        return [encode.plain(FACTS + key, facts)]


def facts_of(window: Window) -> list[dict[str, Any]]:
    """Return what is known of each layer as plain types; null where it is not known."""
    layers, structure = window.layers, window.facts.structure
    momenta, training = window.momentum[-1].tolist(), window.training[-1].tolist()
    trains = window.facts.affine_trains.tolist()
    consumers = (None,) * len(layers) if structure is None else structure.consumers
    places = structure.places if structure is not None else ()
    producers = [tuple(map(str, place.producers)) for place in places] or [()] * len(layers)
    return [
        {
            "name": layers.names[i],
            "kind": layers.kinds[i],
            "family": layers.family[i],
            "channels": layers.channels[i],
            "eps": layers.eps[i],
            "momentum": None if momenta[i] != momenta[i] else round(momenta[i], 7),
            "affine": layers.affine[i],
            "tracking": layers.tracking[i],
            "training": training[i],
            "trains": trains[i],
            "producer": ", ".join(producers[i]) or None,
            "consumers": None if (readers := consumers[i]) is None else list(readers),
        }
        for i in range(len(layers))
    ]
