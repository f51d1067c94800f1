"""Extra forwards in an evaluation: at its beginning, and when it first calls averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from bnmonitor.layers import Hooks
from bnmonitor.sampling.schedule import SampleSchedule
from bnmonitor.window import EvaluationGap


class FirstCall:
    """Hooks on every module that contains a layer, each removed once a module with one of these layers was called."""

    def __init__(self) -> None:
        self._hooks = Hooks()
        self._inside: dict[int, tuple[nn.Module, tuple[int, ...]]] = {}

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
        position = {id(layer): i for i, layer in enumerate(layers)}
        for module in {id(m): m for model in models for m in model.modules()}.values():
            inside = tuple(position[id(m)] for m in module.modules() if id(m) in position)
            if inside and id(module) not in position:
                self._inside[id(module)] = module, inside
                self._hooks.on_call(module, lambda m, args, kwargs: self._called(m, call))

    def detach(self) -> None:
        """Remove every hook."""
        self._hooks.remove()
        self._inside = {}

    def _called(self, module: nn.Module, call: Callable[[nn.Module, tuple[int, ...]], None]) -> None:
        if module.training:
            return
        _, inside = self._inside[id(module)]
        for key, (other, its) in list(self._inside.items()):
            if not {*its}.isdisjoint(inside):
                self._hooks.remove_from(other)
                del self._inside[key]
        call(module, inside)


class EvaluationProbe:
    """Runs the probe of the sampled steps, if the user wants it, where that is possible.

    Args:
        models: The models by prefix of their layers' names.
        sampling: Has the probe, which keeps a batch.
    """

    def __init__(self, models: Mapping[str, nn.Module], sampling: SampleSchedule) -> None:
        self._models, self._sampling = models, sampling
        self._first_call = FirstCall()
        self.collective_reason = ""
        """Why a forward needs all processes; empty if it does not."""
        self.averaged: EvaluationGap | None = None
        """The gap of averaged weights, from when the latest evaluation began to use them."""
        self.has_unjudged = False
        """Whether no rule has judged that yet."""

    @property
    def impossible(self) -> str:
        """Why bnmonitor cannot run an extra forward that the user wants; empty if it can, or if none is wanted."""
        probe = self._sampling.probe
        if probe is not None and self.collective_reason:
            return f"needs an extra forward, which one process cannot run alone: {self.collective_reason}"
        return "" if probe is None else self._sampling.unsampled or probe.failed

    def gaps(self, phase: str, step: int, modules: Sequence[nn.Module], trained: Tensor) -> EvaluationGap | None:
        """Compare the modes of the layers on the kept batch; None where this is not wanted or not possible.

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
            averaged: Gets the positions of a model's layers and returns which of them have averaged weights, ``[L]``
                bool; None if the model's weights are not an average.
        """
        self.averaged = None

        def called(module: nn.Module, inside: Sequence[int]) -> None:
            probe = self._sampling.probe
            if probe is None:
                return
            try:  # the training waits for this, within its own forward
                with torch.inference_mode(False):
                    which = averaged(inside)
                    found = None if which is None else probe.run(step, modules, which.tolist(), inside=module)
            except Exception as error:
                probe.failed = f"needs an extra forward, which failed: {type(error).__name__}: {error}"
                return
            if found is not None:
                self.averaged = found if self.averaged is None else self.averaged.joined(found)
                self.has_unjudged = True

        if self._may(phase):
            self._first_call.attach(self._models.values(), modules, called)

    def detach(self) -> None:
        """Remove every hook."""
        self._first_call.detach()

    def _may(self, phase: str) -> bool:
        return self._sampling.probe is not None and phase in ("validation", "test") and not self.impossible
