"""A program as a training loop in plain PyTorch, with whatever happens in it."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bnmonitor import Monitor
from bnmonitor.sinks import JsonLines, TensorBoard
from tests.end_to_end.kinds import CHANNELS
from tests.fuzz import parts
from tests.fuzz.events import do
from tests.fuzz.program import Program
from tests.fuzz.truth import Truth

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class Watcher(Protocol):
    """What a run needs of a monitor."""

    def begin_evaluation(self) -> None: ...

    def end_evaluation(self) -> None: ...


class Run:
    """One run of a program: unwatched, watched, or with the truth in the place of the monitor."""

    def __init__(self, program: Program, kind: str, folder: Path) -> None:
        self.program, self.kind, self.folder = program, kind, folder
        torch.manual_seed(program.seed)
        random.seed(program.seed)
        np.random.seed(program.seed % 2**32)
        self.dtype = DTYPES[program.dtype]
        self.model = self._build()
        self.called: Any = self.model
        if program.compiled and kind != "truth":
            self.called = torch.compile(self.model, backend=program.compiled)
        self.optimizers = self._optimizers()
        self.scaler = torch.amp.GradScaler("cpu", enabled=program.optimizer == "scaler")
        self.average: nn.Module | None = None
        if program.average.startswith("averaged"):
            self.average = AveragedModel(self.model, use_buffers="buffers" in program.average)
        self.snapshot = {k: v.clone() for k, v in self.model.state_dict().items() if not _lazy(v)}
        self.handles: list[Any] = []
        self.losses: list[float] = []
        self.outcomes: list[Any] = []
        """What events returned: the same with and without a monitor."""
        self.numbers: list[int] = []
        """The number that the monitor has of each step that ended."""
        self.buffers: list[dict[str, Tensor]] = []
        """The buffers after each step, where the model is compiled."""
        self.frozen = {id(m) for m in self.norms() if getattr(m, "_frozen", False)}
        self.step = -1
        self.monitor: Monitor | None = None
        self.truth: Truth | None = None
        self.input_scale = self.input_shift = 1.0
        self.done: set[int] = set()
        self.prefix = ""

    # -- making it -----------------------------------------------------------------------------------------------------

    def _build(self) -> nn.Module:
        program = self.program
        sample = torch.randn(4, CHANNELS, *parts.SHAPES[program.family])
        compiles = self.kind != "truth"
        built = [parts.part(block, program.family, sample, compiles=compiles) for block in program.blocks]
        model = parts.Net(built)
        if any("Lazy" in block.norm for block in program.blocks) and program.optimizer in ("lbfgs", "two"):
            model(sample)
        model = model.to(self.dtype)
        for block, made in zip(program.blocks, built, strict=True):
            norms = [m for m in made.modules() if _is_norm(m)]
            for norm in norms:
                if "eval" in block.frozen:
                    norm.eval()
                    norm._frozen = True  # type: ignore[assignment]
                if "fixed" in block.frozen:
                    norm.requires_grad_(False)
            if block.hook and norms:
                self.hook(made if block.hook == "block backward" else norms[0], block.hook)
        return model

    def hook(self, module: nn.Module, kind: str) -> Any:
        """Place a hook of the user on a module."""
        if kind == "forward":
            return module.register_forward_hook(_reads)
        if kind == "replacing":
            return module.register_forward_hook(_replaces)
        if kind == "in place":
            return module.register_forward_hook(_writes)
        if kind == "pre":
            return module.register_forward_pre_hook(_reads_input)
        if kind == "pre replacing":
            return module.register_forward_pre_hook(_replaces_input)
        return module.register_full_backward_hook(_scales)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        name, parameters = self.program.optimizer, list(self.model.parameters())
        if name == "adam":
            return [torch.optim.Adam(parameters, lr=0.01)]
        if name == "adamw foreach":
            return [torch.optim.AdamW(parameters, lr=0.01, foreach=True)]
        if name == "rmsprop":
            return [torch.optim.RMSprop(parameters, lr=0.001)]
        if name == "lbfgs":
            return [torch.optim.LBFGS(parameters, lr=0.1, max_iter=2)]
        if name == "two":
            return [torch.optim.SGD(parameters[::2], lr=0.05), torch.optim.Adam(parameters[1::2], lr=0.01)]
        return [torch.optim.SGD(parameters, lr=0.05, momentum=0.9)]

    def norms(self) -> list[nn.Module]:
        """The normalization layers that other code can reach."""
        return [m for m in self.model.modules() if _is_norm(m)]

    def watch(self) -> Monitor:
        """A monitor with the settings of the program."""
        p = self.program
        sinks: Any = {
            "none": [],
            "default": None,
            "console": None,
            "files": [TensorBoard(self.folder), JsonLines(self.folder / "alerts.jsonl")],
        }[p.sinks]
        return Monitor(
            self.model,
            optimizer=self.optimizers,
            log_dir=self.folder if p.sinks in ("default", "files") else None,
            accumulate_grad_batches=p.accumulate,
            scaler=self.scaler if p.optimizer == "scaler" else None,
            check_every_n_steps=p.check,
            sample_every_n_steps=p.sample,
            log_every_n_steps=p.log,
            window=p.window,
            probe=p.probe,
            sinks=sinks,
        )

    # -- running it ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the end, or until something raises."""
        if self.kind == "watched":
            self.monitor = self.watch()
        if self.kind == "truth":
            self.truth = Truth(self.model)
        with self.monitor or contextlib.nullcontext():
            for step in range(self.program.steps):
                self.step = step
                try:
                    self._step()
                except BaseException as error:
                    if not self.program.tolerant:
                        raise
                    self.outcomes.append(_said(error))
                    for optimizer in self.optimizers:
                        optimizer.zero_grad()

    def at(self, place: str) -> None:
        """Let happen what the program has at this place, each event once."""
        for i, event in enumerate(self.program.events):
            if (event.step, event.place) == (self.step, place) and i not in self.done:
                self.done.add(i)
                do(self, event)

    def _step(self) -> None:
        program = self.program
        self.at("start")
        self.model.train()
        for module in self.model.modules():
            if id(module) in self.frozen:
                module.eval()
        if program.optimizer == "lbfgs":
            self._forward_backward(self.batch())
            batch = self.batch()
            self.optimizers[0].step(lambda: self._forward_backward(batch))  # type: ignore[arg-type]
            self._ended()
        else:
            for i in range(program.accumulate):
                batch = self.batch()
                loss = self._forward_backward(batch)
                if i < program.accumulate - 1 and program.step_per_micro_batch:
                    self._ended()
            if program.optimizer == "sam":
                self._forward_backward(batch)
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
                self.scaler.update()
                self.at("optimized")
                optimizer.zero_grad()
            if isinstance(self.average, AveragedModel):
                self.average.update_parameters(self.model)
            self._ended()
            del loss
        self.at("done")
        if program.evaluate_every and (self.step + 1) % program.evaluate_every == 0:
            self.evaluate()

    def batch(self) -> Tensor:
        """The next batch: it draws from all three random states."""
        p = self.program
        size = p.batch + (self.step % 3 if not p.compiled else 0)
        x = torch.randn(size, CHANNELS, *parts.SHAPES[p.family], dtype=torch.float64)
        scale = torch.linspace(0.5, 2.0, CHANNELS, dtype=torch.float64).view(1, -1, *[1] * len(parts.SHAPES[p.family]))
        x = x * scale * self.input_scale * (1 + random.random()) + np.random.rand() * self.input_shift
        return x.to(self.dtype)

    def _forward_backward(self, x: Tensor) -> Tensor:
        self.at("before")
        parts.during_forward(lambda: self.at("forward"))
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.program.autocast):
                out = self.called(x)
        finally:
            parts.during_forward(lambda: None)
        if out.requires_grad:
            out.register_hook(lambda _: self.at("backward"))
        self.at("forwarded")
        loss = parts.loss_of(out)
        self.losses.append(float(loss.detach()))
        self.scaler.scale(loss).backward()
        self.at("backwarded")
        return loss

    def _ended(self) -> None:
        """A training batch has ended."""
        number = len(self.numbers) * 2 if self.program.numbered else len(self.numbers)
        self.numbers.append(number)
        self.keep_buffers()
        if self.monitor is not None:
            loss = self.losses[-1] if self.program.seed % 2 and self.losses else None
            self.monitor.step(number if self.program.numbered else None, loss=loss)
        if self.truth is not None:
            self.truth.step()

    def keep_buffers(self) -> None:
        """Keep what the step that has ended left in the buffers."""
        if self.program.compiles:
            named = self.model.named_buffers()
            self.buffers.append({name: b.detach().clone() for name, b in named if not _lazy(b)})

    # -- evaluations ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def evaluating(self, announced: bool = True) -> Iterator[None]:
        """What a user writes around an evaluation."""
        watchers: list[Watcher] = [w for w in (self.monitor, self.truth) if w is not None]  # type: ignore[misc]
        for watcher in watchers if announced else ():
            watcher.begin_evaluation()
        try:
            yield
        finally:
            for watcher in watchers if announced else ():
                watcher.end_evaluation()

    def evaluate(self) -> None:
        """Evaluate the model, or an average of its weights."""
        program = self.program
        state = torch.random.get_rng_state()
        grad = {"inference": torch.inference_mode, "grad": torch.enable_grad}.get(program.evaluation, torch.no_grad)
        with self.evaluating(program.evaluation != "unannounced"), grad():
            self.at("evaluation")
            model: Any = self.called
            if self.average is not None:
                model = self.average
            elif program.average == "deepcopy":
                model = copy.deepcopy(self.model)
            swapped = None
            if program.average == "swap parameters":
                swapped = [p.detach().clone() for p in self.model.parameters()]
                with torch.no_grad():
                    for parameter in self.model.parameters():
                        parameter.mul_(0.9)
            modes = [(m, m.training) for m in self.model.modules()]
            model.train(program.evaluation == "train mode")
            self.losses.append(float(parts.loss_of(model(self.batch()))))
            for module, mode in modes:
                module.training = mode
            if swapped is not None:
                with torch.no_grad():
                    for parameter, kept in zip(self.model.parameters(), swapped, strict=True):
                        parameter.copy_(kept)
        if self.program.seed % 2:
            torch.random.set_rng_state(state)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, parts.NORM_CLASSES) and not isinstance(module, torch.jit.ScriptModule)


def _lazy(tensor: Any) -> bool:
    return isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _reads(module: nn.Module, args: Any, output: Tensor) -> None:
    output.detach().sum()


def _replaces(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 1.5


def _writes(module: nn.Module, args: Any, output: Tensor) -> None:
    with torch.no_grad():
        output.mul_(1.25)


def _reads_input(module: nn.Module, args: Any) -> None:
    args[0].detach().sum()


def _replaces_input(module: nn.Module, args: Any) -> Any:
    return (args[0] * 1.5 + 0.25, *args[1:])


def _scales(module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
    return tuple(None if g is None else g * 0.5 for g in grad_input)
