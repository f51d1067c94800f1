"""The numbers that one process adds to the sum over all processes, and the statistics that follow from the sum."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.measures import update_weight
from bnmonitor.window import RankStatistics, Window

_CHANNEL_ROWS = 9

_LAYER_ROWS = 2

_HEAD = 3


def pack(window: Window, *, overwritten: bool) -> Tensor:
    """Return the numbers of one process for the last step of its window: float64, one axis.

    If the buffers of a process were overwritten before the forward, it cannot recover its own batch: it does not know
    the values before the update. It sends the running statistics instead; their sum shows all batches together.
    """
    layers = window.layers
    owner = layers.owner
    running = window.running_mean[-1].double(), window.running_var[-1].double()
    batch = window.batch_mean[-1].double(), window.batch_var[-1].double()
    mean, var = running if overwritten else batch
    values = window.baseline.values.double()
    seen = (window.updates[-1] > 0) | ~torch.tensor(layers.tracking, device="cpu")
    weight = values.nan_to_num(1.0).where(seen, 0.0)[owner]
    weight = weight.where(mean.isfinite() & var.isfinite(), 0.0)
    eps = layers.eps_by_channel.double()
    sound = running[0].isfinite() & running[1].isfinite()
    log_var = (running[1].clamp(min=0) + eps).log()
    by_channel = [
        weight,
        weight * mean.where(weight > 0, 0.0),
        weight * mean.where(weight > 0, 0.0).square(),
        weight * var.where(weight > 0, 0.0),
        sound.double(),
        running[0].where(sound, 0.0),
        running[0].where(sound, 0.0).square(),
        log_var.where(sound, 0.0),
        log_var.where(sound, 0.0).square(),
    ]
    known = ~values.isnan()
    by_layer = [known.double(), values.where(known, 0.0)]
    head = torch.tensor([1.0, window.steps[-1], _mark(layers)], dtype=torch.float64, device="cpu")
    return torch.cat([head, *by_channel, *by_layer])


def unpack(total: Tensor, window: Window, *, world_size: int, overwritten: bool) -> RankStatistics | None:
    """Return the statistics over all processes.

    Args:
        total: The sum of what :func:`pack` returned in each process, and any padding after it.
        window: This process's own last steps, as they were when it sent its part.
        world_size: Number of processes.
        overwritten: Whether the buffers were overwritten before the forward.

    Returns:
        The statistics; None if the parts are of different steps or layers.
    """
    layers, step = window.layers, window.steps[-1]
    if total[:_HEAD].tolist() != [world_size, step * world_size, _mark(layers) * world_size]:
        return None
    channels, count = layers.total, len(layers)
    total = total[: _length(layers)]
    by_channel = total[_HEAD : _HEAD + _CHANNEL_ROWS * channels].view(_CHANNEL_ROWS, channels)
    known, size = total[-_LAYER_ROWS * count :].view(_LAYER_ROWS, count)
    weight, first, second, variance, sound, *running = by_channel
    values = (size / known).where(known > 0, torch.nan)

    mean = first / weight
    between, within = (second / weight - mean.square()).clamp(min=0), variance / weight
    if overwritten:
        # Each part is new = (1 - a) old + a batch with the same old, which drops out of the difference to our own part.
        share = _weight(window)
        own = [
            getattr(window, name)[-1].double() for name in ("running_mean", "running_var", "batch_mean", "batch_var")
        ]
        mean, within = own[2] + (mean - own[0]) / share, own[3] + (within - own[1]) / share
        between = between / share.square()
    n = values[layers.owner]
    count_of_all = n * world_size
    var = (within * (n - 1) / n + between) * count_of_all / (count_of_all - 1)
    synced = torch.zeros(count, dtype=torch.bool, device="cpu")
    synced[list(layers.synced)] = True
    var = torch.where(synced[layers.owner], within, var)  # SyncBatchNorm already has that of all processes
    scale = (within.clamp(min=0) + layers.eps_by_channel.double()).sqrt()
    spread = _pairwise(between, world_size).sqrt() / scale
    of_means, of_logs = (
        _pairwise((square / sound - (one / sound).square()).clamp(min=0), world_size).sqrt()
        for one, square in (running[:2], running[2:])
    )
    level = (running[2] / sound / 2).exp()
    complete = sound == world_size
    return RankStatistics(
        step=step,
        world_size=world_size,
        size=values,
        batch_mean=mean,
        batch_var=var,
        batch_spread=spread,
        mean_spread=(of_means / level).where(complete, torch.nan),
        var_spread=of_logs.where(complete, torch.nan),
    )


def _length(layers: LayerTable) -> int:
    """How many numbers one process sends."""
    return _HEAD + _CHANNEL_ROWS * layers.total + _LAYER_ROWS * len(layers)


def _mark(layers: LayerTable) -> int:
    """A number that differs for different layers, and is small enough for an exact sum over all processes."""
    return zlib.crc32(repr(layers.channels).encode()) >> 8


def _pairwise(variance: Tensor, world_size: int) -> Tensor:
    """Mean squared difference of two of ``world_size`` values, from their variance around their mean."""
    return 2 * variance * world_size / max(1, world_size - 1)


def _weight(window: Window) -> Tensor:
    """Weight of the last step's batches in the running statistics: ``[C]``; NaN for a cumulative average."""
    updates = window.updates[-1]
    weight = update_weight(window.momentum[-1], torch.zeros_like(updates), updates)
    return weight.where(~window.momentum[-1].isnan(), torch.nan)[window.layers.owner]
