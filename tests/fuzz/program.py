"""A program is a model, a training and a way to watch it; a seed gives one program."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from tests.fuzz.parts import NORMS, SHAPES

T = TypeVar("T")

PLACES = ("start", "before", "forward", "forwarded", "backward", "backwarded", "optimized", "done", "evaluation")
"""Where in a step something can happen, in this order; "done" is after ``monitor.step()``."""

ERRORS = ("ValueError", "RuntimeError", "KeyboardInterrupt", "SystemExit", "StopIteration", "MemoryError")

WRITES = ("load", "copy", "data", "reset", "assign", "counter", "swap")
"""Events in which code other than a layer writes to the layer's buffers."""

CHANGES = (
    "momentum",
    "freeze",
    "unfreeze",
    "fix",
    "release",
    "deepcopy",
    "pickle",
    "script",
    "trace",
    "hook",
    "unhook",
    "replace",
    "add",
    "extra forward",
    "quiet forward",
    "evaluate",
    "save",
    "look",
    "again",
    "nan",
    "constant",
    "large",
    "tiny",
    "anomaly",
)
"""Events that leave the buffers to the layers."""

OTHER_WRITES = True
"""Whether programs are composed in which other code writes to the buffers of layers."""


@dataclass(frozen=True)
class Block:
    """A part of the model: a linear or convolution, a normalization and an activation."""

    norm: str
    momentum: float | None = 0.1
    weight: str = ""
    act: str = "relu"
    call: str = ""
    hook: str = ""
    frozen: str = ""


@dataclass(frozen=True)
class Event:
    """Something that happens once in a training."""

    step: int
    place: str
    what: str
    which: int = 0


@dataclass(frozen=True)
class Program:
    """Everything that a run of a program follows from."""

    seed: int
    family: str
    blocks: tuple[Block, ...]
    loop: str = "plain"
    steps: int = 8
    batch: int = 6
    dtype: str = "float32"
    autocast: bool = False
    compiled: str = ""
    optimizer: str = "sgd"
    accumulate: int = 1
    step_per_micro_batch: bool = False
    average: str = ""
    evaluate_every: int = 0
    evaluation: str = "no_grad"
    tolerant: bool = False
    events: tuple[Event, ...] = ()
    check: int = 10
    sample: int = 100
    log: int | None = None
    window: int = 64
    sinks: str = "none"
    probe: bool = False
    numbered: bool = True
    first: bool = False

    @property
    def compiles(self) -> bool:
        """Whether the model or a block of it is compiled."""
        return bool(self.compiled) or any(block.call == "compile" for block in self.blocks)

    def __str__(self) -> str:
        """Return the choices that are not the usual ones."""
        return f"seed {self.seed}: " + _choices(self, ("seed",))


def _choices(what: Any, without: Sequence[str] = ()) -> str:
    found = []
    for field in fields(what):
        value = getattr(what, field.name)
        if field.name in without or value == field.default:
            continue
        if isinstance(value, tuple):
            value = "[" + "; ".join(map(_choices, value)) + "]"
        found.append(f"{field.name}={value}")
    return ", ".join(found)


def compose(seed: int, other_writes: bool | None = None) -> Program:
    """Return the program of a seed.

    Args:
        seed: Any integer.
        other_writes: Whether other code may write to buffers; None: as :data:`OTHER_WRITES` says.
    """
    return _Composer(seed, OTHER_WRITES if other_writes is None else other_writes).program()


class _Composer:
    def __init__(self, seed: int, other_writes: bool) -> None:
        self.seed, self.rng, self.writes = seed, random.Random(seed), other_writes

    def maybe(self, chance: float, these: Sequence[T], otherwise: T) -> T:
        """One of some choices, now and then."""
        return self.rng.choice(these) if self.rng.random() < chance else otherwise

    def block(self, family: str, compiled: bool) -> Block:
        calls = ["checkpoint", "reentrant", "twice", "residual", "no_grad"]
        if not compiled:
            calls += ["script", "trace", "script act", "compile"]
        return Block(
            norm=self.rng.choice(NORMS[family]),
            momentum=self.maybe(0.4, (None, 0.3, 0.01, 1.0, 0.0, 0.9), 0.1),
            weight=self.maybe(0.15, ("weight_norm", "spectral_norm", "old weight_norm", "old spectral_norm"), ""),
            act=self.maybe(0.5, ("relu_", "dropout", "none", "silu"), "relu"),
            call=self.maybe(0.35, calls, ""),
            hook=self.maybe(
                0.25, ("forward", "replacing", "in place", "pre", "pre replacing", "backward", "block backward"), ""
            ),
            frozen=self.maybe(0.15, ("eval", "fixed", "eval fixed"), ""),
        )

    def event(self, steps: int, places: Sequence[str]) -> Event:
        """Something at a random step and place."""
        kinds: Sequence[str] = CHANGES
        chance = self.rng.random()
        if chance < 0.3:
            kinds = ERRORS
        elif chance < 0.5 and self.writes:
            kinds = WRITES
        return Event(
            self.rng.randrange(steps), self.rng.choice(places), self.rng.choice(kinds), self.rng.randrange(100)
        )

    def program(self) -> Program:
        """Choose everything."""
        rng = self.rng
        family = rng.choice(sorted(SHAPES))
        loop = self.maybe(0.2, ("lightning",), "plain")
        optimizers = ["adam", "adamw foreach", "rmsprop", "lbfgs"]
        optimizers += ["two", "sam", "scaler"] if loop == "plain" else []
        compiled = self.maybe(0.08, ("eager", "aot_eager"), "")
        steps = rng.randint(3, 14)
        dtype = self.maybe(0.3, ("float64", "bfloat16"), "float32")
        places = [p for p in PLACES if not (compiled and p == "forward")]
        return Program(
            seed=self.seed,
            family=family,
            blocks=tuple(self.block(family, bool(compiled)) for _ in range(rng.randint(1, 3))),
            loop=loop,
            steps=steps,
            batch=rng.randint(3, 9),
            dtype=dtype,
            autocast=dtype == "float32" and rng.random() < 0.2,
            compiled=compiled,
            optimizer=self.maybe(0.6, optimizers, "sgd"),
            accumulate=self.maybe(0.25, (2, 3), 1),
            step_per_micro_batch=rng.random() < 0.5,
            average=self.maybe(0.35, ("averaged", "averaged buffers", "deepcopy", "swap parameters"), ""),
            evaluate_every=self.maybe(0.6, (1, 2, 3, 5), 0),
            evaluation=self.maybe(0.4, ("inference", "grad", "unannounced", "train mode"), "no_grad"),
            tolerant=rng.random() < 0.5,
            events=tuple(
                sorted(
                    (self.event(steps, places) for _ in range(self.maybe(0.75, (1, 1, 2, 2, 3, 4), 0))),
                    key=lambda e: e.step,
                )
            ),
            check=self.maybe(0.7, (1, 2, 3, 5), 10),
            sample=self.maybe(0.7, (0, 1, 2, 3, 5), 100),
            log=self.maybe(0.5, (0, 1, 2, 4), None),
            window=self.maybe(0.15, (4, 8), 64),
            sinks=self.maybe(0.5, ("default", "files", "console"), "none"),
            probe=rng.random() < 0.1,
            numbered=rng.random() < 0.5,
            first=rng.random() < 0.5,
        )
