"""Extra forwards of an evaluation: when one begins, and as it first calls averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnmonitor.layers import Hook, when_compiling
from bnmonitor.sampling.schedule import SampleSchedule
from bnmonitor.window import EvaluationGap


class FirstCall:
    """Hooks on all that contains a layer, each of which is gone once a part with its layers was called."""

    def __init__(self) -> None:
        self._handles: dict[int, RemovableHandle] = {}
        self._inside: dict[int, tuple[int, ...]] = {}
        self._forget: Callable[[], None] = lambda: None

    def attach(
        self,
        models: Iterable[nn.Module],
        layers: Sequence[nn.Module],
        call: Callable[[nn.Module, tuple[int, ...]], None],
    ) -> None:
        """Place the hooks.

        Args:
            models: The models.
            layers: The layers.
            call: Gets the module that is about to be called in evaluation mode, and the positions of its layers.
        """
        self.detach()
        self._forget = when_compiling(self._release)
        position = {id(layer): i for i, layer in enumerate(layers)}
        for module in {id(m): m for model in models for m in model.modules()}.values():
            inside = tuple(position[id(m)] for m in module.modules() if id(m) in position)
            if inside and id(module) not in position:
                self._inside[id(module)] = inside
                hook = Hook(module, lambda m, args, kwargs: self._called(m, call))
                self._handles[id(module)] = module.register_forward_pre_hook(hook, with_kwargs=True)

    def detach(self) -> None:
        """Take every hook away."""
        self._forget()
        self._forget = lambda: None
        self._release()

    def _release(self) -> None:
        for handle in self._handles.values():
            handle.remove()
        self._handles, self._inside = {}, {}

    def _called(self, module: nn.Module, call: Callable[[nn.Module, tuple[int, ...]], None]) -> None:
        if module.training:
            return
        inside = self._inside[id(module)]
        for key in [key for key, its in self._inside.items() if not {*its}.isdisjoint(inside)]:
            self._handles.pop(key).remove()
            del self._inside[key]
        call(module, inside)


class EvaluationProbe:
    """Asks the probe of the sampled steps, if there is one, where that is wanted and possible.

    Args:
        models: The models by prefix of their layers' names.
        sampling: What keeps a batch.
    """

    def __init__(self, models: Mapping[str, nn.Module], sampling: SampleSchedule) -> None:
        self._models, self._sampling = models, sampling
        self._first_call = FirstCall()
        self.together = ""
        """Why a forward takes all processes; empty if it does not."""
        self.averaged: EvaluationGap | None = None
        """What was told of averaged weights, as the latest evaluation began to use them."""
        self.news = False
        """Whether that has not been judged yet."""

    @property
    def impossible(self) -> str:
        """Why no extra forward can be run, although it is wanted; empty if it can, or is not wanted."""
        probe = self._sampling.probe
        if probe is not None and self.together:
            return f"needs an extra forward, which one process cannot make alone: {self.together}"
        return "" if probe is None else self._sampling.unsampled or probe.failed

    def gaps(self, phase: str, step: int, modules: Sequence[nn.Module], trained: Tensor) -> EvaluationGap | None:
        """Compare the modes of the layers on the kept batch; None where that is not wanted, or not possible.

        Args:
            phase: The evaluation that begins.
            step: The last training step.
            modules: The layers.
            trained: ``[L]`` bool, which of them were in training mode in that step.
        """
        probe = self._sampling.probe
        if probe is None or not self._may(phase):
            return None
        self._sampling.pause()
        return probe.run(step, modules, trained.tolist())

    def begin(
        self, phase: str, step: int, modules: Sequence[nn.Module], averaged: Callable[[Sequence[int]], Tensor | None]
    ) -> None:
        """An evaluation begins: wait for its first call of each model.

        Args:
            phase: Which evaluation.
            step: The last training step.
            modules: The layers.
            averaged: Gets the positions of a model's layers, and says which of them have averaged weights: ``[L]``
                bool; None if the model's weights are no average.
        """
        self.averaged = None

        def called(module: nn.Module, inside: Sequence[int]) -> None:
            probe = self._sampling.probe
            if probe is None:
                return
            try:  # it is the forward of somebody else that waits here
                with torch.inference_mode(False):
                    which = averaged(inside)
                    found = None if which is None else probe.run(step, modules, which.tolist(), inside=module)
            except Exception as error:
                probe.failed = f"needs an extra forward, which failed: {type(error).__name__}: {error}"
                return
            if found is not None:
                self.averaged = found if self.averaged is None else self.averaged.joined(found)
                self.news = True

        if self._may(phase):
            self._first_call.attach(self._models.values(), modules, called)

    def detach(self) -> None:
        """Take every hook away."""
        self._first_call.detach()

    def _may(self, phase: str) -> bool:
        return self._sampling.probe is not None and phase in ("validation", "test") and not self.impossible
