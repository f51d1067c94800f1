"""The exchange of batch statistics between the processes of a training, in the background."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bnmonitor.distributed.group import DIFFERENT, make_group
from bnmonitor.distributed.keepalive import KeptAlive
from bnmonitor.distributed.payload import (
    _HEAD,
    OwnAffine,
    OwnDistance,
    _length,
    _mark,
    distance_from_all,
    pack,
    unpack,
)
from bnmonitor.layers import LayerTable
from bnmonitor.window import RankStatistics, Window

logger = logging.getLogger("bnmonitor")

TIMEOUT = timedelta(minutes=10)
"""An exchange that the others have not joined after this long has failed."""

PATIENCE = 5.0
"""Seconds that the end of a run waits for an exchange in progress."""

UNANSWERED = 8
"""Most exchanges in progress at a time; with more, the others are taken to have stopped."""


@dataclass(frozen=True)
class _Offer:
    """An exchange in progress: the payload that this process sent, and its window at that time.

    The group and the payload are kept alive until :meth:`arrived`, or for as long as the process lives.
    """

    kept: KeptAlive
    work: Any
    payload: Tensor
    window: Window
    overwritten: bool

    @classmethod
    def made(cls, group: Any, work: Any, payload: Tensor, window: Window, overwritten: bool) -> _Offer:
        kept = KeptAlive((group, work, payload))
        return cls(kept, work, payload, window.last(2).snapshot(), overwritten)

    def arrived(self) -> None:
        self.kept.release()


class RankExchange:
    """Sums the statistics of a step over all processes, in the background.

    The sum of ``W`` processes has ``8 * (9 C + 2 L + W)`` bytes. With gamma and beta it has ``8 * (14 C + 2 L + W)``:
    each process adds its own channels of those that are split, and zeros in the place of the others. It has a process
    group of its own over the CPU, so that neither the exchange nor the training's collectives wait for the other. A
    later check collects the result. If another process never joins, the training goes on without the result.

    Every process has to make an exchange, in the same order as every other collective of a group.

    Args:
        layers: The layers of this process. They fix the size of every message: gloo ends a process that gets more than
            it expects.
        overwrites: Returns whether the coming forward takes over the buffers of the first process, as
            ``DistributedDataParallel`` does by default; or a module that is or contains one.
        gather: Whether the processes tell each other gamma and beta.
        timeout: After how long an exchange has failed.
    """

    def __init__(
        self,
        layers: LayerTable,
        overwrites: Callable[[], bool] | nn.Module | None = None,
        *,
        gather: bool = False,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        self.failure = ""
        """Why the exchanges have ended; empty if they go on."""
        self.gather = gather
        """Whether the processes tell each other gamma and beta."""
        self._world, self._rank = dist.get_world_size(), dist.get_rank()
        self._first = self._rank == 0
        self._distance = float("nan")
        self._length = _length(layers, gather=gather, world_size=self._world)
        self._group, reason = make_group(self._length, timeout)
        if reason:
            self._fail(reason)
        self._overwrites = broadcast_of(overwrites) if isinstance(overwrites, nn.Module) else overwrites
        self._parallel = getattr(self._overwrites, "__self__", None)
        self._pending: deque[_Offer] = deque()
        self._coming = self._will_overwrite()
        self.overwritten = False
        """Whether the last step began with the buffers of one process in all of them."""
        self.foreign = False
        """Whether these were the buffers of another process: then their change does not show this process's batch."""

    def stepped(self) -> None:
        """Record, after a training step, whether the coming one will begin with the buffers of the first process."""
        self.overwritten, self._coming = self._coming, self._will_overwrite()
        self.foreign = self.overwritten and not (self._first and self._from_first())

    @torch.no_grad()
    def offer(self, window: Window, affine: OwnAffine | None = None) -> None:
        """Send the statistics of the last step of a window.

        A process never waits with this for the last result. The others may have that result already, and would send
        the statistics of another step.

        Args:
            window: The window.
            affine: What this process tells of gamma and beta at that step; None: nothing.
        """
        if self.failure:
            return
        if self.overwritten and not self._from_first():
            return  # in every process: none knows the buffers that all of them began with
        if len(self._pending) == UNANSWERED:
            self._fail(f"they have not answered the last {UNANSWERED} times")
            return
        distance = OwnDistance(rank=self._rank, world_size=self._world, value=self._distance)
        own = pack(window, overwritten=self.overwritten, gather=self.gather, affine=affine, distance=distance)
        payload = torch.zeros(self._length, dtype=own.dtype, device="cpu")
        if len(own) <= self._length:
            payload[: len(own)] = own  # zeros otherwise: they show the others that it did not fit
        try:
            work = dist.all_reduce(payload, group=self._group, async_op=True)
        except (RuntimeError, ValueError) as error:
            self._fail(error)
            return
        self._pending.append(_Offer.made(self._group, work, payload, window, self.overwritten))

    @property
    def pending(self) -> bool:
        """Whether statistics that this process has sent are still on their way."""
        return not all(offer.work.is_completed() for offer in self._pending)

    @torch.no_grad()
    def result(self) -> RankStatistics | None:
        """Return the sum of the latest exchange that all have joined by now, once; None without a new one."""
        found = None
        while self._pending and self._pending[0].work.is_completed():
            offer = self._pending.popleft()
            offer.arrived()
            found = None if self.failure else self._read(offer)
        return found

    def _read(self, offer: _Offer) -> RankStatistics | None:
        try:
            offer.work.wait()
        except RuntimeError as error:
            self._fail(error)
            return None
        found = unpack(
            offer.payload,
            offer.window,
            world_size=self._world,
            overwritten=offer.overwritten,
            gather=self.gather,
        )
        if found is None:
            self._fail(_difference(offer.payload, offer.window, self._world))
        else:
            self._distance = distance_from_all(offer.payload, offer.window)
        return found

    def close(self, *, wait: bool = True) -> None:
        """Leave the group. Exchanges in progress get a few seconds to end.

        Those that have not ended by then stay, with their group, for as long as this process lives.

        Args:
            wait: Whether to wait for exchanges in progress.
        """
        until = time.monotonic() + PATIENCE * wait
        while not all(offer.work.is_completed() for offer in self._pending):
            if time.monotonic() >= until:
                return
            time.sleep(0.01)
        while self._pending:
            self._pending.popleft().arrived()
        group, self._group = self._group, None
        if dist.is_initialized() and group is not None:
            dist.destroy_process_group(group)

    def _will_overwrite(self) -> bool:
        return self._overwrites is not None and bool(self._overwrites())

    def _from_first(self) -> bool:
        """Whether the buffers that the others take over before the forward are those of the first process.

        Where processes may have uneven numbers of batches (``ddp.join()``), they are those of the last process that
        still trains, and a hook of the user's for the buffers may do anything.
        """
        join = getattr(self._parallel, "_join_config", None)
        return not (getattr(join, "enable", False) or hasattr(self._parallel, "buffer_hook"))

    def _fail(self, error: object) -> None:
        self.failure = f"the processes could not exchange their statistics: {error}"
        logger.info(self.failure)


def _difference(total: Tensor, window: Window, world_size: int) -> str:
    """Return why a sum over all processes is of no use."""
    present, _, layers = total[:_HEAD].tolist()
    if present != world_size:
        return "in one of them there are more layers or channels than at the beginning"
    return "the processes were at different steps" if layers == world_size * _mark(window.layers) else DIFFERENT


def broadcast_of(model: nn.Module) -> Callable[[], bool] | None:
    """Return a function that says whether the coming forward of a model takes over buffers; None if it never does."""
    parallel = next((m for m in model.modules() if hasattr(type(m), "will_sync_module_buffers")), None)
    return None if parallel is None else parallel.will_sync_module_buffers  # type: ignore[return-value]
