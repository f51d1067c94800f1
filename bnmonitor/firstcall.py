"""A look at a model when an evaluation first calls it: by then the weights that are evaluated have been swapped in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import nn
from torch.utils.hooks import RemovableHandle

from bnmonitor.compiled import when_compiling
from bnmonitor.hooks import Hook


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
