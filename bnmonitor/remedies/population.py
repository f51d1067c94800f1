"""The mean and variance of all values that reach a layer, merged batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor._text import listing
from bnmonitor.layers import Segments, channels_of, is_synced, writes_pairwise

_FAR = 25.0
"""Square of a mean over the variance from which on float32 squares are not exact enough."""


class SingleValueError(Exception):
    """A batch has one value per channel at some layer: it has no variance."""


class Population:
    """Merges the batch statistics that layers with momentum 1 leave in their buffers; on an error it restores them.

    All accumulators are ``[C]`` float64, the channels of all layers end to end.

    Args:
        layers: BatchNorm layers with running statistics, by name.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._names, self._layers = list(layers), list(layers.values())
        self._widths = [channels_of(layer) for layer in self._layers]
        device = self._buffer(0, "running_mean").device
        self._device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        total = sum(self._widths)
        self._count, self._mean, self._squares = torch.zeros(3, total, dtype=torch.float64, device=self._device)
        self._parts = torch.split(torch.arange(total, device=self._device), self._widths)
        self._where: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._pending: dict[int, tuple[int, int]] = {}
        self._handles: list[Any] = []
        self._finished = False

    def __enter__(self) -> Population:
        self._before = [{k: b.clone() for k, b in m._buffers.items() if b is not None} for m in self._layers]
        self._momenta = [layer.momentum for layer in self._layers]
        for at, layer in enumerate(self._layers):
            layer.momentum = 1.0  # type: ignore[assignment]
            # 0 times a NaN would stay one.
            self._buffer(at, "running_mean").zero_()
            self._buffer(at, "running_var").fill_(1.0)
            self._handles.append(layer.register_forward_pre_hook(self._hook(at), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for layer, momentum in zip(self._layers, self._momenta, strict=True):
            layer.momentum = momentum
        if not self._finished:
            for at in range(len(self._layers)):
                self._restore(at)

    def collect(self) -> None:
        """Merge the batch that has just gone through."""
        layers, sizes = tuple(self._pending), list(self._pending.values())  # sizes, and divisors of the variances
        self._pending.clear()
        if not layers:
            return
        if layers not in self._where:
            widths = torch.tensor([self._widths[at] for at in layers], device=self._device)
            owner = torch.arange(len(layers), device=self._device).repeat_interleave(widths)
            self._where[layers] = torch.cat([self._parts[at] for at in layers]), owner
        index, owner = self._where[layers]
        count, divisor = torch.tensor(sizes, dtype=torch.float64, device="cpu").to(self._device)[owner].unbind(1)
        mean = torch.cat([self._buffer(at, "running_mean").to(self._device) for at in layers]).double()
        var = torch.cat([self._buffer(at, "running_var").to(self._device) for at in layers]).double()
        merged = merge((self._count[index], self._mean[index], self._squares[index]), (count, mean, var * divisor))
        for total, part in zip((self._count, self._mean, self._squares), merged, strict=True):
            total[index] = part

    def drop(self) -> None:
        """Discard the batch that has just failed."""
        self._pending.clear()

    def finish(self, batches: int) -> tuple[dict[str, float], tuple[str, ...]]:
        """Merge over the processes and write the result into the layers' buffers.

        Args:
            batches: Batches that went in, on this process.

        Returns:
            By layer, the median over its channels of how far the mean moved in standard deviations; and the layers
            that no batch reached.

        Raises:
            ValueError: No layer was reached, or a result is not finite.
        """
        calls = self._merge_processes(batches)
        reached = Segments(self._widths).any((self._count > 1).cpu()).tolist()
        if not any(reached):
            raise ValueError(
                "no BatchNorm layer was called with more than one value per channel: is the forward right?"
            )
        bad = [
            name
            for name, mean, squares in zip(
                self._names,
                torch.split(self._mean, self._widths),
                torch.split(self._squares, self._widths),
                strict=True,
            )
            if not (mean.isfinite().all() and squares.isfinite().all())
        ]
        if bad:
            raise ValueError(f"statistics are not finite in {listing(bad, 3)}: look at the data and the weights")
        moved: dict[str, float] = {}
        for at, (name, layer) in enumerate(zip(self._names, self._layers, strict=True)):
            if not reached[at]:
                self._restore(at)
                continue
            part = self._parts[at]
            mean, var = self._mean[part], self._squares[part] / (self._count[part] - 1)
            old = self._before[at]["running_mean"].to(self._device).double()
            eps = float(getattr(layer, "eps", 0.0))
            moved[name] = float(((mean - old).abs() / (var + eps).sqrt()).median())
            self._buffer(at, "running_mean").copy_(mean)
            self._buffer(at, "running_var").copy_(var)
            if layer._buffers.get("num_batches_tracked") is not None:
                self._buffer(at, "num_batches_tracked").fill_(calls)
        self._finished = True
        return moved, tuple(name for name, there in zip(self._names, reached, strict=True) if not there)

    def _merge_processes(self, batches: int) -> int:
        """Merge the populations of all processes; return the number of batches of all."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return batches
        rank = torch.distributed.get_rank()
        for at, layer in enumerate(self._layers):
            if is_synced(layer) and rank:  # has seen the batches of all processes in each
                self._count[self._parts[at]] = 0
        own = self._count, self._mean, self._squares
        every = [torch.zeros_like(torch.stack(own)) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(every, torch.stack(own))
        merged = tuple(every[0])
        for other in every[1:]:
            merged = merge(merged, tuple(other))
        self._count, self._mean, self._squares = merged
        total = torch.tensor(batches, device=self._device)
        torch.distributed.all_reduce(total)
        return int(total)

    def _hook(self, at: int) -> Any:
        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            if values is None:
                return
            size = values.numel() // self._widths[at]
            if is_synced(layer) and torch.distributed.is_initialized():
                every = torch.tensor(size, device=values.device)
                torch.distributed.all_reduce(every, group=layer.process_group)
                size = int(every)
            if size < 2:
                raise SingleValueError
            if at in self._pending:  # a second call in one forward would overwrite the first
                self.collect()
            quick = row_moments(values) if writes_pairwise(layer) else None
            layer.training = quick is None
            if quick is not None:  # in evaluation mode the layer normalizes with what its buffers hold
                self._buffer(at, "running_mean").copy_(quick[0])
                self._buffer(at, "running_var").copy_(quick[1])
            self._pending[at] = size, size if quick is not None else size - 1

        return before

    def _buffer(self, at: int, name: str) -> Tensor:
        buffer = self._layers[at]._buffers[name]
        assert buffer is not None
        return buffer

    def _restore(self, at: int) -> None:
        for name, value in self._before[at].items():
            self._buffer(at, name).copy_(value)


def row_moments(values: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and variance of the channels of contiguous ``[N, C, ...]`` on the CPU: ``[C]`` float64, not unbiased.

    Up to ten times faster there than PyTorch's own batch statistics, which are summed one value at a time. Each image's
    sums are float32 over a contiguous stretch, which PyTorch adds pairwise; the rest is float64.

    Returns:
        None where this is not faster, or where a mean so far from 0 would cancel the variance's digits.
    """
    if values.device.type != "cpu" or values.dim() < 3 or not values.is_contiguous() or not len(values):
        return None
    if values.dtype not in (torch.float32, torch.float64):
        return None
    rows = values.flatten(2)
    mean = (rows.sum(2).double() / rows.shape[2]).mean(0)
    square = (torch.linalg.vector_norm(rows, dim=2).double().square() / rows.shape[2]).mean(0)
    var = square - mean.square()
    return None if (mean.square() > _FAR * var).any() else (mean, var)


def merge(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Merge two populations, each as its count, mean and sum of squared deviations: ``[C]`` float64.

    Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979. One that
    counts 0 adds nothing.
    """
    (count, mean, squares), (more, its_mean, its_squares) = one, other
    total = count + more
    share = more / total.clamp(min=1)
    distance = its_mean - mean
    empty, full = more == 0, count == 0
    mean = torch.where(full, its_mean, torch.where(empty, mean, mean + distance * share))
    between = torch.where(full | empty, 0.0, distance.square() * count * share)
    return total, mean, squares.where(~full, 0.0) + its_squares.where(~empty, 0.0) + between
