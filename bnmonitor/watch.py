"""From the model to a window: what is read when, in which order, and what it is judged against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnmonitor import baseline
from bnmonitor.activations import Sampler
from bnmonitor.frame import Baseline, Facts, Sample, Window
from bnmonitor.layers import Discovery, LayerTable, discover
from bnmonitor.observer import Observer
from bnmonitor.recorder import Recorder
from bnmonitor.ring import Ring

_KEPT_SAMPLES = 9


class Watch:
    """Records the layers of the models and hands out windows.

    Args:
        models: The models by prefix of their layers' names.
        include: Glob patterns over layer names.
        exclude: Glob patterns over layer names.
        tape: Steps between two reads of the tape.
        window: Steps kept at full resolution.
        sample_every: Cadence of activation samples; 0: never.

    Raises:
        ValueError: A pattern matches no layer.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        *,
        include: Sequence[str],
        exclude: Sequence[str],
        tape: int,
        window: int,
        sample_every: int,
    ) -> None:
        self._models = models
        self._include, self._exclude = include, exclude
        self._tape, self._size, self._sample_every = tape, max(window, tape), sample_every
        self._sampler, self._observer = Sampler(), Observer()
        self._paused_sample = False
        self._evaluations = 0
        self._restored: Mapping[str, Any] | None = None
        self.count = 0
        """Training steps seen."""
        self.unsampled = self._why_unsampled()
        """Why no activation is sampled; empty if it is."""
        self._baseline: Baseline | None = None
        self._take(self._discover(None))

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> LayerTable:
        """The layers, in execution order once a step has been sampled."""
        return self._recorder.layers

    @property
    def steps(self) -> list[int]:
        """Numbers of the steps in the window."""
        return self._ring.steps

    @property
    def waiting(self) -> bool:
        """Whether there is nothing yet but lazy layers, which have no channels before their first forward."""
        return self._lazy > 0

    def rows(self, statistic: str, layer: str) -> Tensor:
        """Return a statistic of a layer over the window: ``[T, channels]``, a copy."""
        span = self.layers.span(self.layers.index(layer))
        return self._ring.view()[statistic][:, span].clone()

    # -- what the training does ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start to watch; layers that were replaced since the last look are found anew."""
        found = self._discover(None)
        # By name, not by module: a layer that was replaced (by SyncBatchNorm, say) keeps its place.
        place = {name: i for i, name in enumerate(self.layers.names)}
        named = zip(found.table.names, found.modules, strict=True)
        found = self._discover({id(m): place[name] for name, m in named if name in place})
        if found.modules != self._recorder.modules or found.table != self.layers:
            self._take(found)
        self.unsampled = self._why_unsampled()
        self._ready()
        self._sample(first=True)

    def end(self) -> None:
        """Leave no hook behind."""
        self._sampler.detach()
        self._observer.detach()

    def step(self, number: int, rate: float) -> None:
        """Record the training step that has just ended."""
        self.count += 1
        self._evaluations = 0
        if self._woke():
            self._ready()
            self._sample(first=True)
            return
        if not len(self.layers):
            return
        if self._sampler.attached:
            self._take_sample(number)
        if self._baseline is None:
            self._baseline = self._first_baseline()
        self._recorder.step(number, rate, self._observer.take())
        self._sample()

    @property
    def full(self) -> bool:
        """Whether the tape must be read before the next step."""
        return self._recorder.full

    def saw_loss(self, loss: Any) -> None:
        """Walk the autograd graph behind a loss, if this step is sampled."""
        self._sampler.walk(loss)

    def pause(self) -> None:
        """An evaluation begins: what happens now is no training."""
        self._evaluations += 1
        self._paused_sample |= self._sampler.attached
        self._sampler.detach()
        self._observer.detach()

    def resume(self) -> None:
        """The evaluation has ended; what it did to the buffers belongs to no step."""
        self._evaluations = max(0, self._evaluations - 1)
        if self._evaluations:
            return
        self._paused_sample |= self._woke()
        self._ready()
        self._sample(first=self._paused_sample)
        self._paused_sample = False

    # -- what is made of it --------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Move the recorded steps from the tape into the window."""
        block = self._recorder.drain()
        if block is not None:
            self._ring.append(block.steps, block.rates, block.rows)
            self._fresh += len(block.steps)

    def window(self, optimizers: Sequence[Optimizer]) -> Window | None:
        """Return the window with everything to judge it by; None before the first step."""
        self.collect()
        if self._baseline is None or not self.steps:
            return None
        return Window(
            layers=self.layers,
            steps=tuple(self.steps),
            baseline=baseline.sampled(self._baseline, self._samples),
            facts=self._facts(optimizers),
            sample=self._samples[-1] if self._samples else None,
            fresh=min(self._fresh, len(self.steps)),
            **self._ring.view(),
        )

    def counted(self, window: Window) -> Window:
        """Count the new steps of a window that is about to be judged."""
        return replace(window, baseline=baseline.counted(window))

    def judged(self, window: Window, held: Tensor) -> None:
        """Let the baseline follow a window that has been judged, but for the layers that are held."""
        self._baseline = baseline.followed(window, held)
        self._fresh = 0

    def state_dict(self) -> dict[str, Any]:
        """Return counters and baseline as plain types and tensors."""
        if self._baseline is None and self._restored is not None:
            return {**self._restored, "count": self.count}
        return {
            "count": self.count,
            "layers": list(self.layers.names),
            "channels": list(self.layers.channels),
            "baseline": self._baseline.save() if self._baseline is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.count = state["count"]
        self._restored = state
        self._baseline = None

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _discover(self, order: Mapping[int, int] | None) -> Discovery:
        return discover(self._models, include=self._include, exclude=self._exclude, order=order)

    def _why_unsampled(self) -> str:
        self._compiled = any(_is_compiled(m) for model in self._models.values() for m in model.modules())
        if not self._sample_every:
            return "needs activation samples, and sample_every_n_steps is 0"
        return "needs activation samples, which torch.compile does not let through" if self._compiled else ""

    def _take(self, found: Discovery) -> None:
        """Make everything that depends on the layers anew."""
        self._lazy = found.lazy
        self._recorder = Recorder(found.table, found.modules, self._tape)
        self._ring = Ring(found.table, self._size, self._recorder.dtype)
        self._baseline = None
        self._samples: list[Sample] = []
        self._fresh = 0

    def _woke(self) -> bool:
        """Take in the lazy layers that a forward has made real; return whether there were any."""
        found = self._discover(None) if self.waiting else None
        if found is None or found.lazy == self._lazy:
            return False
        self._sampler.detach()
        self._take(found)
        return True

    def _sample(self, *, first: bool = False) -> None:
        """Place the hooks if the coming step is to be sampled."""
        if not self.unsampled and (first or self.count % self._sample_every == 0):
            self._sampler.attach(self._recorder.modules, list(self._models.values()))

    def _ready(self) -> None:
        """Note the state that the next step starts from, and let layers without statistics of their own show them."""
        self._recorder.writes_count = not self._compiled and not _distributed()
        self._recorder.mark()
        tracking = zip(self._recorder.modules, self.layers.tracking, strict=True)
        self._observer.attach([] if self.unsampled else [module for module, tracks in tracking if not tracks])

    def _take_sample(self, number: int) -> None:
        order = self._sampler.order
        if not self.steps and order:
            found = self._discover(order)
            if set(found.modules) == set(self._recorder.modules):
                self._recorder = self._recorder.reordered(found.table, found.modules)
                self._ring = Ring(found.table, self._size, self._recorder.dtype)
        sample = self._sampler.take(number, self.layers, self._recorder.modules)
        if sample is not None:
            self._samples = [*self._samples, sample][-_KEPT_SAMPLES:]

    def _first_baseline(self) -> Baseline:
        fresh = baseline.begin(self.layers, *self._recorder.origin())
        saved, self._restored = self._restored, None
        return fresh if saved is None else baseline.restored(fresh, self.layers, saved)

    def _facts(self, optimizers: Sequence[Optimizer]) -> Facts:
        modules = self._recorder.modules
        trained = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
        affine = [
            any(
                p is not None and p.requires_grad and (not optimizers or id(p) in trained)
                for p in (m._parameters.get("weight"), m._parameters.get("bias"))
            )
            for m in modules
        ]
        return Facts(
            affine_trains=torch.tensor(affine, dtype=torch.bool, device="cpu"),
            optimizers=bool(optimizers),
            learning_rates=tuple(self._ring.rates),
            world_size=torch.distributed.get_world_size() if _distributed() else 1,
            structure=self._sampler.structure(modules),
        )


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_compiled(module: nn.Module) -> bool:
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        or module.__dict__.get("_compiler_ctx") is not None
    )
