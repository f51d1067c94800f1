"""Finds the models that a script trains, by hooks that PyTorch has for all modules and all optimizers."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from multiprocessing import parent_process, util
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook, register_module_module_registration_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from bnmonitor.scripts.arrival import when_imported

if TYPE_CHECKING:
    from bnmonitor.scripts.watched import Watched

IDLE = 50
"""A model that was not trained in so many steps of other optimizers is given up when another one is found."""

MOST = 10_000
"""Modules without layers that are remembered before those that are gone are forgotten."""

_NORMS = ("running_mean", "running_var")


class Finder:
    """Finds models in training mode that have normalization layers, and starts to watch each at its first forward.

    The hook on all modules goes when PyTorch begins to compile, as it would be traced.

    Args:
        log_dir: The directory for the history of the first model; those of further ones are in it.
        quiet: Whether nothing is to be printed.
        others: Optimizers of what was trained before, which may still be in memory.
    """

    def __init__(self, log_dir: Path, *, quiet: bool, others: Iterable[Optimizer] = ()) -> None:
        self._log_dir, self._quiet = log_dir, quiet
        self._before = WeakSet(others)
        self._process, self._thread = os.getpid(), threading.get_ident()
        self._busy = self._closed = False
        self.watched: list[Watched] = []
        """The models under watch."""
        self._roots: dict[int, Watched] = {}
        self._inner: set[int] = set()
        self._others: dict[int, ref[nn.Module]] = {}
        self._optimizers: dict[int, tuple[ref[Optimizer], list[Watched]]] = {}
        self._found = 0
        self._steps = 0
        self._started = 0
        self._averages: list[ref[nn.Module]] = []
        self._left = False
        self._handles = [
            register_module_forward_pre_hook(self._called),
            register_module_module_registration_hook(self._registered),
            register_optimizer_step_post_hook(self._stepped),
        ]
        self._compiling = False
        self._end_of_compiling: Callable[[], None] | None = None
        when_imported("torch._dynamo.callback", self._await_compilations)

    # -- what PyTorch calls --------------------------------------------------------------------------------------------

    def _called(self, module: nn.Module, args: Any) -> None:
        """A module is about to run."""
        key = id(module)
        if key in self._inner or torch.compiler.is_compiling():
            return
        known = self._roots.get(key)
        if known is not None:
            if not self._busy and os.getpid() == self._process:
                self._guarded(known.called)
            return
        other = self._others.get(key)
        if other is not None and other() is module:
            return
        if not self._busy and os.getpid() == self._process and threading.get_ident() == self._thread:
            self._guarded(self._look, module)

    def _registered(self, module: nn.Module, name: str, submodule: Any) -> None:
        """A module becomes part of one that averages, or of torch.compile's, which warns of hooks on all modules."""
        kind = type(module).__name__
        if name == "_orig_mod" and kind == "OptimizedModule":
            self._compiles()
        elif name == "module" and (kind == "AveragedModel" or kind.startswith("ModelEma")):
            self._averages.append(ref(module))

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer has made a step."""
        if torch.compiler.is_compiling() or self._busy or os.getpid() != self._process:
            return
        self._guarded(self._step, optimizer)

    def _compiles(self) -> None:
        """Something is compiled: models are not found any more by being called."""
        self._compiling = True
        self._handles[0].remove()

    def _await_compilations(self) -> None:
        from bnmonitor.layers import when_compiling

        self._end_of_compiling = when_compiling(self._compiles)

    def _guarded(self, call: Callable[..., None], *args: Any) -> None:
        """Call a function that lets no error through, and within which no hook does anything.

        A script may evaluate in inference mode: what is made there could not be written to in training. To leave it
        would also turn the gradients on, by whose absence an evaluation is known.
        """
        self._busy, gradients = True, torch.is_grad_enabled()
        try:
            with torch.inference_mode(False), torch.set_grad_enabled(gradients):
                call(*args)
        except Exception as error:
            self._fail(error)
        finally:
            self._busy = False

    def _fail(self, error: Exception) -> None:
        for handle in self._handles:
            handle.remove()
        self._roots, self._inner = {}, set()
        if not self._quiet:
            with suppress(Exception):
                sys.stderr.write(f"bnmonitor stopped watching: {type(error).__name__}: {error}\n")

    # -- models --------------------------------------------------------------------------------------------------------

    def _look(self, module: nn.Module) -> None:
        """Watch a module that is not known, if it trains normalization layers; or take it as an average of one."""
        if getattr(module, "_is_replica", False) or torch._C._get_tracing_state() is not None:
            return
        layers = _layers(module)
        if not layers:
            if len(self._others) > MOST:
                self._others = {key: other for key, other in self._others.items() if other() is not None}
            self._others[id(module)] = ref(module)
            return
        if any(part is module for root in self.watched for part in root.parts()):
            self._inner.add(id(module))  # it replaced another since the model was found
            return
        if not any(layer.training for layer in layers):
            for root in self.watched:
                if root.may_average(module, layers):
                    root.average_called(module)
                    self._know(root)
                    return
            return
        if torch.is_grad_enabled():
            self._watch(module)

    def _watch(self, module: nn.Module) -> None:
        """Begin to watch a model."""
        from bnmonitor.scripts.watched import Watched, watched_by_others

        if _rank() != 0:
            self._others[id(module)] = ref(module)
            self._left = True
            return
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            self._inner.add(id(module))
            module = module.module
        if watched_by_others(module, [each.monitor for each in self.watched]):
            self._others[id(module)] = ref(module)
            self._left = True
            return
        parts = {id(part) for part in module.modules()}
        for each in list(self.watched):
            if id(each.model) in parts or self._steps - each.last_step > IDLE:
                self._drop(each)
        self._found += 1
        name = type(module).__name__
        folder = self._log_dir if self._found == 1 else self._log_dir / f"{name}-{self._found}"
        if self._found == 1 and not self._quiet:
            _quiet_log()
        found = Watched(module, folder, quiet=self._quiet, averages=self._copies())
        for optimizer in optimizers_in_memory():  # all of a training are made before its first forward, as a rule
            if optimizer not in self._before:
                found.trained_by(optimizer)
        self.watched.append(found)
        self._roots[id(module)] = found
        self._know(found)
        self._optimizers = {}

    def _copies(self) -> list[nn.Module]:
        """Averages that were made since this was asked last."""
        made, self._averages = self._averages, []
        return [module for each in made if (module := each()) is not None and _layers(module)]

    def _know(self, watched: Watched) -> None:
        """Note the parts of a model and of its averages, which are called within these."""
        self._inner |= {id(part) for part in watched.parts()}
        self._inner -= {id(whole) for whole in watched.wholes}

    def _drop(self, watched: Watched) -> None:
        """Watch a model no more."""
        watched.close()
        if not watched.trained and watched is self.watched[-1]:
            self._found -= 1  # a part that ran by itself before the whole, as when a model is traced
        self.watched.remove(watched)
        self._roots.pop(id(watched.model), None)
        self._inner -= {id(part) for part in watched.parts()}
        self._optimizers = {}

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _step(self, optimizer: Optimizer) -> None:
        from bnmonitor.scripts.watched import monitors_started

        self._steps += 1
        if monitors_started() != self._started:  # one of the script's own may have begun to watch the same
            self._started = monitors_started()
            for each in list(self.watched):
                if each.claimed([other.monitor for other in self.watched]):
                    self._drop(each)
                    self._others[id(each.model)] = ref(each.model)
            self._started = monitors_started()
        for module in self._copies() if self._averages else ():
            for each in self.watched:
                if each.takes(module):
                    self._know(each)
                    break
        known = self._optimizers.get(id(optimizer))
        if known is None or known[0]() is not optimizer:
            known = self._optimizers[id(optimizer)] = ref(optimizer), self._trained_by(optimizer)
        for each in known[1]:
            each.stepped(optimizer, self._steps)
            if self._compiling:
                each.listen(self._guarded)

    def _trained_by(self, optimizer: Optimizer) -> list[Watched]:
        """The models that an optimizer trains; those that are compiled begin to be watched here."""
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        found = self._having(trained)
        if not found and self._compiling:  # models are not found by being called: the first step is missed
            for model in _in_memory(trained):
                if not {id(model)} & (self._roots.keys() | self._inner | self._others.keys()):
                    self._watch(model)
            found = self._having(trained)
        for each in found:
            each.trained_by(optimizer)
        return found

    def _having(self, parameters: set[int]) -> list[Watched]:
        return [each for each in self.watched if any(id(p) in parameters for p in each.model.parameters())]

    def close(self) -> None:
        """Close the watch of every model, and say where the history is."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = self._busy = True
        for handle in self._handles:
            handle.remove()
        if self._end_of_compiling is not None:
            self._end_of_compiling()
        for each in self.watched:
            try:
                each.close()
            except Exception as error:
                self._fail(error)
        if self._steps and not (self._found or self._left or self._quiet) and _rank() == 0:
            sys.stderr.write("bnmonitor: no model with a BatchNorm layer was trained here\n")


def _layers(module: nn.Module) -> list[nn.Module]:
    """The normalization layers of a module, as bnmonitor watches them."""
    if not any(name in part._buffers for part in module.modules() for name in _NORMS):
        return []
    from bnmonitor.layers import norms

    return norms([module])


def optimizers_in_memory() -> list[Optimizer]:
    """Every optimizer of the process."""
    found = [each for each in gc.get_objects() if issubclass(type(each), Optimizer)]
    return [each for each in found if getattr(each, "param_groups", None)]


def _in_memory(trained: set[int]) -> list[nn.Module]:
    """The models of the process that have layers and one of some parameters, but not those within another of them."""
    modules = [each for each in gc.get_objects() if issubclass(type(each), nn.Module)]
    every = [each for each in modules if type(each).__name__ != "OptimizedModule"]
    having = [each for each in every if any(id(p) in trained for p in each.parameters()) and _layers(each)]
    inside = {id(part) for each in having for part in each.modules() if part is not each}
    return [each for each in having if id(each) not in inside]


def _rank() -> int:
    """Which process of a training of several this is."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    given = os.environ.get("RANK", "0")
    return int(given) if given.isdecimal() else 0


def _quiet_log() -> None:
    """Keep records of incidents, which are printed here, out of the script's own log."""
    import logging

    logging.getLogger("bnmonitor").propagate = False


def new_directory() -> Path:
    """Where the history goes: what the user named, or a new directory by script and time."""
    given = os.environ.get("BNMONITOR_LOG_DIR")
    if given:
        return Path(given)
    arguments = getattr(sys, "orig_argv", sys.argv)
    module = arguments[arguments.index("-m") + 1 :][:1] if "-m" in arguments else []
    script = module[0] if module else Path(sys.argv[0] if sys.argv and sys.argv[0] else "python").stem
    name = f"{''.join(c if c.isalnum() or c in '._-' else '_' for c in script)}-{datetime.now():%Y%m%d-%H%M%S}"
    found = Path.cwd() / "bnmonitor_runs" / name
    number = 1
    while found.exists():
        number += 1
        found = found.with_name(f"{name}-{number}")
    return found


_finder: Finder | None = None


def begin() -> None:
    """Begin to look for models in this process; once."""
    global _finder
    if _finder is None:
        _finder = Finder(new_directory(), quiet=os.environ.get("BNMONITOR_QUIET", "0") not in ("", "0"))
        atexit.register(_finder.close)
        if parent_process() is not None:  # a process of multiprocessing ends without the functions of atexit
            util.Finalize(None, _finder.close, exitpriority=1000)
