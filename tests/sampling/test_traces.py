"""A training with ``probe=True`` ends with the same bits as without a monitor, wherever its forward keeps a state."""

from __future__ import annotations

import array
import contextvars
import functools
import hashlib
import itertools
import queue
import random
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from bnmonitor import Monitor
from bnmonitor.sampling import restoring
from bnmonitor.sampling.reach import Reach
from bnmonitor.sampling.restoring import lack_of_memory
from tests.watching import EvaluationWindows

COUNT = 0
LIST: list[Any] = []
DICT: dict[str, int] = {}
TENSOR = torch.zeros(3)
COUNTER = itertools.count(1)
VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("calls", default=0)
UNSET: contextvars.ContextVar[int] = contextvars.ContextVar("unset")


def mark(number: float) -> float:
    """A factor that makes the parameters depend on a state."""
    return 1 + 1e-3 * float(number)


class Base(nn.Module):
    """A network whose forward has a state; :meth:`also` uses it, and :meth:`seen` returns it."""

    refused: ClassVar[str] = ""
    """What the reason says if the extra forward is not run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        self.extra()

    def extra(self) -> None:
        pass

    def also(self, x: Tensor) -> Tensor:
        return x

    def seen(self) -> Any:
        return None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.also(x))
        return out


KINDS: dict[str, type[Base]] = {}


def kind(cls: type[Base]) -> type[Base]:
    KINDS[cls.__name__] = cls
    return cls


# -- what a module holds -----------------------------------------------------------------------------------------------


@kind
class Nothing(Base):
    pass


@kind
class HiddenInList(Base):
    def extra(self) -> None:
        self.hidden = [nn.BatchNorm2d(3)]

    def also(self, x: Tensor) -> Tensor:
        return x + 0.01 * self.hidden[0](x)

    def seen(self) -> Any:
        return self.hidden[0].running_mean


@kind
class HiddenInDict(Base):
    def extra(self) -> None:
        self.__dict__["hidden"] = {"bn": nn.BatchNorm2d(3)}

    def also(self, x: Tensor) -> Tensor:
        return x + 0.01 * self.hidden["bn"](x)

    def seen(self) -> Any:
        return self.hidden["bn"].running_mean


@kind
class HiddenInTuple(Base):
    def extra(self) -> None:
        self.hidden = (frozenset({nn.BatchNorm2d(3)}),)

    def also(self, x: Tensor) -> Tensor:
        (norm,) = self.hidden[0]
        return x + 0.01 * norm(x)

    def seen(self) -> Any:
        return next(iter(self.hidden[0])).running_mean


@kind
class Count(Base):
    def extra(self) -> None:
        self.calls = 0

    def also(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * mark(self.calls)

    def seen(self) -> Any:
        return self.calls


@kind
class ComputedName(Base):
    def also(self, x: Tensor) -> Tensor:
        name = "_".join(["calls", str(x.dim())])
        setattr(self, name, getattr(self, name, 0) + 1)
        return x * mark(getattr(self, name))

    def seen(self) -> Any:
        return self.calls_4


@kind
class Queue(Base):
    def extra(self) -> None:
        self.register_buffer("queue", torch.zeros(8, 3))
        self.ptr = 0

    def also(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.queue[self.ptr % 8] = x.mean((0, 2, 3))
            self.ptr += 1
        return x + self.queue.mean()

    def seen(self) -> Any:
        return self.ptr, self.queue


@kind
class GrowingBuffer(Base):
    def extra(self) -> None:
        self.register_buffer("bank", torch.zeros(0, 3))

    def also(self, x: Tensor) -> Tensor:
        self.bank = torch.cat([self.bank, x.detach().mean((2, 3))])
        return x * mark(len(self.bank))

    def seen(self) -> Any:
        return self.bank


@kind
class ResizedTensor(Base):
    def extra(self) -> None:
        self.bank = torch.zeros(1)

    def also(self, x: Tensor) -> Tensor:
        self.bank.resize_(len(self.bank) + 1)[-1] = float(len(self.bank))
        return x * mark(self.bank.sum())

    def seen(self) -> Any:
        return self.bank


@kind
class PlainTensor(Base):
    def extra(self) -> None:
        self.ema = torch.zeros(3)

    def also(self, x: Tensor) -> Tensor:
        self.ema.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
        return x + self.ema[:, None, None]

    def seen(self) -> Any:
        return self.ema


@kind
class WrittenWeights(Base):
    def also(self, x: Tensor) -> Tensor:
        self.net[4].weight.data.mul_(0.99)
        return x


@kind
class NewAttribute(Base):
    def also(self, x: Tensor) -> Tensor:
        if not hasattr(self, "first"):
            self.first = x.mean().item()
        self.last = x.mean().item()
        return x * mark(self.last - self.first)

    def seen(self) -> Any:
        return self.first, self.last


@kind
class ListOfLosses(Base):
    def extra(self) -> None:
        self.losses: list[Tensor] = []

    def also(self, x: Tensor) -> Tensor:
        self.losses.append(x.mean())
        return x

    def seen(self) -> Any:
        return self.losses


@kind
class Containers(Base):
    def extra(self) -> None:
        self.recent: deque[int] = deque(maxlen=3)
        self.shapes: Counter[Any] = Counter()
        self.by_size: defaultdict[int, list[int]] = defaultdict(list)
        self.order: OrderedDict[int, int] = OrderedDict()
        self.known: set[int] = set()
        self.raw, self.numbers, self.array = bytearray(1), array.array("i", [0]), np.zeros(2)

    def also(self, x: Tensor) -> Tensor:
        n = sum(self.shapes.values())
        self.recent.append(n)
        self.shapes[tuple(x.shape)] += 1
        self.by_size[len(x)].append(n)
        self.order[n % 3] = n
        self.order.move_to_end(n % 3)
        self.known.add(n)
        self.raw.append(1)
        self.numbers.append(n)
        self.array += n
        return x * mark(n + len(self.known) + len(self.raw) + len(self.numbers) + self.array[0])

    def seen(self) -> Any:
        lists = [list(self.recent), list(self.numbers), list(self.raw), list(self.order.items()), self.array.tolist()]
        return lists, dict(self.shapes), dict(self.by_size), sorted(self.known)


class Slotted:
    __slots__ = ("__own", "number")

    def __init__(self) -> None:
        self.number = self.__own = 0

    def __call__(self) -> int:
        self.number += 1
        self.__own += 1
        return self.number + self.__own


@dataclass
class Record:
    history: list[int] = field(default_factory=list)
    inner: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(calls=0))


@kind
class Objects(Base):
    def extra(self) -> None:
        self.slotted, self.record = Slotted(), Record()

    def also(self, x: Tensor) -> Tensor:
        self.record.history.append(self.slotted())
        self.record.inner.calls += 1
        return x * mark(self.slotted.number + self.record.inner.calls)

    def seen(self) -> Any:
        return self.slotted.number, self.record.history, self.record.inner.calls


class Countdown:
    """A descriptor that keeps its values by object."""

    def __init__(self) -> None:
        self.values: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __get__(self, owner: Any, _: type) -> int:
        self.values[owner] = self.values.get(owner, 100) - 1
        return self.values[owner]


@kind
class Descriptor(Base):
    left = Countdown()

    def also(self, x: Tensor) -> Tensor:
        return x * mark(self.left)

    def seen(self) -> Any:
        return self.left


# -- iterators and generators ------------------------------------------------------------------------------------------


@kind
class Toggle(Base):
    def extra(self) -> None:
        self.turn = itertools.cycle([1.0, 2.0])
        self.numbers = [itertools.count(), iter(range(1000))]

    def also(self, x: Tensor) -> Tensor:
        return x * next(self.turn) * mark(sum(map(next, self.numbers)))

    def seen(self) -> Any:
        return next(self.turn), [*map(next, self.numbers)]


@kind
class CycledParts(Base):
    def extra(self) -> None:
        self.parts = [nn.BatchNorm2d(3), nn.Identity()]
        self.turn = itertools.cycle(self.parts)

    def also(self, x: Tensor) -> Tensor:
        out: Tensor = x + 0.1 * next(self.turn)(x)
        return out

    def seen(self) -> Any:
        return self.parts[0].running_mean, self.parts.index(next(self.turn))


@kind
class BoundNext(Base):
    refused = "cycle"

    def extra(self) -> None:
        self.turn = (itertools.cycle([1.0, 2.0]),)

    def also(self, x: Tensor) -> Tensor:
        return x * next(self.turn[0])

    def seen(self) -> Any:
        return next(self.turn[0])


@kind
class MethodOfIterator(Base):
    refused = "cycle"

    def extra(self) -> None:
        self.turn = itertools.cycle([1.0, 2.0]).__next__

    def also(self, x: Tensor) -> Tensor:
        return x * self.turn()

    def seen(self) -> Any:
        return self.turn()


@kind
class GeneratorObject(Base):
    refused = "GeneratorObject.turn, an object of generator"

    def extra(self) -> None:
        def numbers() -> Iterator[float]:
            yield from map(mark, itertools.count())

        self.turn = numbers()

    def also(self, x: Tensor) -> Tensor:
        return x * next(self.turn)

    def seen(self) -> Any:
        return next(self.turn)


@kind
class OpenFile(Base):
    refused = "OpenFile.file, an object of"

    def extra(self) -> None:
        self.file = Path("/dev/null").open("w")  # noqa: SIM115

    def also(self, x: Tensor) -> Tensor:
        self.file.write("x")
        return x


@kind
class QueueOfThreads(Base):
    refused = "QueueOfThreads.queue, an object of SimpleQueue"

    def extra(self) -> None:
        self.queue: queue.SimpleQueue[int] = queue.SimpleQueue()

    def also(self, x: Tensor) -> Tensor:
        self.queue.put(1)
        return x * mark(self.queue.qsize())

    def seen(self) -> Any:
        return self.queue.qsize()


@kind
class HashObject(Base):
    refused = "whose state cannot be read"

    def extra(self) -> None:
        self.digest = hashlib.sha256()

    def also(self, x: Tensor) -> Tensor:
        self.digest.update(b"x")
        return x * mark(self.digest.digest()[0])

    def seen(self) -> Any:
        return self.digest.hexdigest()


@kind
class OwnGenerators(Base):
    def extra(self) -> None:
        self.generators = [torch.Generator().manual_seed(0)]
        self.numpy, self.old, self.python = np.random.default_rng(0), np.random.RandomState(0), random.Random(0)

    def also(self, x: Tensor) -> Tensor:
        drawn = float(self.numpy.random()) + float(self.old.rand()) + self.python.random()
        return x + 0.01 * drawn * torch.rand(x.shape, generator=self.generators[0])

    def seen(self) -> Any:
        return self.generators[0].get_state(), self.numpy.random(), self.old.rand(), self.python.random()


@kind
class ProcessGenerators(Base):
    def also(self, x: Tensor) -> Tensor:
        return x + 0.01 * float(np.random.rand()) * random.random() * torch.rand_like(x)

    def seen(self) -> Any:
        return float(np.random.rand()), random.random(), torch.rand(1)


# -- functions, closures, globals and classes --------------------------------------------------------------------------


def counting(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    calls, history = 0, []

    @functools.wraps(function)
    def wrapped(self: Any, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        history.append(calls)
        return function(self, x * mark(calls + len(history)))

    wrapped.state = lambda: (calls, list(history))  # type: ignore[attr-defined]
    return wrapped


@kind
class Closure(Base):
    def extra(self) -> None:
        numbers: list[int] = []

        def factor() -> float:
            numbers.append(1)
            return mark(len(numbers))

        self.factor, self.numbers = factor, lambda: len(numbers)

    def also(self, x: Tensor) -> Tensor:
        return x * self.factor()

    def seen(self) -> Any:
        return self.numbers()


@kind
class ClosureOfIterator(Base):
    def extra(self) -> None:
        numbers = itertools.count()
        self.factor = lambda: mark(next(numbers))

    def also(self, x: Tensor) -> Tensor:
        return x * self.factor()

    def seen(self) -> Any:
        return self.factor()


@kind
class Decorated(Base):
    def extra(self) -> None:
        type(self).also = counting(Base.also)  # type: ignore[method-assign]

    def seen(self) -> Any:
        return type(self).also.state()  # type: ignore[attr-defined]


@kind
class PartialAndBuiltin(Base):
    def extra(self) -> None:
        self.losses: list[float] = []
        self.record, self.grown = self.losses.append, functools.partial(self._grow, [])

    def _grow(self, held: list[int], amount: int) -> int:
        held.append(amount)
        return len(held)

    def also(self, x: Tensor) -> Tensor:
        self.record(1.0)
        return x * mark(len(self.losses) + self.grown(1))

    def seen(self) -> Any:
        return self.losses, self.grown(1)


def defaulted(value: int, held: list[int] = []) -> int:  # noqa: B006
    held.append(value)
    defaulted.calls = getattr(defaulted, "calls", 0) + 1  # type: ignore[attr-defined]
    return len(held) + int(defaulted.calls)  # type: ignore[attr-defined]


@kind
class DefaultsAndFunctionAttributes(Base):
    def extra(self) -> None:
        defaulted.__defaults__[0].clear()  # type: ignore[index]
        vars(defaulted).clear()

    def also(self, x: Tensor) -> Tensor:
        return x * mark(defaulted(1))

    def seen(self) -> Any:
        return defaulted(1)


def global_factor() -> float:
    global COUNT
    COUNT += 1
    LIST.append(COUNT)
    DICT["calls"] = DICT.get("calls", 0) + 1
    TENSOR.add_(1)
    return mark(COUNT + len(LIST) + DICT["calls"] + float(TENSOR[0]) + next(COUNTER))


@kind
class Globals(Base):
    def extra(self) -> None:
        global COUNT, COUNTER
        COUNT, COUNTER = 0, itertools.count(1)
        LIST.clear()
        DICT.clear()
        TENSOR.zero_()

    def also(self, x: Tensor) -> Tensor:
        return x * global_factor()

    def seen(self) -> Any:
        return COUNT, len(LIST), dict(DICT), TENSOR.clone(), next(COUNTER)


@kind
class GlobalsByName(Base):
    refused = "could not put everything back"  # any variable of the Python module may be meant

    def extra(self) -> None:
        globals().pop("_made", None)

    def also(self, x: Tensor) -> Tensor:
        globals()["_made"] = globals().get("_made", 0) + 1
        return x * mark(globals()["_made"])

    def seen(self) -> Any:
        return globals()["_made"]


@kind
class ClassState(Base):
    calls: ClassVar[int] = 0
    held: ClassVar[list[int]] = []

    def extra(self) -> None:
        ClassState.calls = 0
        ClassState.held.clear()

    def also(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        self.held.append(1)
        return x * mark(self.calls + len(self.held))

    def seen(self) -> Any:
        return ClassState.calls, len(ClassState.held)


class Straight(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Straight.calls += 1
        return x * mark(Straight.calls)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


@kind
class AutogradFunction(Base):
    def extra(self) -> None:
        Straight.calls = 0

    def also(self, x: Tensor) -> Tensor:
        out: Tensor = Straight.apply(x)  # type: ignore[no-untyped-call]
        return out

    def seen(self) -> Any:
        return Straight.calls


@kind
class ThreadLocal(Base):
    def extra(self) -> None:
        self.local = threading.local()
        self.local.calls = 0

    def also(self, x: Tensor) -> Tensor:
        self.local.calls += 1
        return x * mark(self.local.calls)

    def seen(self) -> Any:
        return self.local.calls


@kind
class ContextVariable(Base):
    def extra(self) -> None:
        VARIABLE.set(0)

    def also(self, x: Tensor) -> Tensor:
        VARIABLE.set(VARIABLE.get() + 1)
        return x * mark(VARIABLE.get())

    def seen(self) -> Any:
        return VARIABLE.get()


@kind
class UnsetContextVariable(Base):
    refused = "UNSET, a ContextVar without a value"

    def also(self, x: Tensor) -> Tensor:
        return x * mark(UNSET.get(0))


# -- hooks and parts ---------------------------------------------------------------------------------------------------


@kind
class Hooked(Base):
    def extra(self) -> None:
        self.outside, outside = lambda: list(outside), []  # type: ignore[var-annotated]
        self.net[0].register_forward_hook(lambda module, args, out: outside.append(1))
        self.net[2].register_forward_pre_hook(self.before)
        self.before_calls = 0

    def before(self, module: nn.Module, args: Any) -> Any:
        self.before_calls += 1
        return (args[0] * mark(self.before_calls),)

    def seen(self) -> Any:
        return self.outside(), self.before_calls


@kind
class OwnerOutside(Base):
    """The state is in an object that holds the module weakly, as trainers do."""

    def extra(self) -> None:
        owner = SimpleNamespace(calls=0)

        class Weak:
            pass

        keeper = Weak()
        keeper.owner = owner  # type: ignore[attr-defined]
        self._alive, self.ref = [keeper], weakref.ref(keeper)

    def also(self, x: Tensor) -> Tensor:
        owner = self.ref().owner  # type: ignore[union-attr]
        owner.calls += 1
        return x * mark(owner.calls)

    def seen(self) -> Any:
        return self.ref().owner.calls  # type: ignore[union-attr]


@kind
class SpectralNorm(Base):
    def extra(self) -> None:
        self.part = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1))

    def also(self, x: Tensor) -> Tensor:
        out: Tensor = self.part(x)
        return out

    def seen(self) -> Any:
        return self.part.parametrizations.weight[0]._u


@kind
class OldSpectralNorm(Base):
    def extra(self) -> None:
        self.part = nn.utils.spectral_norm(nn.Conv2d(3, 3, 1))

    def also(self, x: Tensor) -> Tensor:
        out: Tensor = self.part(x)
        return out

    def seen(self) -> Any:
        return self.part.weight_u


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.001 * self.calls)


@kind
class Scripted(Base):
    refused = "Scripted._modules['part'], an object of RecursiveScriptModule"

    def extra(self) -> None:
        self.part = torch.jit.script(Counts())

    def also(self, x: Tensor) -> Tensor:
        out: Tensor = self.part(x)
        return out

    def seen(self) -> Any:
        return self.part.calls


@kind
class Unused(Base):
    """What the forward does not mention is no obstacle."""

    def extra(self) -> None:
        self.trainer = SimpleNamespace(loader=iter(lambda: 1, 2), file=Path("/dev/null").open())  # noqa: SIM115
        self.numbers = (i for i in range(3))

    def log_something(self) -> Any:
        return self.trainer, next(self.numbers)

    def seen(self) -> Any:
        return next(self.numbers)


# -- the training ------------------------------------------------------------------------------------------------------


def bits(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().contiguous().flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, list | tuple) else value


def train(cls: type[Base], probe: bool) -> tuple[Any, Any, Any]:
    random.seed(0)
    np.random.seed(0)
    model = cls()
    torch.manual_seed(1)
    optimizer, rule, monitor = torch.optim.SGD(model.parameters(), 0.01), EvaluationWindows(), None
    if probe:
        settings: dict[str, Any] = {"sample_every_n_steps": 4, "check_every_n_steps": 2, "rules": [rule]}
        monitor = Monitor(model, probe=True, sinks=[], on_alert="log", optimizer=optimizer, **settings).start()
    for step in range(12):
        optimizer.zero_grad()
        model(torch.randn(8, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        if monitor:
            monitor.step()
        if step % 6 == 5:
            if monitor:
                monitor.begin_evaluation()
            with torch.no_grad():
                model.eval()(torch.ones(8, 3, 8, 8))
            model.train()
            if monitor:
                monitor.end_evaluation()
    if monitor is None:
        return bits(model.state_dict()), bits(model.seen()), None
    reason, gaps = monitor.skipped.get("train-eval-gap", ""), [w.facts.gaps for w in rule.seen]
    monitor.close()
    assert monitor.failure == ""
    return bits(model.state_dict()), bits(model.seen()), (reason, gaps)


@pytest.mark.parametrize("name", KINDS)
def test_a_training_with_the_probe_ends_with_the_same_bits(name: str) -> None:
    cls = KINDS[name]
    unwatched, watched = train(cls, False), train(cls, True)
    reason, gaps = watched[2]
    assert watched[:2] == unwatched[:2]
    if cls.refused:
        assert "could not put everything back" in reason
        assert cls.refused in reason
    else:
        assert reason == ""
        assert gaps
        assert all(gap is not None for gap in gaps), "the extra forward did not run"


def test_a_lightning_module_may_be_called_as_a_whole_but_not_reach_its_trainer(tmp_path: Path) -> None:
    class Module(pl.LightningModule):
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x.to(self.device))
            return out

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            self.log("index", index)
            return self(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    class Scheduled(Module):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * mark(self.current_epoch))

    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    reached = []
    for module in (Module(), Scheduled()):
        trainer = pl.Trainer(
            max_steps=2, accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False, **quiet
        )
        trainer.fit(module, DataLoader(torch.randn(8, 3), batch_size=4))  # type: ignore[arg-type]
        reached.append(Reach([module]).obstacle)
    assert reached[0] == ""
    assert reached[1].startswith("the forward reaches")


def test_too_little_memory_is_a_reason_against() -> None:
    huge = torch.empty((), device="meta").expand(1 << 50)
    assert lack_of_memory([torch.zeros(3)]) == lack_of_memory([huge]) == ""
    free = restoring._free(torch.device("cpu"))
    if free is not None:
        assert "bytes on cpu" in lack_of_memory([torch.zeros(1).expand(free)])


def test_hooks_of_every_module_see_the_extra_forward_and_keep_nothing_of_it() -> None:
    def run(probe: bool) -> tuple[Any, ...]:
        calls: list[str] = []
        handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: calls.append(type(m).__name__))
        try:
            return *train(Nothing, probe)[:2], calls
        finally:
            handle.remove()

    assert run(True) == run(False)


def test_a_mode_that_counts_operations_is_left_alone() -> None:
    def run(probe: bool) -> tuple[Any, ...]:
        with FlopCounterMode(display=False) as counter:
            *trained, told = train(Nothing, probe)
        return *trained, counter.get_total_flops(), told

    watched = run(True)
    assert watched[:3] == run(False)[:3]
    assert "a mode of the training sees every call" in watched[3][0]


def test_arguments_of_a_class_of_their_own_stay_as_they_are() -> None:
    @dataclass
    class Batch:
        x: Tensor
        used: int = 0

    class Net(Base):
        def forward(self, batch: Any) -> Tensor:
            batch.used += 1
            out: Tensor = self.net(batch.x)
            return out

    model, rule = Net(), EvaluationWindows()
    with Monitor(model, probe=True, sinks=[], on_alert="log", sample_every_n_steps=1, rules=[rule]) as monitor:
        batches = [Batch(torch.randn(8, 3, 8, 8)) for _ in range(3)]
        for batch in batches:
            model(batch).square().mean().backward()
            monitor.step()
        with monitor.evaluation():
            pass
    assert [batch.used for batch in batches] == [1, 1, 1]
    assert rule.seen[-1].facts.gaps is not None
