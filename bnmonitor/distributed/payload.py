"""The numbers that one process adds to the sum over all processes, and the statistics that follow from the sum."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.measures import update_weight
from bnmonitor.window import GatheredAffine, RankStatistics, Window

_CHANNEL_ROWS = 9

_AFFINE_ROWS = 5
"""Of these every process fills its own channels, the first one with ones, and leaves zeros in the others."""

_LAYER_ROWS = 2

_HEAD = 3


@dataclass(frozen=True, kw_only=True)
class OwnAffine:
    """What one process tells of gamma and beta, where these are split over the processes.

    Attributes:
        own: ``[C]`` bool, the channels that it tells; no other process tells them.
        gamma: ``[C]`` gamma, which counts where ``own`` is set; so do the others.
        beta: ``[C]`` beta.
        gradient: ``[C]`` largest size of gamma's gradient in the newest steps; NaN where unknown.
    """

    own: Tensor
    gamma: Tensor
    beta: Tensor
    gradient: Tensor


@dataclass(frozen=True, kw_only=True)
class OwnDistance:
    """How far one process is from the others, as it knows from the exchange before.

    Attributes:
        rank: Its number.
        world_size: Number of processes.
        value: The distance of its running statistics from the mean of all; NaN where unknown.
    """

    rank: int
    world_size: int
    value: float


def pack(
    window: Window,
    *,
    overwritten: bool,
    gather: bool = False,
    affine: OwnAffine | None = None,
    distance: OwnDistance | None = None,
) -> Tensor:
    """Return the numbers of one process for the last step of its window: float64, one axis.

    If the buffers of a process were overwritten before the forward, it cannot recover its own batch: it does not know
    the values before the update. It sends the running statistics instead; their sum shows all batches together.

    Args:
        window: The steps of this process.
        overwritten: Whether its buffers were overwritten before the last forward.
        gather: Whether the processes tell each other gamma and beta.
        affine: Which this one tells; None: none.
        distance: How far this process is from the others; None: nobody tells.
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
    told = torch.zeros(0 if distance is None else distance.world_size, dtype=torch.float64, device="cpu")
    if distance is not None and distance.value == distance.value:
        told[distance.rank] = 1 + distance.value  # 0 is unknown
    return torch.cat([head, *by_channel, *(_affine_rows(window, affine) if gather else ()), *by_layer, told])


def _affine_rows(window: Window, affine: OwnAffine | None) -> list[Tensor]:
    if affine is None:
        return [torch.zeros(window.layers.total, dtype=torch.float64, device="cpu")] * _AFFINE_ROWS
    told = affine.gamma, affine.beta, window.baseline.gamma, affine.gradient
    return [affine.own.double(), *(each.double().where(affine.own, 0.0) for each in told)]


def unpack(
    total: Tensor, window: Window, *, world_size: int, overwritten: bool, gather: bool = False
) -> RankStatistics | None:
    """Return the statistics over all processes.

    Args:
        total: The sum of what :func:`pack` returned in each process, and any padding after it.
        window: This process's own last steps, as they were when it sent its part.
        world_size: Number of processes.
        overwritten: Whether the buffers were overwritten before the forward.
        gather: Whether the processes told each other gamma and beta.

    Returns:
        The statistics; None if the parts are of different steps or layers.
    """
    layers, step = window.layers, window.steps[-1]
    if total[:_HEAD].tolist() != [world_size, step * world_size, _mark(layers) * world_size]:
        return None
    channels, count = layers.total, len(layers)
    length = _length(layers, gather=gather)
    distances = total[length : length + world_size] - 1
    total = total[:length]
    rows = total[_HEAD : len(total) - _LAYER_ROWS * count].view(-1, channels)
    by_channel, affine = rows[:_CHANNEL_ROWS], rows[_CHANNEL_ROWS:]
    known, size = total[len(total) - _LAYER_ROWS * count :].view(_LAYER_ROWS, count)
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
    # SyncBatchNorm already has that of all processes.
    var = torch.where(layers.synced_layers[layers.owner], within, var)
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
        distance=distances.where(distances >= 0, torch.nan),
        affine=_gathered(affine, window) if gather else None,
    )


def distance_from_all(total: Tensor, window: Window) -> float:
    """How far the running statistics of this process are from the mean of all, where they are furthest.

    The larger of the distances of the means, in standard deviations, and of the deviations, as a log, in the middle
    channel of a layer.

    Args:
        total: The sum that :func:`unpack` reads.
        window: This process's own last steps, as they were when it sent its part.
    """
    layers = window.layers
    rows = total[_HEAD : _HEAD + _CHANNEL_ROWS * layers.total].view(_CHANNEL_ROWS, layers.total)
    count, mean, log_var = rows[4], rows[5] / rows[4], rows[7] / rows[4]
    own_log = (window.running_var[-1].double().clamp(min=0) + layers.eps_by_channel.double()).log()
    apart = torch.maximum(
        layers.segments.median((window.running_mean[-1].double() - mean).abs() / (log_var / 2).exp()),
        layers.segments.median((own_log - log_var).abs() / 2),
    )
    known = apart[apart.isfinite()]
    return float(known.max()) if len(known) and bool((count > 0).any()) else float("nan")


def _gathered(rows: Tensor, window: Window) -> GatheredAffine | None:
    """Gamma and beta of all processes together; None if nobody has told any.

    What several processes told is of trainings that do not share it, or of none.
    """
    count, *told = rows
    if not bool((count > 0).any()):
        return None
    layers = window.layers
    split = layers.split_channels
    own = window.gamma[-1], window.beta[-1], window.baseline.gamma, torch.full_like(window.gamma[-1], torch.nan)
    gamma, beta, start, gradient = (
        torch.where(split, each.where(count == 1, torch.nan), mine.double())
        for each, mine in zip(told, own, strict=True)
    )
    return GatheredAffine(
        step=window.steps[-1],
        known=~split | (count == 1),
        gamma=gamma,
        beta=beta,
        gamma_start=start,
        gamma_grad=gradient,
    )


def _length(layers: LayerTable, *, gather: bool = False, world_size: int = 0) -> int:
    """How many numbers one process sends, with one for each process that tells its distance from the others."""
    return _HEAD + (_CHANNEL_ROWS + _AFFINE_ROWS * gather) * layers.total + _LAYER_ROWS * len(layers) + world_size


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
