"""The exchange of batch statistics between the processes of a training."""

from __future__ import annotations

import ctypes
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

from bnmonitor.distributed.payload import _HEAD, _length, _mark, pack, unpack
from bnmonitor.layers import LayerTable
from bnmonitor.window import RankStatistics, Window

logger = logging.getLogger("bnmonitor")

TIMEOUT = timedelta(minutes=10)
"""After this long without the others an exchange has failed."""

PATIENCE = 5.0
"""Seconds for which the end of a run waits for an exchange that is on its way."""

GATHERING = 30.0
"""Seconds for which a process waits at the beginning for the others; one that never calls must not hold up the rest."""

UNANSWERED = 8
"""Exchanges that may be on their way at a time; more of them, and the others are taken not to answer any more."""

_made = 0

_DIFFERENT = "they watch different layers"


@dataclass(frozen=True)
class _Offer:
    """What this process has told, and what it knew then; kept until all have answered.

    Whoever lets go of a group waits for what is on its way there, and so would the interpreter at its end. So the group
    and the payload are held until :meth:`arrived`, or for as long as the process lives.
    """

    held: Any
    work: Any
    payload: Tensor
    window: Window
    overwritten: bool

    @classmethod
    def made(cls, group: Any, work: Any, payload: Tensor, window: Window, overwritten: bool) -> _Offer:
        held = ctypes.py_object((group, work, payload))
        ctypes.pythonapi.Py_IncRef(held)
        return cls(held, work, payload, window.last(2).snapshot(), overwritten)

    def arrived(self) -> None:
        ctypes.pythonapi.Py_DecRef(self.held)


class RankExchange:
    """Sums what each process saw at a step over all processes, in the background.

    The sum has ``8 * (9 C + 2 L)`` bytes however many processes there are. It travels on a group of its own over the
    CPU, so that it neither waits for the training's collectives nor they for it; its result is picked up at a later
    check, and should another process never join, nothing but the result is missed.

    Every process has to make one, in the same order as every other collective of a group.

    Args:
        layers: The layers that this process tells of. What all of them need is settled here once and for all: gloo ends
            the process that gets more than it expects.
        overwrites: Says whether the coming forward takes over the buffers of the first process, as
            ``DistributedDataParallel`` does by default; or a module that is or contains one, which is asked.
        timeout: After how long an exchange has failed.
    """

    def __init__(
        self,
        layers: LayerTable,
        overwrites: Callable[[], bool] | nn.Module | None = None,
        *,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        self.failure = ""
        """Why no more exchanges take place; empty if they do."""
        self._group: Any = None
        self._room = _length(layers)
        why = _apart(GATHERING, self._room)
        if why:
            self._fail(why)
        else:
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._overwrites = broadcast_of(overwrites) if isinstance(overwrites, nn.Module) else overwrites
        self._parallel = getattr(self._overwrites, "__self__", None)
        self._world, self._first = dist.get_world_size(), dist.get_rank() == 0
        self._pending: deque[_Offer] = deque()
        self._coming = self._comes()
        self.overwritten = False
        """Whether the last step began with the buffers of another process in all but one of them."""
        self.foreign = False
        """Whether it did so in this one, so that the change of the buffers is not this process's batch."""

    def stepped(self) -> None:
        """A training step has ended: note what the coming one will begin with."""
        self.overwritten, self._coming = self._coming, self._comes()
        self.foreign = self.overwritten and not (self._first and self._from_first())

    @torch.no_grad()
    def offer(self, window: Window) -> None:
        """Tell the others of the last step of a window.

        It is never put off until they have answered the last time, as they may have heard of each other already: what
        one of them tells would meet what the others tell of another step.
        """
        if self.failure:
            return
        if self.overwritten and not self._from_first():
            return  # in every process alike: none knows the state that all of them began with
        if len(self._pending) == UNANSWERED:
            self._fail(f"they have not answered the last {UNANSWERED} times")
            return
        own = pack(window, overwritten=self.overwritten)
        payload = torch.zeros(self._room, dtype=own.dtype, device="cpu")
        if len(own) <= self._room:
            payload[: len(own)] = own  # else nothing, by which all see that it did not fit
        try:
            work = dist.all_reduce(payload, group=self._group, async_op=True)
        except (RuntimeError, ValueError) as error:
            self._fail(error)
            return
        self._pending.append(_Offer.made(self._group, work, payload, window, self.overwritten))

    @torch.no_grad()
    def result(self) -> RankStatistics | None:
        """Return what came of the latest offer that all have answered by now, once."""
        found = None
        while self._pending and self._pending[0].work.is_completed():
            offer = self._pending.popleft()
            offer.arrived()
            found = None if self.failure else self._told(offer)
        return found

    def _told(self, offer: _Offer) -> RankStatistics | None:
        try:
            offer.work.wait()
        except RuntimeError as error:
            self._fail(error)
            return None
        found = unpack(offer.payload, offer.window, world_size=self._world, overwritten=offer.overwritten)
        if found is None:
            self._fail(_difference(offer.payload, offer.window, self._world))
        return found

    def close(self, *, wait: bool = True) -> None:
        """Leave the group; nothing may be on its way on it then, so what is gets a few seconds to arrive.

        What has not arrived by then is left to itself, with its group, for as long as this process lives.

        Args:
            wait: False: do not wait for it at all.
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

    def _comes(self) -> bool:
        return self._overwrites is not None and bool(self._overwrites())

    def _from_first(self) -> bool:
        """Whether it is the first process whose buffers the others take over, before the forward.

        Where processes may have uneven numbers of batches (``ddp.join()``) it is the last that is still there, and a
        hook of the user's for the buffers may do anything.
        """
        join = getattr(self._parallel, "_join_config", None)
        return not (getattr(join, "enable", False) or hasattr(self._parallel, "buffer_hook"))

    def _fail(self, error: object) -> None:
        self.failure = f"the processes could not tell each other their statistics: {error}"
        logger.info(self.failure)


def _apart(seconds: float, room: int) -> str:
    """Say why the processes cannot make their group, as they all decide alike; empty if they can.

    To make one waits for all of them. The last to come decides, or before it the first whose patience ends.

    Args:
        seconds: How long one waits for the others.
        room: Numbers that one tells the others, which must be as many in all of them.
    """
    global _made
    _made += 1
    key, until = f"bnmonitor/{_made}", time.monotonic() + seconds
    store = dist.distributed_c10d._get_default_store()
    world = dist.get_world_size()
    store.add(f"{key}/room/{room}", 1)
    complete = store.add(f"{key}/count", 1) == world
    # Asked once all have come: whoever comes last need not have been the last to say how much it tells.
    alike = store.add(f"{key}/room/{room}", 0) == world
    while not complete and time.monotonic() < until and not store.check([f"{key}/decision"]):
        time.sleep(0.01)
    mine = ("together" if alike else "different") if complete else "incomplete"
    reasons = {
        "together": "",
        "different": _DIFFERENT,
        "incomplete": f"not every one of them called share_ranks() within {seconds:g} seconds",
    }
    return reasons[store.compare_set(f"{key}/decision", "", mine).decode()]


def _difference(total: Tensor, window: Window, world_size: int) -> str:
    """Say why a sum over all processes tells nothing."""
    present, _, layers = total[:_HEAD].tolist()
    if present != world_size:
        return "in one of them there are more layers or channels than at the beginning"
    return "the processes were at different steps" if layers == world_size * _mark(window.layers) else _DIFFERENT


def broadcast_of(model: nn.Module) -> Callable[[], bool] | None:
    """Return what says whether the coming forward of a model takes over buffers; None if it never does."""
    parallel = next((m for m in model.modules() if hasattr(type(m), "will_sync_module_buffers")), None)
    return None if parallel is None else parallel.will_sync_module_buffers  # type: ignore[return-value]
