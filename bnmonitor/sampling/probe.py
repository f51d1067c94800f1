"""One extra forward on a kept batch, which compares each layer's output in training and in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.layers import Hooks, as_normalized, is_synced, kind_of, recomputing
from bnmonitor.sampling.reach import Reach, global_hooks, modes_active
from bnmonitor.sampling.restoring import keep_generators
from bnmonitor.window import EvaluationGap

MOST_ENTRIES = 4
"""Most calls of a step that are kept; there is one where the model is called as a whole."""


@dataclass(frozen=True)
class _Entry:
    """A call from outside into a part of a model, with copies of its arguments."""

    module: nn.Module
    args: Any
    kwargs: Any
    autocast: tuple[str, torch.dtype] | None


class Probe:
    """Keeps the inputs of a sampled step, and runs them again to compare the modes of each layer.

    Args:
        models: The models by prefix.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models = models
        self._entries: list[_Entry] = []
        self._coming: list[_Entry] = []
        self._inside: nn.Module | None = None
        self._hooks = Hooks()
        self._around = Hooks(outlast_compilation=True)
        """The hooks on wrappers of what is compiled."""
        self.failed = ""
        """Why the extra forward could not run; empty if it could."""

    def attach(self, layers: Sequence[nn.Module]) -> None:
        """Place hooks on every module that contains a layer, to keep what the coming step calls from outside."""
        self.detach()
        wanted = {id(module) for module in layers}
        for module in {id(m): m for model in self._models.values() for m in model.modules()}.values():
            if id(module) not in wanted and any(id(m) in wanted for m in module.modules()):
                self._hooks.on_call(module, self._enter)
                self._hooks.on_forward(module, self._leave, always=True)

    def attach_compiled(self, layers: Sequence[nn.Module]) -> None:
        """Place hooks on the wrappers that ``torch.compile`` put around layers: these are not compiled themselves."""
        self.detach()
        enter, leave = self._enter, self._leave
        wanted = {id(module) for module in layers}
        for module in {id(m): m for model in self._models.values() for m in model.modules()}.values():
            if type(module).__name__ == "OptimizedModule" and any(id(m) in wanted for m in module.modules()):
                self._around.on_call(module, lambda m, args, kwargs: enter(_uncompiled(m), args, kwargs))
                self._around.on_forward(module, lambda m, args, out: leave(_uncompiled(m), args, out), always=True)

    @property
    def refused(self) -> bool:
        """Whether a module was given no hook."""
        return self._hooks.refused

    @property
    def kept(self) -> bool:
        """Whether there is a call to run again."""
        return bool(self._entries)

    def trace(self, sampler: Any, step: int, table: Any, layers: Sequence[nn.Module], trained: Sequence[bool]) -> None:
        """Run the kept calls again as the training step did, for the graph, and restore everything afterwards.

        Args:
            sampler: Places the hooks, and walks the graph.
            step: The last step.
            table: The table of the layers.
            layers: The layers.
            trained: Which of them were in training mode in that step.
        """
        there = {id(module) for model in self._models.values() for module in model.modules()}
        calls, self._entries = [entry for entry in self._entries if id(entry.module) in there], []
        frozen = {id(layer) for layer, training in zip(layers, trained, strict=True) if not training}
        try:
            with _untouched(self._models.values(), calls), torch.inference_mode(False), torch.enable_grad():
                for module in (m for model in self._models.values() for m in model.modules()):
                    vars(module)["training"] = id(module) not in frozen
                sampler.attach(layers, self._models)
                for entry in calls:
                    with ExitStack() as precision:
                        if entry.autocast is not None:
                            precision.enter_context(torch.autocast(entry.autocast[0], entry.autocast[1]))
                        sampler.walk(entry.module(*_copied(entry.args), **_copied(entry.kwargs)))
                sampler.collect(step, table, layers)
                sampler.underway.drop()  # only the graph is wanted: these are no numbers of the training
        except Exception as error:
            self.failed = _why(error)
        finally:
            sampler.detach()
            self._entries = []

    def detach(self) -> None:
        """Remove every hook, and keep the calls of the step for the next extra forward."""
        self._hooks.remove()
        self._around.remove()
        if self._coming:
            self._entries = self._coming
        self._coming, self._inside = [], None

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._inside is not None or recomputing() or not (module.training and torch.is_grad_enabled()):
            return
        self._inside = module
        if len(self._coming) < MOST_ENTRIES:
            self._coming.append(_Entry(module, _copied(args), _copied(kwargs), _autocast(args, kwargs)))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._inside is module:
            self._inside = None

    def run(
        self, step: int, layers: Sequence[nn.Module], trained: Sequence[bool], inside: nn.Module | None = None
    ) -> EvaluationGap | None:
        """Run the kept calls once more, compare the modes, and restore everything afterwards.

        Dropout is off. Each layer computes with the statistics of the batch, and that output goes on to the next
        layers; it also computes with its running statistics.

        Args:
            step: The last step.
            layers: The layers.
            trained: Which of them were in training mode in that step; the others are left alone.
            inside: Call the counterparts in this module of what the step called: copies, or the very same modules.

        Returns:
            None if nothing was kept, or the forward failed.
        """
        synchronized = torch.distributed.is_available() and torch.distributed.is_initialized()
        chosen = {
            id(layer): i
            for i, layer in enumerate(layers)
            if trained[i] and (kind := kind_of(layer)) is not None and kind.normalizes_batch
            if layer._buffers.get("running_mean") is not None and not (synchronized and is_synced(layer))
        }
        there = {id(module) for model in self._models.values() for module in model.modules()}
        self._entries = [entry for entry in self._entries if id(entry.module) in there]
        entries = self._entries
        if inside is not None:
            entries = [replace(entry, module=m) for entry in entries if (m := _stand_in(entry.module, inside))]
        if not entries or not chosen:
            return None
        hooks = Hooks(outlast_compilation=True)
        found: dict[int, Tensor] = {}
        sizes = [0] * len(layers)

        def compare(module: nn.Module, args: Any, output: Any) -> None:
            at = chosen[id(module)]
            if at in found or not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                return
            flags = vars(module)
            flags["training"], flags["track_running_stats"] = False, True
            try:
                still = module.forward(*args)
            finally:
                flags["training"], flags["track_running_stats"] = True, False
            sizes[at] = as_normalized(module, args[0]).shape[0]
            found[at] = (output - still).double().norm() / output.double().norm()

        try:
            with _untouched(self._models.values(), entries), torch.no_grad(), hooks.only_mine():
                for model in self._models.values():
                    for module in model.modules():
                        vars(module)["training"] = False
                for layer in (layers[i] for i in chosen.values()):
                    vars(layer)["training"], vars(layer)["track_running_stats"] = True, False
                    hooks.on_forward(layer, compare)
                for entry in entries:
                    with ExitStack() as precision:
                        if entry.autocast is not None:
                            precision.enter_context(torch.autocast(entry.autocast[0], entry.autocast[1]))
                        entry.module(*_copied(entry.args), **_copied(entry.kwargs))
        except Exception as error:
            self.failed = _why(error)
            return None
        finally:
            hooks.remove()
        gap = torch.full((len(layers),), torch.nan, dtype=torch.float64, device="cpu")
        for at, value in found.items():
            gap[at] = value.cpu()
        return EvaluationGap(step=step, gap=gap, size=torch.tensor(sizes, device="cpu"))


class _UnsafeError(Exception):
    """An extra forward would leave traces."""


def _why(error: Exception) -> str:
    """Why the extra forward did not take place."""
    if isinstance(error, _UnsafeError):
        return f"needs an extra forward, after which bnmonitor could not put everything back: {error}"
    return f"needs an extra forward, which failed: {type(error).__name__}: {error}"


def _uncompiled(module: nn.Module) -> nn.Module:
    inner: nn.Module = module._orig_mod  # type: ignore[assignment]
    return inner


def _stand_in(module: nn.Module, inside: nn.Module) -> nn.Module | None:
    """The counterpart of a module in another: itself, or a part of the same class with tensors of the same shapes."""
    parts = list(inside.modules())
    if any(part is module for part in parts):
        return module
    shape = _shape(module)
    return next((part for part in parts if type(part) is type(module) and _shape(part) == shape), None)


def _shape(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, t.shape) for named in (module.named_parameters(), module.named_buffers()) for name, t in named]


def _copied(value: Any) -> Any:
    """A copy of a nest of tensors, without their graph; anything else is returned as it is."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(_copied(v) for v in value)
    return {k: _copied(v) for k, v in value.items()} if type(value) is dict else value


def _autocast(*values: Any) -> tuple[str, torch.dtype] | None:
    """The autocast type on the device of the first tensor; None without autocast."""
    stack, device = list(values), "cpu"
    while stack:
        value = stack.pop(0)
        if isinstance(value, Tensor):
            device = value.device.type
            break
        stack += list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None


@contextmanager
def _untouched(models: Iterable[nn.Module], entries: Sequence[_Entry]) -> Iterator[None]:
    """Put everything back at the end that the calls can reach, and the modes of all modules.

    Raises:
        _UnsafeError: Something cannot be put back; nothing has run.
    """
    modules = list({id(m): m for model in models for m in model.modules()}.values())
    reach = Reach([part for entry in entries for part in (entry.module, entry.args, entry.kwargs)] + global_hooks())
    if reach.obstacle or modes_active():
        raise _UnsafeError(reach.obstacle or "a mode of the training sees every call of PyTorch")
    own = [vars(m) for m in modules]
    flags = [(mine, key, mine[key]) for mine in own for key in ("training", "track_running_stats") if key in mine]
    generators = keep_generators()
    kept = reach.keep()
    with ExitStack() as undo:  # an error in one of them keeps none of the others back
        for restore in reversed([*kept, *generators]):
            undo.callback(restore)
        for attributes, key, flag in reversed(flags):
            undo.callback(attributes.__setitem__, key, flag)
        yield
