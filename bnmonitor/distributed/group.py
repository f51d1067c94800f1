"""Makes the process group of the exchange, if all processes are there in time and watch the same layers."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

GATHERING = 30.0
"""Seconds that a process waits at the beginning for the others: one that never calls must not hold up the rest."""

DIFFERENT = "they watch different layers, or not all with the same gather_affine"

_made = 0


def make_group(length: int, timeout: timedelta) -> tuple[Any, str]:
    """Return a group of all processes over the CPU, and an empty reason; or None and why there can be none.

    Every process has to call it, in the same order as every other collective.

    Args:
        length: How many numbers this process sends at a time, which must be the same in all.
        timeout: After how long a collective of the group has failed.
    """
    reason = _why_not(GATHERING, length)
    return (None if reason else dist.new_group(backend="gloo", timeout=timeout)), reason


def _why_not(seconds: float, length: int) -> str:
    """Return why the processes cannot make their group, the same reason in each; empty if they can.

    Making a group waits for all processes. The last one to come decides, or before it the first one that has waited
    long enough.
    """
    global _made
    _made += 1
    key, until = f"bnmonitor/{_made}", time.monotonic() + seconds
    store = dist.distributed_c10d._get_default_store()
    world = dist.get_world_size()
    store.add(f"{key}/length/{length}", 1)
    complete = store.add(f"{key}/count", 1) == world
    # Read once all have come: the last process to be counted need not be the last to have written its length.
    alike = store.add(f"{key}/length/{length}", 0) == world
    while not complete and time.monotonic() < until and not store.check([f"{key}/decision"]):
        time.sleep(0.01)
    mine = ("alike" if alike else "different") if complete else "incomplete"
    reasons = {
        "alike": "",
        "different": DIFFERENT,
        "incomplete": f"not every one of them called share_ranks() within {seconds:g} seconds",
    }
    return reasons[store.compare_set(f"{key}/decision", "", mine).decode()]
