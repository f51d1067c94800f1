"""Names of what is written to the event files.

One tag per kind of thing. TensorBoard keeps only the first description of a tag, so the tags of what depends on the
layers carry a hash of them: a run that goes on with other layers writes under other tags.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PLUGIN = "bnmonitor"
FRAME = "bnmonitor/frame/"
"""A float32 tensor ``[layers, statistics]`` per logged step; the description is a :class:`Schema`."""
CHANNELS = "bnmonitor/channels/"
"""A float32 tensor ``[statistics, channels]`` of one layer; the description names the layer and its statistics."""
FACTS = "bnmonitor/facts/"
"""A JSON list with an object per layer: what does not change from step to step."""
ALERT = "bnmonitor/alert/"
"""A JSON object per alert, under a tag of its own; the last one is its state."""
ABOUT = "bnmonitor/about"
"""A JSON object on the run as a whole: its state, and the rules that could not judge it."""

KEPT = 5000
"""Values of each tag that TensorBoard is asked to keep. Left alone it keeps 10 or 100 of a plugin's."""

BOXES = Path("plugins") / PLUGIN
"""Where in a run's directory black boxes lie: TensorBoard's place for what belongs to a plugin."""


def _hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


@dataclass(frozen=True)
class Schema:
    """What the rows and columns of a frame are.

    Attributes:
        layers: Name of each layer, in order.
        channels: Number of channels of each layer.
        metrics: Name of each statistic, in order.
    """

    layers: tuple[str, ...]
    channels: tuple[int, ...]
    metrics: tuple[str, ...]

    def encode(self) -> bytes:
        """Return the description that goes with the first frame."""
        return json.dumps({"v": 2, "layers": self.layers, "channels": self.channels, "metrics": self.metrics}).encode()

    @classmethod
    def decode(cls, content: bytes) -> Schema | None:
        """Return what :meth:`encode` described; None for anything else."""
        try:
            plain = json.loads(content)
            layers, metrics = tuple(map(str, plain["layers"])), tuple(map(str, plain["metrics"]))
            channels = tuple(int(n) for n in plain["channels"])
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        return cls(layers, channels, metrics) if len(layers) == len(channels) else None

    @property
    def key(self) -> str:
        """What tells these layers and columns from others, in tags."""
        return _hash(self.encode().decode(), 8)


def alert_tag(key: Sequence[object]) -> str:
    """Return the tag of an alert by what tells it from every other of the run."""
    return ALERT + _hash(json.dumps([str(part) for part in key]), 12)
