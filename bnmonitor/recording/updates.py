"""Counts the updates of each layer's running statistics by training, by recomputation in a backward, by evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.layers import Hooks, LayerTable, freezes_graphs, graphs_compiled
from bnmonitor.recording.averaged_weights import AveragedWeights
from bnmonitor.recording.buffer_state import BufferState, Moves, are_initial
from bnmonitor.recording.snapshot import Snapshot, read, tensors
from bnmonitor.window import PHASES, Baseline, Ledger, Sample

_TRAINING, _RECOMPUTE = PHASES.index("training"), PHASES.index("recompute")
_KEPT = (
    "seen",
    "expected",
    "latest",
    "evaluated",
    "called",
    "updated",
    "initial",
    "cold",
    "times",
    "tested",
    "leaks",
    "clean",
    "gap",
    "drift",
    "uses_training_statistics",
)
LEAST_WEIGHT = 1e-3
"""Weight of the initial statistics below which they count for nothing in an evaluation, however little data vary."""

_RENAMED = {"borrowed": "uses_training_statistics"}
"""Rows of the ledger by the names that an older version saved them with."""


class UpdateLedger:
    """Keeps the ledger: for evaluations by comparing the buffers before and after, for training by the samples.

    No hook stays on a layer. In an evaluation each layer has one, which is removed at the layer's first call and
    records that the layer ran and in which mode.

    Args:
        layers: The table of the layers.
        modules: The layers, in the same order.
        models: The models that contain them.
    """

    def __init__(self, layers: LayerTable, modules: Sequence[nn.Module], models: Iterable[nn.Module] = ()) -> None:
        self._layers, self._modules, self._models = layers, tuple(modules), tuple(models)
        parents = {id(child): m for model in self._models for m in model.modules() for child in m.children()}
        self._parents = [parents.get(id(m), m) for m in self._modules]
        self._ledger = Ledger.blank(len(layers))
        averages = [m for model in self._models for m in model.modules() if _is_average(m)]
        within = {id(m): k for k, average in enumerate(averages) for m in average.modules()}
        averaged = [id(m) in within for m in self._modules]
        self._ledger.averaged.copy_(torch.tensor(averaged, dtype=torch.bool, device="cpu"))
        roots = {id(m): k - len(self._models) for k, model in enumerate(self._models) for m in model.modules()}
        self._averages = AveragedWeights(
            layers, self._modules, [within.get(id(m), roots.get(id(m), -1)) + len(self._models) for m in self._modules]
        )
        counts = layers.which("counts_updates").tolist()
        self._counting = [
            m._buffers.get("num_batches_tracked") is not None and c for m, c in zip(self._modules, counts, strict=True)
        ]
        self._graphs = graphs_compiled()
        self._phase: int | None = None
        self._hooked = False
        self._constants: Snapshot | None = None
        self._before: BufferState | None = None
        self._hooks = Hooks()
        self._ran: dict[int, bool] = {}
        self._meant: set[int] = set()
        self._sampled = -1
        self._tracks: list[bool] | None = None
        self._copied: tuple[list[int] | None, Ledger] | None = None
        self.has_unjudged = False
        """Whether an evaluation has brought a result that no rule has judged yet."""

    # -- an evaluation -------------------------------------------------------------------------------------------------

    def begin(self, phase: str, *, hooks: bool) -> None:
        """Start to record an evaluation.

        Args:
            phase: Which evaluation, one of :data:`~bnmonitor.window.PHASES`.
            hooks: Whether to place hooks.
        """
        self.abandon()
        self._hooked = hooks
        self._phase, self._before = PHASES.index(phase), BufferState.read(self._modules, self._counting)
        self._averages.begin()
        if hooks:
            for i, module in enumerate(self._modules):
                self._hooks.on_forward(module, self._visit(i))
            if self._hooks.refused:  # the calls of a part of the layers would say that the others were not called
                self._hooks.remove()
                self._hooked = False

    def end(
        self,
        *,
        trained: bool,
        compiled: bool,
        rows: Mapping[str, Tensor],
        count: int,
        auxiliary: Sequence[str] = (),
        averaging: bool = False,
        start: Baseline | None = None,
    ) -> None:
        """Enter the evaluation that has just ended into the ledger.

        Args:
            trained: Whether a training step came before it; else it may be a first measurement of new layers.
            compiled: Whether the model is compiled, so that several updates may be one write to a counter.
            rows: The window's statistics, ``[T, C]`` and ``[T, L]``.
            count: Number of training steps so far.
            auxiliary: For each layer the name of the auxiliary network around it, or an empty name; empty: unknown.
            averaging: Whether the run averages the weights without the buffers.
            start: How the layers began; None: unknown.
        """
        phase, before, ran, meant = self._phase, self._before, self._ran, self._meant
        self._before = None
        if phase is None or before is None:
            self.abandon()
            return
        after = BufferState.read(self._modules, self._counting)
        moves = self._moves(after.counts - before.counts)
        moved = before.updates_until(after, self._counting, compiled=compiled, ran=ran, moves=moves)
        moved[list(meant)] = 0
        ledger = self._ledger
        ledger.note_updates(phase, moved > 0, None if moves is None else moves.drift)
        # Where no hook was called, every layer that trains is taken to have been evaluated.
        in_eval = [not ran[i] if i in ran else not ran and bool(ledger.called[i]) for i in range(len(self._layers))]
        graphs = graphs_compiled()
        compiles = compiled or graphs > 0
        if PHASES[phase] != "sanity" and trained:
            ledger.missed[phase] = self._hooked and not ran and not compiled and graphs == self._graphs
        evaluated = torch.tensor(in_eval, dtype=torch.bool, device="cpu")
        initial = are_initial(self._layers, self._modules, ledger.updated, start=start, trained=trained)
        initial &= evaluated
        if initial.any():
            initial &= ~self._awaits_copy(self._copies(auxiliary), rows)
        if PHASES[phase] != "sanity" and (trained or (initial.any() and self._weighted())):
            ledger.initial.copy_(torch.where(evaluated, initial, ledger.initial))
        ledger.folded.copy_(self._folded(evaluated, inside_a_graph=compiles and not ran))
        found = self._averages.end(evaluated, self._copies(auxiliary), rows, count, averaging, ledger.updated, start)
        self.abandon()
        for name in ("uses_training_statistics", "swapped", "steps_stale", "distance") if found is not None else ():
            row = getattr(ledger, name)
            row.copy_(torch.where(evaluated, getattr(found, name), row))
        if PHASES[phase] != "sanity" and trained and found is not None and evaluated.any():
            ledger.cold.zero_()
            if start is not None:
                weight = start.initial_weight
                ledger.cold.copy_(weight.where(found.own & (weight > LEAST_WEIGHT), 0.0))
            ledger.times.add_(found.own)
            ledger.tested.copy_(evaluated & (PHASES[phase] in ("test", "predict")))
        self.has_unjudged = bool((ledger.uses_training_statistics | (ledger.steps_stale > 0)).any()) or bool(
            (moved > 0).any()
            or (evaluated & ~ledger.evaluated[phase]).any()
            or initial.any()
            or (ledger.cold > 0).any()
            or ledger.missed[phase].any()
            or ledger.folded.any()
        )
        ledger.seen[phase] += moved
        ledger.latest[phase] = moved
        ledger.evaluated[phase] |= evaluated

    def _folded(self, evaluated: Tensor, *, inside_a_graph: bool) -> Tensor:
        """Layers that a compiled graph evaluated with constants of an earlier evaluation: ``[L]`` bool."""
        if not (inside_a_graph and freezes_graphs(self._models)):
            self._constants = None
            return torch.zeros_like(evaluated)
        now = read(self._layers, [tensors(m) for m in self._modules])
        if self._constants is None:
            self._constants = now
        first = self._constants
        return evaluated & (now.other_statistics(first, self._layers) | now.other_affine(first, self._layers))

    def _moves(self, counted: Tensor) -> Moves | None:
        """How the values of the running statistics have changed since the evaluation began."""
        began = self._averages.began
        if began is None or not len(self._layers):
            return None
        momenta = [getattr(m, "momentum", None) for m in self._modules]
        momentum = torch.tensor([1.0 if m is None else float(m) for m in momenta], dtype=torch.float64, device="cpu")
        weight = 1 - (1 - momentum.clamp(0, 1)).pow(counted.clamp(min=1))
        return Moves.between(self._layers, began, read(self._layers, [tensors(m) for m in self._modules]), weight)

    def abandon(self) -> None:
        """Drop the evaluation in progress, and remove every hook."""
        if self._phase is None:  # as after every step of a training
            return
        self._before = None
        self._ran, self._meant = {}, set()
        self._averages.abandon()
        self._hooks.remove()
        self._phase = None

    def averaged(self, which: Sequence[int], training: Tensor, auxiliary: Sequence[str]) -> Tensor | None:
        """Return which layers of a model are about to be evaluated with averages of weights in training: ``[L]`` bool.

        Args:
            which: The layers of the model.
            training: ``[L]`` bool, layers in training mode at the last step.
            auxiliary: As in :meth:`end`.

        Returns:
            None if the model's weights are not known to be an average.
        """
        inside = torch.zeros_like(training).index_fill(0, torch.tensor(which, device="cpu"), True)
        copies = self._copies(auxiliary) & inside
        if copies.any():
            return copies & (self._layers.twins(copies, training & ~inside) >= 0)
        return inside & training if self._averages.swapped(which) else None

    def _copies(self, auxiliary: Sequence[str]) -> Tensor:
        known = torch.tensor([*map(bool, auxiliary)] or False, dtype=torch.bool, device="cpu")
        return self._ledger.averaged | known

    def _visit(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def visited(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._ran[layer] = module.training
            if not module.training:
                self._averages.visit(layer)
            if module.training and not self._parents[layer].training:
                self._meant.add(
                    layer
                )  # a model.train() sets both: the user chose this layer, to estimate its statistics
            self._hooks.remove_from(module)

        return visited

    def _awaits_copy(self, copies: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """Copies with the gamma and beta of a new layer, whose twin is in training: a target before its first copy."""
        now = read(self._layers, [tensors(m) for m in self._modules])
        new = ~self._layers.segments.any((now.gamma != 1) | (now.beta != 0))
        trains = (rows["updates"] > 0).any(0) & ~copies
        return copies & new & (self._layers.twins(copies, trains) >= 0)

    @torch.no_grad()
    def _weighted(self) -> bool:
        """Whether a gamma or beta has values that differ: a new layer has only equal ones."""
        affine = [m._parameters.get(name) for m in self._modules for name in ("weight", "bias")]
        return any(bool((p != p[0]).any()) for p in affine if p is not None)

    # -- a training ----------------------------------------------------------------------------------------------------

    def stepped(self, steps: Sequence[int], rows: Mapping[str, Tensor], new: int, sample: Sample | None) -> None:
        """Enter the newest steps of a window into the ledger.

        Args:
            steps: Numbers of the window's steps.
            rows: The window's statistics, ``[T, C]`` and ``[T, L]``.
            new: How many of the steps are new.
            sample: The last sample; its hooks have counted the calls of its step.
        """
        called, initial = self._ledger.called, self._ledger.initial
        if initial.any():
            mean, var = (rows[name][[-min(new + 1, len(steps)), -1]] for name in ("running_mean", "running_var"))
            initial.logical_and_(~self._layers.segments.any((mean[0] != mean[1]) | (var[0] != var[1])))
        if not self._ledger.updated.all():
            self._ledger.updated.logical_or_((rows["updates"][-new:] > 0).any(0))
        if not called.all():
            ran = (rows["updates"][-new:] > 0).any(0) | self._layers.segments.any(~rows["gamma_grad"][-1].isnan())
            if sample is not None:
                ran |= (sample.calls > 0) | (sample.idle > 0)
            called.logical_or_(ran)
        if sample is not None and sample.step != self._sampled and sample.step in steps:
            self._sampled = sample.step
            self._book(sample, rows["updates"][steps.index(sample.step)])

    def _book(self, sample: Sample, updates: Tensor) -> None:
        """Divide the updates of a sampled step into those of the forward and those of a recomputation."""
        ledger = self._ledger
        counts = torch.tensor(self._counting, device="cpu")
        own = (sample.calls + sample.side_calls - sample.eval_calls) * ledger.tracks
        again = torch.minimum(torch.where(counts, (updates - own).clamp(min=0), sample.recomputed), sample.recomputed)
        ledger.expected[_TRAINING] += own
        ledger.seen[_TRAINING] += updates.clamp(min=0)
        ledger.latest[_TRAINING] = updates
        ledger.seen[_RECOMPUTE] += again
        ledger.latest[_RECOMPUTE] = again

    # -- what is known -------------------------------------------------------------------------------------------------

    def ledger(self, steps: int) -> Ledger:
        """Return a copy of the ledger, which later steps do not change."""
        now = self._ledger
        tracks = [bool(getattr(m, "track_running_stats", True)) for m in self._modules]
        if tracks != self._tracks:
            self._tracks = tracks
            now.tracks.copy_(torch.tensor(tracks, dtype=torch.bool, device="cpu"))
        # Between two checks the ledger seldom changes: then the last copy still holds.
        versions = now.versions()
        if versions is None or self._copied is None or self._copied[0] != versions:
            self._copied = versions, now.copied(steps=steps)
        return replace(self._copied[1], steps=steps)

    def reordered(self, layers: LayerTable, modules: Sequence[nn.Module]) -> UpdateLedger:
        """Return the same ledger with its layers in another order."""
        other = UpdateLedger(layers, modules, self._models)
        place = {id(m): i for i, m in enumerate(self._modules)}
        other._ledger = self._ledger.reordered([place[id(m)] for m in modules])
        other.has_unjudged = self.has_unjudged
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Return the ledger as plain tensors."""
        return {name: getattr(self._ledger, name).clone() for name in _KEPT}

    def load(self, state: Mapping[str, Tensor], old: Sequence[int | None]) -> None:
        """Add the counts of an earlier run, as :meth:`state_dict` returned them.

        Args:
            state: The tensors.
            old: The position of each layer in them; None for a new layer.
        """
        state = {_RENAMED.get(name, name): row for name, row in state.items()}
        here = [i for i, j in enumerate(old) if j is not None]
        there = [j for j in old if j is not None]
        for name in (name for name in _KEPT if name in state):
            mine, kept = getattr(self._ledger, name), state[name][..., there]
            if mine.dtype == torch.bool:
                mine[..., here] |= kept
            elif name in ("clean", "gap", "drift"):
                mine[..., here] = kept
            elif name in ("latest", "cold"):
                mine[..., here] = torch.where(mine[..., here] == 0, kept, mine[..., here])
            else:
                mine[..., here] += kept


def _is_average(module: nn.Module) -> bool:
    """Whether a module holds averaged weights: ``AveragedModel``, timm's ``ModelEma`` and their like."""
    return any(c.__name__ == "AveragedModel" or c.__name__.startswith("ModelEma") for c in type(module).__mro__)
