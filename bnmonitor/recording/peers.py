"""The other processes of a training: what they have sent by now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bnmonitor.distributed import OwnAffine, RankExchange
from bnmonitor.window import GatheredAffine, RankStatistics, Window


class Peers:
    """Sends statistics to the other processes, and keeps the newest that came back.

    Attributes:
        shared: Whether this process exchanges statistics with others, or did.
        latest: The statistics of all processes that came last; None before.
    """

    def __init__(self) -> None:
        self.shared = False
        self.latest: RankStatistics | None = None
        self._exchange: RankExchange | None = None

    @property
    def failure(self) -> str:
        """Why the exchange has ended; empty if it goes on, or there is none."""
        return "" if self._exchange is None else self._exchange.failure

    @property
    def foreign(self) -> bool:
        """Whether the step that has just ended began with the buffers of another process."""
        return self._exchange is not None and self._exchange.foreign

    @property
    def pending(self) -> bool:
        """Whether statistics that this process has sent are still on their way."""
        return self._exchange is not None and self._exchange.pending

    def join(self, exchange: RankExchange) -> None:
        """Begin to exchange statistics."""
        self._exchange, self.shared = exchange, True

    def stepped(self) -> None:
        """A training step has ended."""
        if self._exchange is not None:
            self._exchange.stepped()

    def offer(self, window: Window, affine: OwnAffine | None = None) -> None:
        """Send the last step of a window to the others, and what this process holds of gamma and beta."""
        if self._exchange is not None:
            self._exchange.offer(window, affine)

    def listen(self, steps: Sequence[int]) -> GatheredAffine | None:
        """Receive what the others have sent by now, if it belongs to the steps in the window.

        Returns:
            Gamma and beta, if they came with it.
        """
        came = self._exchange.result() if self._exchange is not None else None
        # What was sent before the layers changed is of other channels.
        if came is None or not steps or came.step < steps[0]:
            return None
        before = None if self.latest is None else self.latest.affine
        self.latest = came if came.affine is not None else replace(came, affine=before)
        return came.affine

    def leave(self, *, wait: bool) -> None:
        """Send nothing more, and wait for what the others still send, or not."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close(wait=wait)
