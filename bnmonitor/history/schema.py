"""The tags in the event files, and what each holds.

There is one tag for each kind of data. TensorBoard keeps only the first description of a tag, so the tags of data that
depends on the layers have a hash of the layers and the session: a run that continues with other layers or is resumed
writes under other tags.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PLUGIN = "bnmonitor"
EVERY = "bnmonitor/"
"""The beginning of every tag."""
FRAME = "bnmonitor/frame/"
"""A float32 tensor ``[layers, statistics]`` per logged step; the description is a :class:`Schema`."""
CHANNELS = "bnmonitor/channels/"
"""A float32 tensor ``[statistics, channels]`` of one layer; the description names the layer and its statistics."""
FACTS = "bnmonitor/facts/"
"""A JSON list with an object per layer: facts that do not change from step to step."""
ALERT = "bnmonitor/alert/"
"""A JSON object per alert, under a tag of its own; the last one is the alert's state."""
INCIDENT = "bnmonitor/incident/"
"""A JSON object per incident, under a tag of its own in each session; the last one is the incident's state."""
COURSE = "bnmonitor/course/"
"""A JSON object beside each frame: ``loss``, ``lr`` (a list, one per parameter group), ``epoch``."""
ABOUT = "bnmonitor/about"
"""A JSON object on the run as a whole: its state, and the rules that could not judge it."""

KEPT = 5000
"""How many values of each tag bnmonitor asks TensorBoard to keep; by default it keeps 10 or 100 of a plugin."""

BOXES = Path("plugins") / PLUGIN
"""The place of black boxes in a run's directory: TensorBoard reserves it for a plugin's files."""


def _hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


@dataclass(frozen=True)
class Schema:
    """The rows and columns of a frame.

    Attributes:
        layers: Name of each layer, in order.
        channels: Number of channels of each layer.
        metrics: Name of each statistic, in order.
        session: Number of the session among those that wrote into the directory. It gives the order of writing where
            clocks do not: a run may be resumed on a machine whose clock is behind.
    """

    layers: tuple[str, ...]
    channels: tuple[int, ...]
    metrics: tuple[str, ...]
    session: int = 1

    def encode(self) -> bytes:
        """Return the description that is written with the first frame."""
        plain = {"v": 2, "layers": self.layers, "channels": self.channels, "metrics": self.metrics}
        return json.dumps(plain if self.session == 1 else {**plain, "session": self.session}).encode()

    @classmethod
    def decode(cls, content: bytes) -> Schema | None:
        """Return the schema that :meth:`encode` described; None for any other content."""
        try:
            plain = json.loads(content)
            layers, metrics = tuple(map(str, plain["layers"])), tuple(map(str, plain["metrics"]))
            channels = tuple(int(n) for n in plain["channels"])
            session = int(plain.get("session", 1))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        return cls(layers, channels, metrics, session) if len(layers) == len(channels) else None

    @property
    def key(self) -> str:
        """A hash of the layers and columns, for tags."""
        return _hash(self.encode().decode(), 8)


def alert_tag(key: Sequence[object]) -> str:
    """Return the tag of an alert from the key that no other alert of the run has."""
    return ALERT + _hash(json.dumps([str(part) for part in key]), 12)


def incident_tag(session: int, index: int) -> str:
    """Return the tag of an incident: a session that continues another one writes all its incidents again."""
    return f"{INCIDENT}{session}/{index}"


def incident_session(tag: str) -> int:
    """Return the session that wrote the tag of an incident; 1 if the tag does not say it.

    >>> incident_session(incident_tag(2, 0))
    2
    """
    number = tag[len(INCIDENT) :].split("/")[0]
    return int(number) if number.isdecimal() and len(number) < 10 else 1
