"""Averaged weights in an evaluation: which statistics they are evaluated with, and how old these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnmonitor.layers import LayerTable
from bnmonitor.recording.snapshot import Snapshot, read, tensors
from bnmonitor.window import Baseline


@dataclass(frozen=True, kw_only=True)
class AveragedWeightsReport:
    """How an evaluation used the averaged weights and the statistics of each layer.

    Attributes:
        swapped: ``[L]`` bool, the layer had another gamma or beta in the evaluation than before and after it.
        uses_training_statistics: ``[L]`` bool, averaged weights were evaluated with the statistics of the weights in
            training.
        steps_stale: ``[L]`` int64, training steps for which the statistics have not changed while gamma or beta have.
        own: ``[L]`` bool, the layer was evaluated with the running statistics that the last training step has left.
        distance: ``[2, L]`` distance of the statistics from those of the weights in training, in the middle channel:
            of the means in deviations, of the deviations as a log; NaN for a layer without averaged weights.
    """

    swapped: Tensor
    uses_training_statistics: Tensor
    steps_stale: Tensor
    own: Tensor
    distance: Tensor


class AveragedWeights:
    """Compares the layers as they are evaluated with the layers in training.

    Args:
        layers: The table of the layers.
        modules: The layers, in the same order.
        groups: For each layer the number of the model that contains it.
    """

    def __init__(self, layers: LayerTable, modules: Sequence[nn.Module], groups: Sequence[int]) -> None:
        self._layers, self._modules = layers, modules
        self._groups = torch.tensor(groups, dtype=torch.int64, device="cpu")
        self._affine = torch.tensor(layers.affine, dtype=torch.bool, device="cpu")
        self._before: Snapshot | None = None
        self._seen: dict[int, dict[str, Tensor | None]] = {}
        self._last: Snapshot | None = None
        self._since = torch.full((len(layers),), -1, dtype=torch.int64, device="cpu")

    def begin(self) -> None:
        """Read the layers at the beginning of an evaluation."""
        self._before, self._seen = self._now(), {}

    def abandon(self) -> None:
        """Drop the evaluation in progress."""
        self._before, self._seen = None, {}

    def visit(self, layer: int) -> None:
        """Copy the tensors that a layer is evaluated with, at its first call."""
        found = tensors(self._modules[layer])
        self._seen[layer] = {name: None if t is None else t.detach().clone() for name, t in found.items()}

    def swapped(self, which: Sequence[int]) -> bool:
        """Whether one of these layers has another gamma or beta now than when the evaluation began."""
        if self._before is None:
            return False
        other = self._now().other_affine(self._before, self._layers)
        return bool(other[list(which)].any())

    @property
    def began(self) -> Snapshot | None:
        """The layers at the beginning of the evaluation in progress; None without one."""
        return self._before

    def end(
        self,
        evaluated: Tensor,
        copies: Tensor,
        rows: Mapping[str, Tensor],
        count: int,
        averaging: bool,
        updated: Tensor | None = None,
        start: Baseline | None = None,
    ) -> AveragedWeightsReport | None:
        """Return how the evaluation that has just ended used averaged weights; None if none was in progress.

        Args:
            evaluated: ``[L]`` bool, layers that ran in evaluation mode.
            copies: ``[L]`` bool, layers of an average of the weights, or of an auxiliary network.
            rows: The window's statistics, ``[T, C]`` and ``[T, L]``; ``T`` may be 0.
            count: Number of training steps so far.
            averaging: Whether the run averages the weights without the buffers, and leaves the average in the model.
            updated: ``[L]`` bool, layers that training has updated at any time; None: those of the window.
            start: How the layers began; None: unknown.
        """
        before, seen = self._before, self._seen
        self.abandon()
        if before is None or not len(self._layers):
            return None
        layers, after = self._layers, self._now()
        here = [seen.get(i) or tensors(m) for i, m in enumerate(self._modules)]
        force = read(layers, here) if seen else after
        visited = torch.tensor([i in seen for i in range(len(layers))], dtype=torch.bool, device="cpu") & evaluated
        swapped = self._spread(visited & force.other_affine(before, layers) & ~after.other_affine(before, layers))
        swapped &= evaluated
        trains = (rows["updates"] > 0).any(0) if updated is None else updated
        trains = trains & ~copies  # the counter of a copy may be copied, too
        twin = self._nearest_twin(evaluated & ~trains, trains, force, before)
        live = before.select(self._channels(torch.where(swapped, torch.arange(len(layers), device="cpu"), twin)))
        known = swapped | (twin >= 0)
        same = ~force.other_statistics(live, layers) & self._spread(force.other_affine(live, layers))
        same &= evaluated & known & (copies | ~trains | (swapped & trains))
        same = self._was(same, force, rows, copies & (twin >= 0) & evaluated, twin)
        if len(rows["updates"]):
            last = Snapshot(*(rows[name][-1].double() for name in _ROWS))
            left = before.other_affine(last, layers) if averaging else self._leapt(before, rows)
            left = self._spread(left) & ~before.other_statistics(last, layers)
            same |= left & evaluated & trains & ~visited.logical_and(force.other_statistics(before, layers))
        sigma = live.var + layers.eps_by_channel
        distance = torch.stack(
            [
                layers.segments.median((force.mean - live.mean).abs() / sigma.sqrt()),
                layers.segments.median(0.5 * ((force.var + layers.eps_by_channel) / sigma).log().abs()),
            ]
        ).where(known, torch.nan)
        steps_stale = self._stood(force, evaluated, evaluated & ~trains & ~swapped, rows, count, start)
        return AveragedWeightsReport(
            swapped=swapped,
            uses_training_statistics=same,
            steps_stale=steps_stale,
            own=self._own(force, rows) & evaluated,
            distance=distance,
        )

    def _nearest_twin(self, of: Tensor, among: Tensor, force: Snapshot, now: Snapshot) -> Tensor:
        """Of each layer the twin whose statistics it has; else the one with the nearest gamma and beta; -1: none."""
        layers, best = self._layers, torch.full((len(self._layers),), torch.inf, dtype=torch.float64, device="cpu")
        found = torch.full((len(layers),), -1, dtype=torch.int64, device="cpu")
        for group in sorted(set(self._groups[among].tolist())):
            twin = layers.twins(of, among & (self._groups == group))
            theirs = now.select(self._channels(twin))
            apart = layers.segments.sum((force.gamma - theirs.gamma).abs() + (force.beta - theirs.beta).abs())
            apart = (
                apart.where(force.other_statistics(theirs, layers), -1.0).where(twin >= 0, torch.inf).nan_to_num(1e30)
            )
            nearer = (twin >= 0) & ((apart < best) | (found < 0))
            found, best = twin.where(nearer, found), apart.where(nearer, best)
        return found

    def _leapt(self, now: Snapshot, rows: Mapping[str, Tensor]) -> Tensor:
        """Layers whose gamma and beta are further from the last step's than training moves in the statistics' memory.

        A running average follows about ``1 / momentum`` steps: whatever lies among these is no other network, nor is
        the step of an optimizer after the last reading, or a pull back as of Lookahead or Reptile.
        """
        layers, steps = self._layers, len(rows["updates"])
        memory = (1 / rows["momentum"][-1].double().nan_to_num(1.0).clamp(min=1e-3)).ceil().long()
        leap = torch.zeros(len(layers), dtype=torch.float64, device="cpu")
        ways = torch.zeros(steps, len(layers), dtype=torch.float64, device="cpu")
        for name in ("gamma", "beta"):
            series = rows[name].double()
            leap += layers.segments.sum((getattr(now, name) - series[-1]).square()).double()
            away = (series - series[-1]).square()
            ways += torch.stack([layers.segments.sum(row).double() for row in away])
        age = torch.arange(steps, device="cpu").flip(0)[:, None]
        usual = ways.where(age <= memory, 0.0).amax(0)
        return (leap > usual) & (usual > 0) & (steps > memory)

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _now(self) -> Snapshot:
        return read(self._layers, [tensors(m) for m in self._modules])

    def _spread(self, mask: Tensor) -> Tensor:
        """Extend a mask to the layers without gamma and beta: they follow the others of their model."""
        some = torch.zeros(int(self._groups.max()) + 1, dtype=torch.bool, device="cpu")
        some[self._groups[mask & self._affine]] = True
        return torch.where(self._affine, mask, some[self._groups])

    def _own(self, force: Snapshot, rows: Mapping[str, Tensor]) -> Tensor:
        """Layers with the running statistics of the window's last step: ``[L]`` bool."""
        if not len(rows["updates"]):
            return torch.zeros(len(self._layers), dtype=torch.bool, device="cpu")
        last = Snapshot(*(rows[name][-1].double() for name in _ROWS))
        return ~force.other_statistics(last, self._layers)

    def _channels(self, source: Tensor) -> Tensor:
        """Positions of the channels of each layer in the layer at ``source``, ``[L]``; -1 is the layer itself."""
        offsets = torch.tensor(self._layers.offsets[:-1], dtype=torch.int64, device="cpu")
        own = torch.arange(len(source), device="cpu")
        shift = offsets[torch.where(source < 0, own, source)] - offsets
        return torch.arange(self._layers.total, device="cpu") + shift[self._layers.owner]

    def _was(self, same: Tensor, force: Snapshot, rows: Mapping[str, Tensor], which: Tensor, twin: Tensor) -> Tensor:
        """Add the layers with statistics that their twin had at a step of the window, but not its gamma and beta.

        A copy of a whole step, such as a target network, has all of them; it is left out.
        """
        if not which.any():
            return same
        at = which[self._layers.owner].nonzero().flatten()
        source = self._channels(twin)[at]

        def as_then(*names: str) -> Tensor:
            other = torch.zeros(len(rows["updates"]), self._layers.total, dtype=torch.bool, device="cpu")
            for name in names:
                other[:, at] |= rows[name][:, source] != getattr(force, _ROWS[name])[at]
            return ~self._layers.segments.any(other)

        statistics, affine = as_then("running_mean", "running_var"), as_then("gamma", "beta")
        mixed = (statistics & ~affine & self._affine).any(0)
        return (same | (which & mixed)) & ~(which & (statistics & affine & self._affine).any(0))

    def _stood(
        self,
        force: Snapshot,
        evaluated: Tensor,
        auxiliary: Tensor,
        rows: Mapping[str, Tensor],
        count: int,
        start: Baseline | None,
    ) -> Tensor:
        """Training steps for which the statistics have not changed, where gamma or beta has changed in that time.

        They are compared from one evaluation to the next; auxiliary layers also with the steps of the window.
        """
        layers = self._layers
        last = force if self._last is None else self._last
        if start is not None and auxiliary.any():
            # A copy that has the statistics it was given before the first step.
            first = Snapshot(start.mean.double(), start.var.double(), start.gamma.double(), force.beta)
            still = auxiliary & (self._since < 0) & ~force.other_statistics(first, layers)
            last = first.where(still[layers.owner], last)
            self._since = torch.where(still, 0, self._since)
        moved = force.other_statistics(last, layers) | (self._since < 0)
        since = torch.where(moved, count, self._since)
        then = force.where(moved[layers.owner], last)
        if auxiliary.any() and len(rows["updates"]):
            at = auxiliary[layers.owner].nonzero().flatten()
            other = torch.zeros(len(rows["updates"]), layers.total, dtype=torch.bool, device="cpu")
            mean, var = rows["running_mean"][:, at], rows["running_var"][:, at]
            other[:, at] = (mean != force.mean[at]) | (var != force.var[at])
            still = (~layers.segments.any(other)).flip(0).long().cumprod(0).sum(0)
            earlier = auxiliary & (still > 0) & (count - still + 1 < since)
            since = torch.where(earlier, count - still + 1, since)
            row = (len(other) - still.clamp(min=1))[layers.owner]
            channel = torch.arange(layers.total, device="cpu")
            past = Snapshot(*(rows[name][row, channel].double() for name in _ROWS))
            then = past.where(earlier[layers.owner], then)
        moves = self._spread(force.other_affine(then, layers))
        self._last = then.where(evaluated[layers.owner], last)
        self._since = torch.where(evaluated, since, self._since)
        return torch.where(evaluated & moves, count - since, 0)


_ROWS = {"running_mean": "mean", "running_var": "var", "gamma": "gamma", "beta": "beta"}
"""The fields of a snapshot by their names in a window."""
