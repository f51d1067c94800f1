"""Who updated the running statistics of each layer: its training, a recomputation in backward, an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnmonitor.layers import Hook, LayerTable, when_compiling
from bnmonitor.recording.averaged_weights import AveragedWeights
from bnmonitor.window import PHASES, Ledger, Sample

_TRAINING, _RECOMPUTE = PHASES.index("training"), PHASES.index("recompute")
_KEPT = ("seen", "expected", "latest", "evaluated", "called", "initial", "borrowed")


@dataclass(frozen=True)
class _State:
    """The buffers as an evaluation found them."""

    counts: Tensor
    counters: tuple[int, ...]
    writes: tuple[int | None, ...]
    copies: Mapping[int, tuple[Tensor, Tensor]]


class UpdateLedger:
    """Keeps the ledger: of evaluations by comparing the buffers before and after, of training by the samples.

    No hook stays on a layer. In an evaluation each layer has one that goes with the layer's first call, to learn
    that it ran, and in which mode.

    Args:
        layers: The table of the layers.
        modules: The modules behind it, in the same order.
        models: The models they are in.
    """

    def __init__(self, layers: LayerTable, modules: Sequence[nn.Module], models: Iterable[nn.Module] = ()) -> None:
        self._layers, self._modules, self._models = layers, tuple(modules), tuple(models)
        parents = {id(child): m for model in self._models for m in model.modules() for child in m.children()}
        self._parents = [parents.get(id(m), m) for m in self._modules]
        self._ledger = Ledger.blank(len(layers))
        averages = [m for model in self._models for m in model.modules() if _is_average(m)]
        within = {id(m): k for k, average in enumerate(averages) for m in average.modules()}
        self._ledger.averaged.copy_(torch.tensor([id(m) in within for m in self._modules], dtype=torch.bool))
        roots = {id(m): k - len(self._models) for k, model in enumerate(self._models) for m in model.modules()}
        self._averages = AveragedWeights(
            layers, self._modules, [within.get(id(m), roots.get(id(m), -1)) + len(self._models) for m in self._modules]
        )
        self._counts = [
            m._buffers.get("num_batches_tracked") is not None and f != "instance"
            for m, f in zip(self._modules, layers.family, strict=True)
        ]
        self._phase: int | None = None
        self._before: _State | None = None
        self._handles: dict[int, RemovableHandle] = {}
        self._ran: dict[int, bool] = {}
        self._meant: set[int] = set()
        self._forget: Callable[[], None] = lambda: None
        self._sampled = -1
        self.news = False
        """Whether an evaluation has shown something that no rule has judged yet."""

    # -- an evaluation -------------------------------------------------------------------------------------------------

    def begin(self, phase: str, *, hooks: bool) -> None:
        """An evaluation begins.

        Args:
            phase: Which, of :data:`~bnmonitor.window.PHASES`.
            hooks: Whether hooks may be placed.
        """
        self.abandon()
        self._phase, self._before = PHASES.index(phase), self._state()
        self._averages.begin()
        if hooks:
            self._forget = when_compiling(self._release)
            for i, module in enumerate(self._modules):
                self._handles[i] = module.register_forward_hook(Hook(module, self._visit(i)))

    def end(
        self,
        *,
        trained: bool,
        compiled: bool,
        rows: Mapping[str, Tensor],
        count: int,
        beside: Sequence[str] = (),
        averaging: bool = False,
    ) -> None:
        """The evaluation has ended.

        Args:
            trained: Whether a training step came before it; else new layers may be evaluated, as a first measurement.
            compiled: Whether the model is compiled, and several updates may be one write to a counter.
            rows: The window's statistics, ``[T, C]`` and ``[T, L]``.
            count: Training steps seen.
            beside: Of each layer the network beside the trained one that it is in, or an empty name; empty: unknown.
            averaging: Whether something averages the weights without the buffers.
        """
        phase, before, ran, meant = self._phase, self._before, self._ran, self._meant
        self._before = None
        if phase is None or before is None:
            self.abandon()
            return
        moved = self._moved(before, compiled=compiled)
        moved[list(meant)] = 0
        ledger = self._ledger
        # Where no hook was called, all that trains is taken to have been evaluated.
        in_eval = [not ran[i] if i in ran else not ran and bool(ledger.called[i]) for i in range(len(self._layers))]
        evaluated = torch.tensor(in_eval, dtype=torch.bool, device="cpu")
        initial = self._initial() & evaluated
        if PHASES[phase] != "sanity" and (trained or (initial.any() and self._weighted())):
            ledger.initial.copy_(torch.where(evaluated, initial, ledger.initial))
        found = self._averages.end(evaluated, self._copies(beside), rows, count, averaging)
        self.abandon()
        for name in ("borrowed", "swapped", "behind", "apart") if found is not None else ():
            row = getattr(ledger, name)
            row.copy_(torch.where(evaluated, getattr(found, name), row))
        self.news = bool((ledger.borrowed | (ledger.behind > 0)).any()) or bool(
            (moved > 0).any() or (evaluated & ~ledger.evaluated[phase]).any() or initial.any()
        )
        ledger.seen[phase] += moved
        ledger.latest[phase] = moved
        ledger.evaluated[phase] |= evaluated

    def abandon(self) -> None:
        """Forget the evaluation that was going on, and take every hook away."""
        self._phase = self._before = None
        self._ran, self._meant = {}, set()
        self._averages.abandon()
        self._release()

    def averaged(self, which: Sequence[int], training: Tensor, beside: Sequence[str]) -> Tensor | None:
        """Which layers of a model are about to be evaluated with averaged weights of layers that train: ``[L]`` bool.

        Args:
            which: The layers of the model.
            training: ``[L]`` bool, layers in training mode at the last step.
            beside: As in :meth:`end`.

        Returns:
            None if the model's weights are no average, as far as can be told.
        """
        inside = torch.zeros_like(training).index_fill(0, torch.tensor(which, device="cpu"), True)
        copies = self._copies(beside) & inside
        if copies.any():
            return copies & (self._averages.twins(copies, training & ~inside) >= 0)
        return inside & training if self._averages.swapped(which) else None

    def _copies(self, beside: Sequence[str]) -> Tensor:
        known = torch.tensor([*map(bool, beside)] or False, dtype=torch.bool, device="cpu")
        return self._ledger.averaged | known

    def _visit(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def visited(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._ran[layer] = module.training
            if not module.training:
                self._averages.visit(layer)
            if module.training and not self._parents[layer].training:
                self._meant.add(layer)  # a model.train() sets both: this layer was picked to estimate anew
            self._handles.pop(layer).remove()

        return visited

    def _release(self) -> None:
        self._forget()
        self._forget = lambda: None
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def _state(self) -> _State:
        counters = [m._buffers.get("num_batches_tracked") for m in self._modules]
        return _State(
            counts=_stacked(counters),
            counters=tuple(map(id, counters)),
            writes=tuple(map(_writes, counters)),
            copies={i: copy for i, counts in enumerate(self._counts) if not counts and (copy := self._copy(i))},
        )

    def _copy(self, layer: int) -> tuple[Tensor, Tensor] | None:
        buffers = self._modules[layer]._buffers
        mean, var = buffers.get("running_mean"), buffers.get("running_var")
        return None if mean is None or var is None else (mean.clone(), var.clone())

    @torch.no_grad()
    def _moved(self, before: _State, *, compiled: bool) -> Tensor:
        """Updates by the layers' own forwards since a state: ``[L]``.

        A counter that was written to less or more often than it has grown was restored, swapped or reset by another
        hand, which is no update. A layer without a counter has had one if its statistics have changed.
        """
        after = self._state()
        grown = (after.counts - before.counts).tolist()
        for i, (count, counts) in enumerate(zip(grown, self._counts, strict=True)):
            old, new = before.writes[i], after.writes[i]
            if not counts:
                a, b = before.copies.get(i), after.copies.get(i)
                changed = a is not None and b is not None and not all(map(torch.equal, a, b))
                grown[i] = int(changed)
            elif (
                count < 0
                or before.counters[i] != after.counters[i]
                or (old is not None and new is not None and not compiled and new - old != count)
            ):
                grown[i] = 0
        return torch.tensor(grown, dtype=torch.int64, device="cpu")

    @torch.no_grad()
    def _initial(self) -> Tensor:
        """Which layers have statistics of exactly 0 and 1: ``[L]`` bool."""
        initial = torch.zeros(len(self._modules), dtype=torch.bool, device="cpu")
        moved: dict[int, Tensor] = {}
        for i, module in enumerate(self._modules):
            mean, var = module._buffers.get("running_mean"), module._buffers.get("running_var")
            if mean is not None and var is not None:
                moved[i] = mean.any() | (var != 1).any()
        if moved:
            device = next(iter(moved.values())).device
            initial[list(moved)] = ~torch.stack([m.to(device) for m in moved.values()]).cpu()
        return initial

    @torch.no_grad()
    def _weighted(self) -> bool:
        """Whether a layer has a gamma or beta that no layer is made with: as made, all its values are the same."""
        affine = [m._parameters.get(name) for m in self._modules for name in ("weight", "bias")]
        return any(bool((p != p[0]).any()) for p in affine if p is not None)

    # -- a training ----------------------------------------------------------------------------------------------------

    def stepped(self, steps: Sequence[int], rows: Mapping[str, Tensor], new: int, sample: Sample | None) -> None:
        """Book the newest steps of a window.

        Args:
            steps: Their numbers.
            rows: Its statistics, ``[T, C]`` and ``[T, L]``.
            new: How many of them are new.
            sample: The last sample, in whose step the hooks have seen who called.
        """
        called, initial = self._ledger.called, self._ledger.initial
        if initial.any():
            mean, var = rows["running_mean"][-1], rows["running_var"][-1]
            initial.logical_and_(~self._layers.segments.any((mean != 0) | (var != 1)))
        if not called.all():
            ran = (rows["updates"][-new:] > 0).any(0) | self._layers.segments.any(~rows["gamma_grad"][-1].isnan())
            if sample is not None:
                ran |= (sample.calls > 0) | (sample.idle > 0)
            called.logical_or_(ran)
        if sample is not None and sample.step != self._sampled and sample.step in steps:
            self._sampled = sample.step
            self._book(sample, rows["updates"][steps.index(sample.step)])

    def _book(self, sample: Sample, updates: Tensor) -> None:
        """Tell the updates of a sampled step by who called: ``[L]``."""
        ledger = self._ledger
        counts = torch.tensor(self._counts, device="cpu")
        own = (sample.calls - sample.eval_calls) * ledger.tracks
        again = torch.minimum(torch.where(counts, (updates - own).clamp(min=0), sample.recomputed), sample.recomputed)
        ledger.expected[_TRAINING] += own
        ledger.seen[_TRAINING] += updates.clamp(min=0)
        ledger.latest[_TRAINING] = updates
        ledger.seen[_RECOMPUTE] += again
        ledger.latest[_RECOMPUTE] = again

    # -- what is known -------------------------------------------------------------------------------------------------

    def ledger(self, steps: int) -> Ledger:
        """Return the ledger as it is now, which later steps do not change."""
        now = self._ledger
        tracks = [bool(getattr(m, "track_running_stats", True)) for m in self._modules]
        now.tracks.copy_(torch.tensor(tracks, dtype=torch.bool, device="cpu"))
        return now.copied(steps=steps)

    def reordered(self, layers: LayerTable, modules: Sequence[nn.Module]) -> UpdateLedger:
        """Return a bookkeeper of the same layers in another order, which goes on from the same ledger."""
        other = UpdateLedger(layers, modules, self._models)
        place = {id(m): i for i, m in enumerate(self._modules)}
        other._ledger = self._ledger.taken([place[id(m)] for m in modules])
        other.news = self.news
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Return the ledger as plain tensors."""
        return {name: getattr(self._ledger, name).clone() for name in _KEPT}

    def load(self, state: Mapping[str, Tensor], old: Sequence[int | None]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Args:
            state: The tensors.
            old: Of each layer its position in them; None for a layer that is new.
        """
        here = [i for i, j in enumerate(old) if j is not None]
        there = [j for j in old if j is not None]
        for name in _KEPT:
            mine, kept = getattr(self._ledger, name), state[name][..., there]
            if mine.dtype == torch.bool:
                mine[..., here] |= kept
            elif name == "latest":
                mine[..., here] = torch.where(mine[..., here] == 0, kept, mine[..., here])
            else:
                mine[..., here] += kept


def _is_average(module: nn.Module) -> bool:
    """Whether a module holds averaged weights: ``AveragedModel``, timm's ``ModelEma`` and their like."""
    return any(c.__name__ == "AveragedModel" or c.__name__.startswith("ModelEma") for c in type(module).__mro__)


def _stacked(counters: Sequence[Tensor | None]) -> Tensor:
    """The counters on the CPU, 0 where there is none: ``[L]`` int64; an average of the weights makes them floats."""
    found = [c for c in counters if c is not None]
    if not found:
        return torch.zeros(len(counters), dtype=torch.int64, device="cpu")
    device, zero = found[0].device, torch.zeros((), dtype=torch.int64, device="cpu")
    counts = [(zero if c is None else c).to(device, torch.int64) for c in counters]
    return torch.stack(counts).cpu()


def _writes(tensor: Tensor | None) -> int | None:
    """How often autograd saw a tensor written to in place; None where it does not know."""
    try:
        return None if tensor is None else tensor._version
    except RuntimeError:  # made in inference mode
        return None
