"""Results of remedies that say in one sentence what came of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TypeVar

logger = logging.getLogger("bnmonitor")

V = TypeVar("V")


class Names(tuple[str, ...]):
    """Names of the layers that a remedy treated; printed, they are a sentence.

    Attributes:
        sentence: What the remedy did, as it was checked afterwards.
    """

    sentence: str

    def __new__(cls, names: Iterable[str], sentence: str) -> Names:
        """Keep the names, and log the sentence."""
        made = super().__new__(cls, names)
        made.sentence = sentence
        logger.info("%s", sentence)
        return made

    def __str__(self) -> str:
        return self.sentence

    def __reduce__(self) -> tuple[type[tuple[str, ...]], tuple[list[str]]]:
        """Become a plain tuple in a pickle or a copy."""
        return tuple, (list(self),)


class ByLayer(dict[str, V]):
    """What a remedy found or did in each layer; printed, it is a sentence.

    Attributes:
        sentence: What the remedy did, as it was checked afterwards.
    """

    def __init__(self, by_layer: Mapping[str, V], sentence: str) -> None:
        super().__init__(by_layer)
        self.sentence = sentence
        logger.info("%s", sentence)

    def __str__(self) -> str:
        return self.sentence

    def __reduce__(self) -> tuple[type[dict[str, V]], tuple[dict[str, V]]]:
        """Become a plain dict in a pickle or a copy."""
        return dict, (dict(self.items()),)
