"""The layers of a model or a checkpoint as they are, and what their tensors show besides the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bnmonitor.audit.norms import Norms
from bnmonitor.layers import LayerTable
from bnmonitor.limits import ALIVE, DEAD_GAMMA, FLAT, INITIAL_WEIGHT
from bnmonitor.measures import initial_statistics
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The layers of a model or a checkpoint as they are.

    Attributes:
        window: One step with their statistics.
        counts: ``[L]`` float64, ``num_batches_tracked``; NaN for a layer without.
        initial: ``[L]`` bool, statistics of exactly 0 and 1.
        new: ``[L]`` bool, gamma is one number and beta 0 besides, as in a layer that was only just made.
        off: ``[C]`` bool, gamma is exactly 0, or the filter before the channel is: pruned, or held at zero.
        weight: ``[L]`` float64, what the initial 0 and 1 weigh in the statistics by count and momentum, where the
            values agree with that; else 0.
        momentum_known: Whether momentum is the layers' own, and not PyTorch's default.
    """

    window: Window
    counts: Tensor
    initial: Tensor
    new: Tensor
    off: Tensor
    weight: Tensor
    momentum_known: bool

    @property
    def layers(self) -> LayerTable:
        """The table of the layers."""
        return self.window.layers

    def judged(self) -> Window:
        """Return the step without the channels that are switched off on purpose: they are constant, and may be."""
        window, off = self.window, self.off[None]
        flat = off & (window.running_var < ALIVE * self.layers.eps_by_channel)
        var = window.running_var.where(~flat, 1.0)
        return replace(window, running_var=var, batch_var=var, gamma=window.gamma.where(~off, 0.0))

    def cold(self) -> Window:
        """Return the step as one whose evaluation people will act on, after as many updates as were counted."""
        window = self.window
        updates = self.counts.nan_to_num(0.0).clamp(0, 2**31).long()
        none = torch.zeros_like(window.baseline.forgotten)
        return replace(
            window,
            baseline=replace(window.baseline, updates=updates, initial=self.weight, forgotten=none),
            ledger=replace(window.ledger, cold=self.weight),
            facts=replace(window.facts, ending=True),
        )


def read_stored(window: Window, modules: Sequence[nn.Module], model: nn.Module) -> Stored:
    """Read what layers hold besides their statistics.

    Args:
        window: One step with their statistics.
        modules: The layers.
        model: The model that they are of, among whose other tensors the filters before the layers are.
    """
    bare = isinstance(model, Norms)
    others = model.others if isinstance(model, Norms) else model.state_dict()
    layers = window.layers
    counted = [m._buffers.get("num_batches_tracked") for m in modules]
    counts = torch.tensor([torch.nan if t is None or t.is_meta else float(t) for t in counted], dtype=torch.float64)
    mean, var = window.running_mean[0], window.running_var[0]
    left = torch.where(counts > 0, (1 - window.momentum[-1].double()) ** counts.clamp(min=0), 0.0).nan_to_num(0.0)
    initial, mixed = initial_statistics(layers, mean, var, left)
    below = layers.segments.any(var < left[layers.owner] * (1 - 1e-3))
    some = (left > INITIAL_WEIGHT) & ~below & (layers.segments.median(var) < 2.0)
    start = window.gamma[0][torch.tensor(layers.offsets[:-1])][layers.owner]  # 1, or 0 at the end of a residual branch
    return Stored(
        window=window,
        counts=counts,
        initial=initial,
        new=initial & ~layers.segments.any((window.gamma[0] != start) | (window.beta[0] != 0)),
        off=(window.gamma[0] == 0) | _zero_filters(window, others),
        weight=left.where((mixed | some) & ~initial, 0.0),
        momentum_known=not bare or bool(model.momentum_known),
    )


def _zero_filters(window: Window, others: Mapping[str, Tensor]) -> Tensor:
    """Channels without variance whose filters are exactly zero: ``[C]`` bool."""
    layers = window.layers
    flat = window.running_var[0] < FLAT * layers.eps_by_channel
    found = torch.zeros_like(flat)
    suspects = layers.segments.any(flat).nonzero().flatten().tolist()
    widths = {layers.channels[layer] for layer in suspects}
    filters = [t for t in others.values() if t.dim() > 1 and len(t) in widths and _readable(t)]
    rows = [~tensor.flatten(1).bool().any(1) for tensor in filters]
    rows = [zero for zero in rows if zero.any()]
    for layer in suspects:
        span = layers.span(layer)
        # Rows that vanish exactly where the variance does are those of the operation before.
        for zero in rows:
            if len(zero) == layers.channels[layer] and int((zero & flat[span]).sum()) >= 0.9 * int(flat[span].sum()):
                found[span] |= zero
    return found


def _readable(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and not tensor.is_meta
        and not tensor.is_quantized
        and tensor.device.type == "cpu"
    )


def vanished(stored: Stored) -> Tensor:
    """Channels that gamma has switched off: ``[C]`` bool. It is compared with the large gammas of the model."""
    size = stored.window.gamma[0].abs()
    there = size[(size > 0) & size.isfinite()].sort().values
    usual = float(there[int(0.9 * (len(there) - 1))]) if len(there) else 1.0
    return size < DEAD_GAMMA * usual
